"""Train the digits model: `scripts/train_digits` writes edgeq/demo/digits.safetensors.

Minutes on two cores. One thread and a fixed seed, so that the same machine and torch give the same bytes. The test
third is looked at once, after the last epoch: nothing is chosen by it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from edgeq.core import preprocess
from edgeq.core.files import write_atomic
from edgeq.demo import digits

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 4e-3
MAX_ANGLE = math.radians(10)
MAX_SHIFT = 0.125  # of half the image's width: two of 32 pixels
MAX_ZOOM = 0.1


def main() -> None:
    """Train, print the accuracy on the test third, write the checkpoint."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    net = digits.DigitsNet()
    train(net, *tensors(digits.calibration_data()))
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    write_atomic(digits.CHECKPOINT, save(state))
    accuracy = evaluate(digits.model(), *tensors(digits.evaluation_data()))
    print(f"test accuracy {accuracy:.2%}, checkpoint {digits.CHECKPOINT.stat().st_size} bytes")


def tensors(data: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Preprocess as an app would: float32 [N, 1, 32, 32] and int64 [N]."""
    inputs = np.stack([preprocess.apply(digits.PREPROCESS, image) for image in data["image"]])
    return torch.from_numpy(inputs), torch.from_numpy(data["y"])


def train(net: digits.DigitsNet, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Train for all epochs; one learning-rate cycle."""
    steps = -(-len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs=EPOCHS, steps_per_epoch=steps)
    net.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(inputs)).split(BATCH):
            logits = net(augment(inputs[rows]))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / len(inputs):.4f}", flush=True)


def augment(inputs: torch.Tensor) -> torch.Tensor:
    """Turn, shift and zoom each image a little; what comes in from outside repeats the border."""
    count = len(inputs)
    angle = uniform(count) * MAX_ANGLE
    zoom = 1 + uniform(count) * MAX_ZOOM
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([cos, -sin, uniform(count) * MAX_SHIFT, sin, cos, uniform(count) * MAX_SHIFT], dim=1)
    grid = functional.affine_grid(rows.view(count, 2, 3), list(inputs.shape), align_corners=False)
    return functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


def uniform(count: int) -> torch.Tensor:
    """Return float32 [count] in [-1, 1)."""
    return torch.rand(count) * 2 - 1


@torch.inference_mode()
def evaluate(net: digits.DigitsNet, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images whose largest logit is the label's."""
    return float((net(inputs).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
