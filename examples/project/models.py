"""The models of the project, and their calibration data."""

import numpy as np
import torch
from torch import nn


class Edges(nn.Module):
    """Takes float32 [N, 1, 16, 16], returns float32 [N, 4, 14, 14]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)

    def example_inputs(self) -> tuple[torch.Tensor]:
        return (torch.zeros(1, 1, 16, 16),)


class Scores(nn.Module):
    """Takes float32 [N, 32], returns float32 [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)

    def example_inputs(self) -> tuple[torch.Tensor]:
        return (torch.zeros(1, 32),)


def edges() -> Edges:
    return Edges()


def scores() -> Scores:
    return Scores()


def images() -> np.ndarray:
    """Return smooth random images, float32 [128, 1, 16, 16]."""
    noise = np.random.default_rng(0).normal(size=(128, 1, 16, 16))
    return (noise.cumsum(axis=2).cumsum(axis=3) / 8).astype(np.float32)
