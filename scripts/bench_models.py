"""What `scripts/bench package` packages: torchvision's models on images, and an encoder of four layers on features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

ENCODER = "encoder"
STEPS, FEATURES = 64, 256


def encoder() -> nn.Module:
    """Return a speech model's encoder over features, float32 [1, 64, 256], with ten classes."""
    layer = nn.TransformerEncoderLayer(FEATURES, nhead=4, dim_feedforward=1024, batch_first=True, norm_first=True)
    layers = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    return nn.Sequential(layers, nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 10))


def fresh(name: str) -> nn.Module:
    """Return a model with random weights."""
    if name == ENCODER:
        return encoder()
    from torchvision.models import get_model  # half a second that a script for the encoder would not spend

    return get_model(name, weights=None)


def load(name: str, weights: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Return a model with its weights, ready for inference, and its example input."""
    model = fresh(name)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval(), (torch.rand(1, STEPS, FEATURES) if name == ENCODER else torch.rand(1, 3, 224, 224),)


def batches(data: Path) -> Iterator[torch.Tensor]:
    """Yield each sample of a folder of images or of an array of features, float32, as a batch of one."""
    if data.suffix == ".npy":
        for features in np.load(data):
            yield torch.from_numpy(features)[None]
        return
    import torchvision
    from PIL import Image

    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for path in sorted(data.iterdir()):
        yield transform(Image.open(path).convert("RGB"))[None]
