"""What each scheme makes of small models of all kinds on each runtime: why a model's default scheme is what it is.

Trains each model on the pixels of scikit-learn's digits, packages it on this host for one target of each runtime, and
prints size, SQNR against fp32, samples with fp32's class, and the gates that failed without limits. Models are quick to
train, so that attention, recurrence and convolutions are real; they are too small for latencies to mean much.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import edgeq
from edgeq.core.targets import load_target

TARGETS = (
    *("linux-x86_64-x86", "android-arm64-qnnpack", "linux-x86_64-xnnpack", "linux-x86_64-ort"),
    "linux-x86_64-openvino",
)
SCHEMES = ("static-int8", "dynamic-int8", "weight-only-int8", "fp16")

_TRAINED, _CALIBRATED, _JUDGED = 1300, 128, 200


class Attention(nn.Module):
    """Attention of several heads, written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        split = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, width))


class Layer(nn.Module):
    """A layer of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention, self.second = nn.LayerNorm(width), Attention(width, 4), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.second(x))


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with batch norm and SiLU."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.SiLU())


def inverted(before: int, after: int, stride: int) -> nn.Module:
    """Return a bottleneck of MobileNetV2, without its sum."""
    wide = 2 * before
    narrow = nn.Sequential(nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(convolution(before, wide, 1), convolution(wide, wide, 3, stride, wide), narrow)


class MobileViTBlock(nn.Module):
    """Convolutions around a transformer over the pixels of 2 x 2 patches (Mehta and Rastegari, 2021)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.local = nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, width, 1, bias=False))
        self.layers = nn.Sequential(Layer(width), Layer(width), nn.LayerNorm(width))
        self.back, self.join = convolution(width, channels, 1), convolution(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.local(x)
        n, width, height, _ = y.shape
        half = height // 2
        tokens = y.reshape(n, width, half, 2, half, 2).permute(0, 3, 5, 2, 4, 1).reshape(4 * n, half * half, width)
        mixed = self.layers(tokens).reshape(n, 2, 2, half, half, width).permute(0, 5, 3, 1, 4, 2)
        return self.join(torch.cat([x, self.back(mixed.reshape(n, width, height, height))], 1))


class Encoder(nn.Module):
    """A transformer over the 64 pixels of a digit, each a token of 17."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(17, 64), nn.Parameter(torch.randn(1, 64, 64))
        self.layers, self.head = nn.Sequential(Layer(64), Layer(64), nn.LayerNorm(64)), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(x) + self.places).mean(1))


class Recurrent(nn.Module):
    """Two recurrent layers over the rows of a digit."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layers, self.head = kind(8, 64, 2, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x)[0][:, -1])


def vit() -> nn.Module:
    """Return torchvision's ViT, small."""
    from torchvision.models import VisionTransformer

    sizes = {"num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return VisionTransformer(image_size=32, patch_size=4, num_classes=10, **sizes)


def swin() -> nn.Module:
    """Return torchvision's Swin transformer, small."""
    from torchvision.models import SwinTransformer

    sizes = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return SwinTransformer(patch_size=[2, 2], stochastic_depth_prob=0.0, num_classes=10, **sizes)


def head(channels: int) -> tuple[nn.Module, ...]:
    """Return what makes ten scores of channels."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "vit": ("image", vit),
    "swin": ("image", swin),
    "encoder": ("tokens", Encoder),
    "mobilevit": (
        "image",
        lambda: nn.Sequential(
            *(convolution(3, 16, 3, 2), inverted(16, 32, 1), inverted(32, 48, 2), MobileViTBlock(48, 64)),
            *(inverted(48, 64, 1), MobileViTBlock(64, 80), convolution(64, 128, 1), *head(128)),
        ),
    ),
    "lstm": ("rows", lambda: Recurrent(nn.LSTM)),
    "gru": ("rows", lambda: Recurrent(nn.GRU)),
    "mlp": ("rows", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))),
    "cnn": (
        "image",
        lambda: nn.Sequential(
            *(convolution(3, 16, 3, 2), inverted(16, 32, 1), inverted(32, 48, 2), convolution(48, 96, 1), *head(96)),
        ),
    ),
}


def data(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits as a model takes them, in a seeded order, with their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels, labels = pixels[order], labels[order]
    if kind == "tokens":
        return pixels.long(), labels
    rows = pixels.float().reshape(-1, 8, 8) / 16
    if kind == "rows":
        return rows, labels
    return functional.interpolate(rows[:, None], (32, 32), mode="bilinear").repeat(1, 3, 1, 1) * 2 - 1, labels


def trained(make: Callable[[], nn.Module], inputs: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """Return a model of `make`, trained."""
    torch.manual_seed(0)
    net = make().train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (_TRAINED // 50))
    for _ in range(epochs):
        for batch in torch.randperm(_TRAINED).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def row(name: str, scheme: str, result: Any) -> str:
    """Return a line of the table."""
    fidelity = result.verified.fidelity
    failed = ", ".join(gate.name for gate in result.gates if not gate.passed) or "-"
    figures = f"{result.size_bytes / 1000:.0f} kB | {fidelity.sqnr_db:.1f} dB | {fidelity.top1_agreement:.1%}"
    return f"| {name} | {result.target} | {scheme} | {figures} | {failed} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="default: all")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    print(
        "| model | target | scheme | size | SQNR | fp32's class | failed |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in options.models or MODELS:
        kind, make = MODELS[name]
        inputs, labels = data(kind)
        net = trained(make, inputs, labels, options.epochs)
        judged = range(_TRAINED, _TRAINED + _JUDGED)
        for scheme in SCHEMES:
            with tempfile.TemporaryDirectory() as out:
                try:
                    report = edgeq.package(
                        net,
                        name=name,
                        targets=[target for target in TARGETS if scheme in load_target(target).schemes],
                        schemes=[scheme],
                        example_inputs=(inputs[:1],),
                        calibration=inputs[:_CALIBRATED],
                        evaluation=[(inputs[i], int(labels[i])) for i in judged],
                        on="host",
                        out=out,
                        progress=False,
                    )
                except edgeq.EdgeqError as err:
                    print(f"| {name} | all | {scheme} | - | - | - | {err.what} |", flush=True)
                    continue
                for result in report.rows:
                    print(row(name, scheme, result), flush=True)
                for one in report.refused:
                    print(f"| {name} | {one.target} | {scheme} | - | - | - | {one.error.what} |", flush=True)


if __name__ == "__main__":
    main()
