"""A small CNN on scikit-learn's handwritten digits: the model, its weights, its data and its preprocessing.

The data are the 1,797 test images of UCI's "Optical Recognition of Handwritten Digits" as scikit-learn ships them,
8x8 pixels in 17 grey levels. Two thirds train the model and calibrate it; one third is only ever evaluated on.
`scripts/train_digits` makes the checkpoint.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.lazy import NDArray, np
from edgeq.core.preprocess import Preprocess
from edgeq.core.system import install_command

CHECKPOINT = Path(__file__).with_name("digits.safetensors")

# mean and standard deviation of the training pixels, to two places
PREPROCESS = Preprocess(color="gray", resize=(32, 32), scale=1 / 255, mean=(0.31,), std=(0.38,))

NUM_CLASSES = 10

_SPLIT_SEED = 0


class DigitsNet(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """MobileNet in small: a strided stem, a separable block, two inverted residual blocks, one linear layer.

    Takes float32 [N, 1, 32, 32], returns float32 logits [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 16, kernel=3, stride=2)
        self.separable = nn.Sequential(_conv(16, 16, kernel=3, groups=16), _conv(16, 32))
        self.down = _inverted(32, 96, 48, stride=2)
        self.residual = _inverted(48, 144, 48, stride=1)
        self.head = _conv(48, 128)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(128, NUM_CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [N, 10], of `image`, float32 [N, 1, 32, 32]."""
        features = self.down(self.separable(self.stem(image)))
        features = self.head(features + self.residual(features))
        return self.classifier(torch.flatten(self.pool(features), 1))


def _conv(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """ReLU, not ReLU6: every quantizer fuses it into the convolution."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _inverted(inputs: int, hidden: int, outputs: int, *, stride: int) -> nn.Sequential:
    """Expand, filter each channel, project; the projection stays linear (MobileNetV2, arXiv:1801.04381)."""
    project = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(_conv(inputs, hidden), _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden), *project)


def model() -> DigitsNet:
    """Return the trained model in eval mode.

    Raises:
        EnvironmentProblem: the checkpoint is missing from the installation.
    """
    from safetensors.torch import load_file

    if not CHECKPOINT.is_file():
        raise EnvironmentProblem(f"expected the digits checkpoint at {CHECKPOINT}, found none", "install edgeq again")
    net = DigitsNet()
    net.load_state_dict(load_file(CHECKPOINT))
    net.eval()
    return net


def example_inputs() -> tuple[torch.Tensor]:
    """Return the input that the model is exported with: float32 [1, 1, 32, 32], all zero."""
    return (torch.zeros(1, 1, 32, 32),)


def images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all digits: uint8 [1797, 8, 8, 1] with 0 for paper and 255 for full ink, and int64 labels [1797].

    Raises:
        EnvironmentProblem: scikit-learn, which ships the images, is not installed.
    """
    # scikit-learn's own loader imports SciPy: two seconds for a file of numbers
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        what = "the digits data come with scikit-learn, which is not installed"
        raise EnvironmentProblem(what, install_command("digits"))
    path = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if not path.is_file():
        what = f"expected the digits data of scikit-learn at {path}, found none"
        raise EnvironmentProblem(what, install_command("digits"))
    with gzip.open(path, "rt", encoding="ascii") as file:
        rows = np.loadtxt(file, delimiter=",")  # 64 pixels from 0 to 16, and the digit
    pixels = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8, 1), rows[:, -1].astype(np.int64)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the training two thirds and of the test third, each in a fixed shuffled order.

    Stratified: of the images shuffled and then sorted by class, every third one is for testing.

    Args:
        labels: int64 [N], the classes of all images.
    """
    # RandomState, not a Generator: NumPy promises that its stream never changes
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.isin(shuffled, by_class[::3])
    return shuffled[~is_test], shuffled[is_test]


def calibration_data() -> dict[str, NDArray[Any]]:
    """Return the training two thirds: `image` uint8 [1198, 8, 8, 1] and `y` int64 [1198].

    Raises:
        EnvironmentProblem: scikit-learn is not installed.
    """
    pixels, labels = images()
    train, _ = split(labels)
    return {"image": pixels[train], "y": labels[train]}


def evaluation_data() -> dict[str, NDArray[Any]]:
    """Return the test third: `image` uint8 [599, 8, 8, 1] and `y` int64 [599].

    Raises:
        EnvironmentProblem: scikit-learn is not installed.
    """
    pixels, labels = images()
    _, test = split(labels)
    return {"image": pixels[test], "y": labels[test]}
