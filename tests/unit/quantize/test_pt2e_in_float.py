"""Layers that a runtime has no int8 kernel of: float by plan, with the reason, and counted in the table of layers."""

from __future__ import annotations

import pytest
import torch
from small_models import IMAGE, loaded, lowered, quantized
from torch import nn

from edgeq.core.results.model import COMPUTED, TRANSPOSED

pytestmark = pytest.mark.slow


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.body(x).relu()
        return self.head(torch.cat((self.up(self.down(x).relu()), x), 1))


class Dynamic(nn.Module):
    """A convolution whose filters a linear layer scales."""

    def __init__(self):
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 32)
        self.filters = nn.Parameter(torch.rand(4, 8, 3, 3) - 0.5)

    def forward(self, x):
        x = self.body(x).relu()
        scales = self.gate(x.mean((2, 3))).sigmoid().view(4, 8, 1, 1)
        return nn.functional.conv2d(x, self.filters * scales, padding=1)


ROUTES = [("torchscript", "x86"), ("torchscript", "qnnpack"), ("onnx", "ort"), ("executorch", "xnnpack")]


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_transposed_convolutions_are_float_where_a_runtime_has_no_kernel(runtime, backend):
    result = quantized(loaded(UNet(), IMAGE), runtime, backend=backend)
    assert tuple(result.in_float.get(TRANSPOSED, ())) == (() if backend in ("qnnpack", "xnnpack") else ("up",))


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_weights_that_forward_computes_are_no_weights_to_quantize(runtime, backend, tmp_path):
    model = loaded(Dynamic(), IMAGE)
    result = quantized(model, runtime, backend=backend)
    layers = lowered(result, (IMAGE,), tmp_path, runtime, backend=backend).layers
    assert len(layers) == 3  # the linear layer is one, though its output only becomes a weight
    named = {layer.name for layer in layers}
    assert {"body", "gate"} < named
    if runtime != "torchscript":  # which packs them as it runs
        assert set(result.in_float[COMPUTED]) == named - {"body", "gate"}
