"""resnet50 and mobilenet_v2 with seeded weights, and inputs that they tell apart: `scripts/bench cuda` measures them.

By torchvision where it is installed; written out here for machines that have torch alone.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

CLASSES = 1000
# parameters of the published models, which the ones below must have too
PARAMETERS = {"resnet50": 25_557_032, "mobilenet_v2": 3_504_872}
# expansion, output channels, repeats, stride of each stage (Sandler et al. 2018, table 2)
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = None) -> nn.Sequential:
    """Return convolution, batch norm and, where given, an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act is not None else []))


class Residual(nn.Module):
    """The sum of a body and a way around it, with an activation after it."""

    def __init__(self, body: nn.Module, around: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.around, self.act = body, around, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.body(x) + self.around(x))


def bottleneck(inputs: int, width: int, stride: int) -> nn.Module:
    """Return a block of resnet50 (He et al. 2015), its stride in the 3x3 convolution as in torchvision."""
    body = nn.Sequential(
        unit(inputs, width, 1, act=nn.ReLU(inplace=True)),
        unit(width, width, 3, stride, act=nn.ReLU(inplace=True)),
        unit(width, 4 * width, 1),
    )
    same = stride == 1 and inputs == 4 * width
    return Residual(body, nn.Identity() if same else unit(inputs, 4 * width, 1, stride), nn.ReLU(inplace=True))


def resnet50() -> nn.Module:
    """Return resnet50 for [N, 3, 224, 224]."""
    layers: list[nn.Module] = [unit(3, 64, 7, 2, act=nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(repeats):
            layers.append(bottleneck(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def inverted(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """Return a block of mobilenet_v2."""
    hidden = inputs * expansion
    body = nn.Sequential(
        *([unit(inputs, hidden, 1, act=nn.ReLU6(inplace=True))] if expansion > 1 else []),
        unit(hidden, hidden, 3, stride, hidden, act=nn.ReLU6(inplace=True)),
        unit(hidden, outputs, 1),
    )
    same = stride == 1 and inputs == outputs
    return Residual(body, nn.Identity(), nn.Identity()) if same else body


def mobilenet_v2() -> nn.Module:
    """Return mobilenet_v2 for [N, 3, 224, 224]."""
    layers: list[nn.Module] = [unit(3, 32, 3, 2, act=nn.ReLU6(inplace=True))]
    channels = 32
    for expansion, outputs, repeats, stride in _INVERTED:
        for index in range(repeats):
            layers.append(inverted(channels, outputs, stride if index == 0 else 1, expansion))
            channels = outputs
    layers += [unit(channels, 1280, 1, act=nn.ReLU6(inplace=True)), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, CLASSES))


def patterns(count: int, size: int) -> torch.Tensor:
    """Return [count, 3, size, size]: blots of seven by seven, one pattern for each class."""
    coarse = torch.randn((count, 3, 7, 7), generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def noisy(plain: torch.Tensor, seed: int, share: float = 0.1) -> torch.Tensor:
    """Return the images with noise of `share` of their own spread."""
    return plain + share * torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, size: int, classes: int, device: str) -> tuple[nn.Module, str]:
    """Return a model in eval mode, on the CPU, that tells the first `classes` patterns apart, and its code's origin.

    Batch-norm statistics are estimated on patterns, and each class's row of the classifier is the mean-free feature of
    its pattern: with random weights alone, noise would choose the winner, and agreement would not be meaningful.
    """
    torch.manual_seed(0)
    if importlib.util.find_spec("torchvision") is not None:
        import torchvision

        model, origin = torchvision.models.get_model(name, weights=None), f"torchvision {torchvision.__version__}"
    else:
        model, origin = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}[name](), "scripts/cuda_models.py"
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != PARAMETERS[name]:
        raise ValueError(f"{name} has {count} parameters, the published one {PARAMETERS[name]}")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean of what follows
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    shown = patterns(classes, size)
    with torch.no_grad():
        model.to(device).train()(noisy(shown[:32], seed=0).to(device))
        model.eval()
        _teach(model, shown, device)
    return model.cpu(), origin


def _teach(model: nn.Module, shown: torch.Tensor, device: str) -> None:
    """Make a classifier of the patterns' features, which answers a pattern with about 10 and others with about 0."""
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _part, args: seen.append(args[0]))
    for start in range(0, len(shown), 32):
        model(shown[start : start + 32].to(device))
    hook.remove()
    features = torch.cat(seen)
    centre = features.mean(0)
    rows = features - centre
    rows *= 10 / rows.square().sum(1, keepdim=True)
    head.weight.zero_()
    head.weight[: len(rows)] = rows
    head.bias.fill_(-30.0)
    head.bias[: len(rows)] = -(rows @ centre)
