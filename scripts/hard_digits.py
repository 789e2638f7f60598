"""The digits, moved about, and cases in which int8 loses much: what the accuracy of schemes is measured on.

6,589 test images: each of the 599 that no training saw, eleven times shifted, turned and with noise, by a fixed seed.
A seed picks the calibration samples and the order of the training. What is measured is the artifact's converted graph
for TorchScript, and the `.pte` itself for ExecuTorch. Two cases are made so that static-int8 loses much:

- outlier: one of the 128 calibration images is 20 times too bright, and the observer is minmax;
- channels: the gains of neighbouring channels differ by up to 8 x 8 times (fp32 computes the same: each is taken back
  by the next layer), and QNNPACK has one step size for all channels of a weight (as in arXiv:1906.04721).
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgeq.core import preprocess
from edgeq.core.config import QatConfig
from edgeq.core.results.model import LoadedModel, QuantizedModel, TensorSpec
from edgeq.core.samples import Dataset, Sample
from edgeq.core.schemes import ObserverName
from edgeq.demo import digits
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QatSpec, QuantizeSpec
from edgeq.report.progress import Quiet

COPIES = 11
MAX_ANGLE = math.radians(10)
MAX_SHIFT = 0.125  # of half the image's width: two of 32 pixels
NOISE = 0.1  # standard deviation, where the pixels' own is 1
AUGMENT_SEED = 1
CALIBRATION = 128
OUTLIER = 20.0
SPREAD = 8.0
INPUT = TensorSpec(name="image", dtype="float32", shape=(1, 1, 32, 32))

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: a model, its route, and what is wrong with it."""

    name: str
    runtime: str
    backend: str
    observer: ObserverName = "histogram"
    outlier: float = 1.0
    spread: float = 1.0


CASES = (
    Case(name="digits", runtime="torchscript", backend="qnnpack"),
    Case(name="digits", runtime="torchscript", backend="x86"),
    Case(name="digits", runtime="executorch", backend="xnnpack"),
    Case(name="outlier", runtime="torchscript", backend="qnnpack", observer="minmax", outlier=OUTLIER),
    Case(name="channels", runtime="torchscript", backend="qnnpack", spread=SPREAD),
)


def augmented() -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 [6589, 1, 32, 32] and int64 [6589]."""
    images, labels = tensors(digits.evaluation_data())
    generator = torch.Generator().manual_seed(AUGMENT_SEED)
    copies = [moved(images, generator) for _ in range(COPIES)]
    return torch.cat(copies), labels.repeat(COPIES)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images shifted, turned and with noise."""

    def uniform() -> torch.Tensor:
        return torch.rand(len(images), generator=generator) * 2 - 1

    angle = uniform() * MAX_ANGLE
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack([cos, -sin, uniform() * MAX_SHIFT, sin, cos, uniform() * MAX_SHIFT], dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned + NOISE * torch.randn(images.shape, generator=generator)


def tensors(data: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Preprocess as an app would."""
    inputs = np.stack([preprocess.apply(digits.PREPROCESS, image) for image in data["image"]])
    return torch.from_numpy(inputs), torch.from_numpy(data["y"])


def net(case: Case) -> Any:
    """Return the digits model, with channels of unlike gains where the case asks for them."""
    model = copy.deepcopy(digits.model())
    if case.spread == 1.0:
        return model
    generator = torch.Generator().manual_seed(0)
    separable, down, residual = model.separable, model.down, model.residual
    pairs = [
        (separable[0][1], separable[1][0]),
        *((block[i][1], following) for block in (down, residual) for i, following in ((0, block[1][0]), (1, block[2]))),
    ]
    with torch.no_grad():
        for norm, following in pairs:
            gains = torch.exp((torch.rand(norm.num_features, generator=generator) * 2 - 1) * math.log(case.spread))
            norm.weight.mul_(gains)
            norm.bias.mul_(gains)
            following.weight.div_(gains.view(-1, 1, 1, 1) if following.groups > 1 else gains.view(1, -1, 1, 1))
    return model


def predictor(case: Case, model: Any, scheme: str, seed: int) -> Predict:
    """Quantize by edgeq's own method, and return what computes the logits."""
    return predict_of(case, quantize(case.runtime, scheme, spec_of(case, model, seed)))


def predict_of(case: Case, quantized: QuantizedModel) -> Predict:
    """Return what computes the logits: the converted graph, or the lowered artifact."""
    return _pte(quantized) if case.runtime == "executorch" else _graph(quantized, case.backend)


def spec_of(case: Case, model: Any, seed: int) -> QuantizeSpec:
    """Return what a method is given for a seed's calibration samples."""
    images, _ = tensors(digits.calibration_data())
    order = np.random.default_rng(seed).permutation(len(images))
    images[order[0]] *= case.outlier
    loaded = LoadedModel(
        name="digits",
        kind="module",
        model=model,
        inputs=(INPUT,),
        weights="own",
        fp32_bytes=4 * sum(part.numel() for part in model.parameters()),
        source_sha256="0" * 64,
    )
    training = QatSpec(
        samples=dataset_of(images, range(len(images))),
        options=QatConfig(),
        logits=True,
        seed=seed,
        train=None,
        state_folder=None,
        identity=(),
    )
    return QuantizeSpec(
        model=loaded,
        captured=capture(loaded) if case.runtime == "executorch" else None,
        backend=case.backend,
        observer=case.observer,
        keep_fp32=(),
        calibration=dataset_of(images, sorted(int(i) for i in order[:CALIBRATION])),
        progress=Quiet(),
        label=case.name,
        qat=training,
    )


def dataset_of(images: torch.Tensor, rows: range | list[int]) -> Dataset:
    """Return some of the images as samples."""

    def read(i: int) -> Sample:
        array = images[rows[i]].numpy()
        return Sample(inputs=(array,), raw=(array,), label=None, name=str(rows[i]), digest=str(rows[i]))

    return Dataset(origin="digits", count=len(rows), read=read)


def graph_of(graph: Any, case: Case) -> Predict:
    """Return what runs a converted graph, before it is lowered."""
    return _run(graph, "qnnpack" if case.runtime == "executorch" else case.backend)


def _graph(quantized: QuantizedModel, backend: str) -> Predict:
    return _run(quantized.graph, backend)


def _run(graph: Any, backend: str) -> Predict:
    from edgeq.quantize.fx import engine

    def predict(images: torch.Tensor) -> torch.Tensor:
        with engine(backend):
            return graph(images)

    return predict


def _pte(quantized: QuantizedModel) -> Predict:
    from executorch.runtime import Runtime

    folder = Path(tempfile.mkdtemp(prefix="edgeq-bench-"))
    spec = LowerSpec(inputs=(INPUT,), backend="xnnpack", folder=folder, progress=Quiet(), label="digits")
    program = Runtime.get().load_program(lower("executorch", quantized, spec).path)
    method = program.load_method("forward")

    def predict(images: torch.Tensor, _program: Any = program) -> torch.Tensor:  # the program must outlive its method
        return torch.cat([method.execute((image[None].contiguous(),))[0].clone() for image in images])

    return predict


def size_bytes(case: Case, quantized: QuantizedModel) -> int:
    """Return the artifact's size."""
    folder = Path(tempfile.mkdtemp(prefix="edgeq-bench-"))
    spec = LowerSpec(inputs=(INPUT,), backend=case.backend, folder=folder, progress=Quiet(), label="digits")
    return lower(case.runtime, quantized, spec).path.stat().st_size


@torch.no_grad()
def accuracy(predict: Predict, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images whose largest logit is the label's, in percent."""
    hits = [predict(part).argmax(1) == truth for part, truth in zip(images.split(256), labels.split(256), strict=True)]
    return 100 * float(torch.cat(hits).float().mean())
