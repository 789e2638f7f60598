"""Pruned models: what is zero stays zero under every scheme, and is counted in the artifact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import loaded, lowered, quantized
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.lower.layers import zero_share

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 12, 12))


class _Net(nn.Module):
    """Two convolutions, one with a batch norm, a hidden layer with most weights, a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.more = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3)
        self.hidden, self.head = nn.Linear(32 * 64, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.more(torch.relu(self.norm(self.conv(x)))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def net(share):
    """The net with a share of each layer's weights set to zero, at random: small ones stay beside them."""
    model = loaded(_Net, IMAGE)
    with torch.no_grad():
        for part in model.model.parameters():
            if part.ndim > 1:
                part[torch.rand(part.shape) < share] = 0
    return model


PRUNED = net(0.75)

ROUTES = [
    *(("executorch", scheme, "xnnpack") for scheme in ("static-int8", "dynamic-int8")),
    *(("onnx", scheme, "ort") for scheme in ("static-int8", "weight-only-int4")),
    *(("openvino", scheme, "openvino") for scheme in ("static-int8", "weight-only-int4")),
    *(("torchscript", scheme, "x86") for scheme in ("static-int8", "dynamic-int8", "fp16")),
    pytest.param("executorch", "weight-only-palette4", "coreml", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("runtime", "scheme", "backend"), ROUTES)
def test_zeros_stay(runtime, scheme, backend, tmp_path):
    made = lowered(quantized(PRUNED, runtime, scheme, backend=backend), (IMAGE,), tmp_path, runtime, backend=backend)
    assert 0.74 < made.zeros < 0.86  # int4 rounds more to zero


def test_biases_and_scales_do_not_count():
    assert zero_share([np.zeros(9, np.float32), np.array([[0, 1]], np.int8), np.zeros((4, 4), np.int64)]) == 0.5
    assert zero_share([np.zeros(9, np.float32)]) is None
