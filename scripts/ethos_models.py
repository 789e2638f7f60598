"""Models for scripts/bench_ethos.py: seeded weights, batch norms estimated on noise, and samples to calibrate on."""

from __future__ import annotations

import torch
from torch import nn

torch.backends.mha.set_fastpath_enabled(False)  # else the encoder is one operator, which nothing quantizes


def digits() -> nn.Module:
    from edgeq.demo.digits import model

    return model().eval()


def mobilenet_v2() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.mobilenet_v2(weights=None)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches
    with torch.no_grad():
        for seed in range(4):
            module(images(seed, 4))
    return module.eval()


class Encoder(nn.Module):
    """An embedding, a layer of attention, a head: [N, 8] token indices to [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.words(tokens)).mean(1))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


def images(seed: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def samples(name: str, seed: int, count: int) -> list[torch.Tensor]:
    """Return inputs with a batch of one."""
    if name == "digits":
        from edgeq.demo import digits as demo

        pixels = torch.from_numpy(demo.calibration_data()["image"][seed * 100 :][:count]).permute(0, 3, 1, 2) / 255
        return [nn.functional.interpolate(one[None], (32, 32)) for one in pixels]
    if name == "encoder":
        rng = torch.Generator().manual_seed(seed)
        return [torch.randint(0, 100, (1, 8), generator=rng) for _ in range(count)]
    return [images(seed + 1000 * index) for index in range(1, count + 1)]
