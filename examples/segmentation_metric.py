"""Package a segmentation model of this process, and limit the drop of its own metric, the mean IoU of two classes."""

import numpy as np
import torch
from torch import nn

import edgeq


class Segmenter(nn.Module):
    """Takes float32 [N, 1, 32, 32], returns float32 logits [N, 2, 32, 32]: background and disc."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def discs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images, float32 [count, 1, 32, 32], and their masks, int64 [count, 32, 32]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    centers, radii = rng.uniform(8, 24, size=(2, count, 1, 1)), rng.uniform(4, 9, size=(count, 1, 1))
    masks = (rows - centers[0]) ** 2 + (columns - centers[1]) ** 2 < radii**2
    images = masks + rng.normal(0, 0.3, masks.shape)
    return images[:, None].astype(np.float32), masks.astype(np.int64)


def train(model: nn.Module, images: np.ndarray, masks: np.ndarray) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(masks))
        loss.backward()
        optimizer.step()


def mean_iou(outputs: tuple[np.ndarray, ...], mask: np.ndarray) -> float:
    """Return the mean intersection over union of both classes, of one sample's logits [2, 32, 32]."""
    predicted = outputs[0].argmax(axis=0)
    ious = [((predicted == i) & (mask == i)).sum() / ((predicted == i) | (mask == i)).sum() for i in (0, 1)]
    return float(np.mean(ious))


if __name__ == "__main__":
    torch.manual_seed(0)
    training = discs(64, seed=0)
    model = Segmenter()
    train(model, *training)
    report = edgeq.package(
        model,
        targets="linux-x86_64-x86",
        example_inputs=torch.zeros(1, 1, 32, 32),
        calibration=training,
        evaluation=discs(64, seed=1),
        metric=mean_iou,
        limits=edgeq.Limits(accuracy_drop="2pp"),
        name="segmenter",
        on="host",
    )
    fidelity = report["linux-x86_64-x86"].verified.fidelity
    print(f"mean IoU: {fidelity.score:.3f} in int8, {fidelity.fp32_score:.3f} in float")
    report.raise_if_failed()
