"""Models for scripts/bench_reuse.py: a shipped one, the same after a little training, and one trained from scratch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

STEPS = 20
LR = 1e-3
RETRAINED_STEPS = 600
BATCH = 32


def digits(kind: str) -> nn.Module:
    """Return the digits model, trained on as `kind` says: all of it, its last layer only, or from random weights."""
    from edgeq.demo.digits import DigitsNet, model

    shipped = model()
    if kind == "retrained":
        torch.manual_seed(1)
        return _trained(DigitsNet(), nn.Module.parameters, RETRAINED_STEPS, lr=3e-3, adam=True)
    return _successor(shipped, kind)


def mobilenet_v2(kind: str) -> nn.Module:
    """Return MobileNetV2 with random weights, trained on as `kind` says on the digits' images in three channels."""
    import torchvision

    torch.manual_seed(1 if kind == "retrained" else 0)
    shipped = torchvision.models.mobilenet_v2(weights=None)
    _estimate_batch_norm(shipped)
    return shipped if kind == "retrained" else _successor(shipped, kind)


def _successor(shipped: nn.Module, kind: str) -> nn.Module:
    if kind == "shipped":
        return shipped.eval()
    chosen = nn.Module.parameters if kind == "tuned" else _last_layer
    return _trained(shipped, chosen, STEPS, lr=LR)


def _last_layer(module: nn.Module) -> Any:
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1].parameters()


def _trained(module: nn.Module, parameters: Any, steps: int, *, lr: float, adam: bool = False) -> nn.Module:
    """Train a module; batch-norm statistics stay where it is only tuned."""
    module.train(adam)
    chosen = list(parameters(module))
    optimizer = torch.optim.Adam(chosen, lr) if adam else torch.optim.SGD(chosen, lr, momentum=0.9)
    images, labels = _training(module)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=rng)
        loss = nn.functional.cross_entropy(module(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def _training(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    channels = next(part for part in module.modules() if isinstance(part, nn.Conv2d)).in_channels
    return _pixels("training", 1 if channels == 1 else 3)


@functools.cache
def _pixels(part: str, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images as the model takes them, float32 [samples, channels, H, W], and their labels."""
    from edgeq.core.preprocess import apply
    from edgeq.demo.digits import PREPROCESS, images, split

    raw, labels = images()
    rest, held = split(labels)
    rows = held if part == "evaluation" else rest[:128] if part == "calibration" else rest[128:]
    pixels = torch.from_numpy(np.concatenate([apply(PREPROCESS, raw[row]).reshape(1, 1, 32, 32) for row in rows]))
    if channels == 3:
        pixels = nn.functional.interpolate(pixels, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return pixels, torch.from_numpy(np.asarray(labels)[rows])


def _estimate_batch_norm(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    module.train()
    with torch.no_grad():
        module(_pixels("calibration", 3)[0])
    module.eval()


def example_inputs(model: str) -> tuple[torch.Tensor]:
    """Return one image."""
    return (_pixels("calibration", 1 if model == "digits" else 3)[0][:1],)


def samples(model: str, part: str) -> dict[str, Any]:
    """Return samples as `--calibration-data file.py:function` gives them."""
    pixels, labels = _pixels(part, 1 if model == "digits" else 3)
    return {"image" if model == "digits" else "x": pixels.numpy(), "y": labels.numpy().astype(np.int64)}
