"""Models with what the patches of a faster lowering could get wrong, exported."""

from __future__ import annotations

import torch
from torch import nn

IMAGE = (torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16),)
ROWS = (torch.linspace(-1, 1, 2 * 2 * 16).reshape(2, 2, 16),)


class Residual(nn.Module):
    """Batch norm, activations in place, an addition, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 5))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block(x)
        x += 0.5
        return self.head(x)


class Views(nn.Module):
    """Aliases, slices written in place, several outputs, a constant, and an operator that is done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("shift", torch.arange(4.0).reshape(1, 4, 1, 1))

    def forward(self, x):
        a, b = self.conv(x).chunk(2, dim=1)
        c = a.clone()
        c[:, :1].mul_(2.0)
        same = a.sigmoid() + a.sigmoid()
        return torch.cat([c + self.shift, b.transpose(2, 3)], 1), same.mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Upsampled(nn.Module):
    """What `needed_patterns` must leave alone: a bilinear resize, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x):
        x = nn.functional.interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.up(nn.functional.hardswish(x))


class Gates(nn.Module):
    """Mobile activations, a squeeze and excitation, max pooling that returns indices inside, and a 1d convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.line = nn.Conv1d(8, 4, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(nn.functional.hardswish(self.conv(x)), 2)
        x = x * nn.functional.hardsigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return nn.functional.gelu(self.line(x.flatten(2))).amax(2)


class Recurrent(nn.Module):
    """An LSTM, whose steps are unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Tokens(nn.Module):
    """Embeddings and an encoder: attention, layer norm, integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 4)

    def forward(self, ids):
        return self.head(self.encoder(self.embed(ids)).mean(1))


TOKENS = (torch.arange(16).reshape(2, 8) % 20,)
ZOO = {
    "residual": (Residual, IMAGE),
    "views": (Views, IMAGE),
    "upsampled": (Upsampled, IMAGE),
    "gates": (Gates, IMAGE),
    "recurrent": (Recurrent, ROWS),
    "tokens": (Tokens, TOKENS),
}


def exported(kind, inputs, scheme):
    if scheme == "fp32":
        torch.manual_seed(0)
        return torch.export.export(kind().eval(), inputs)
    return torch.export.export(converted(kind, inputs, scheme), inputs)


def converted(kind, inputs, scheme):
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgeq.quantize.pt2e import _norm_patterns_where_norms_are

    program = exported(kind, inputs, "fp32")
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=scheme == "dynamic-int8")
    with _norm_patterns_where_norms_are():  # seconds for each model otherwise
        prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        prepared(*inputs)
    return convert_pt2e(prepared)
