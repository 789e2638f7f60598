"""Clamps behind layers: the layer's range is that of what the clamp lets through, and QNNPACK saturates to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import IMAGE, dataset, loaded, outputs_of, quantized
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Clamped(nn.Module):
    """A convolution with a clamp behind it, whose values reach beyond the bounds on both sides, and a linear layer."""

    def __init__(self, clamp):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.clamp = clamp

    def forward(self, x):
        return self.head(self.clamp(self.conv(x)).mean((2, 3)))


class ClampedSum(nn.Module):
    """Clamps of a sum, of a sum with a number, whose kernel saturates nothing, and of what a layer reads too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        total = F.relu6(self.a(x) + self.b(x))
        moved = F.relu6(self.a(x) + 3.0)
        both = self.b(x)
        return self.head((total + moved + F.hardtanh(both, 0.0, 1.0)).mean((2, 3))), self.head(both.mean((2, 3)))


def _louder(model, times=40.0):
    for part in model.model.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.mul_(times)
    return model


def _kinds(graph):
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    modules = [type(graph.get_submodule(str(node.target))) for node in graph.graph.nodes if node.op == "call_module"]
    methods = [str(node.target) for node in graph.graph.nodes if node.op == "call_method"]
    clamps = [name for name in (*names, *methods) if any(word in name for word in ("hardtanh", "clamp", "relu6"))]
    return clamps + [kind.__name__ for kind in modules if kind.__name__ in ("ReLU6", "Hardtanh", "_Contiguous")]


def _noise(model, graph, backend):
    """The energy of each output's error, as a share of the output's."""
    exact = [np.concatenate(one) for one in zip(*outputs_of(model.model, (IMAGE,), 32), strict=True)]
    ours = [np.concatenate(one) for one in zip(*outputs_of(graph, (IMAGE,), 32, backend), strict=True)]
    return [float(((b - a) ** 2).sum() / (a**2).sum()) for a, b in zip(exact, ours, strict=True)]


@pytest.mark.parametrize(
    ("clamp", "goes"),
    [
        (nn.ReLU6(), True),
        (nn.ReLU6(inplace=True), True),
        (nn.Hardtanh(-2.0, 2.0), True),
        (F.relu6, True),
        (lambda x: F.hardtanh(x, -1.0, 3.0), True),
        (lambda x: torch.clamp(x, 0, 4), True),
        (lambda x: x.clamp(max=4.0), True),
        (lambda x: x.clamp(1.0, 4.0), False),  # the range of int8 holds zero, the bounds do not
    ],
)
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_a_layer_is_rounded_to_the_range_that_the_clamp_leaves(backend, clamp, goes):
    model = _louder(loaded(Clamped(clamp), IMAGE))
    samples = dataset((IMAGE,), count=64)
    result = quantized(model, backend=backend, observer="minmax", calibration=samples)
    assert bool(_kinds(result.graph)) == (backend == "x86" or not goes)
    (noise,) = _noise(model, result.graph, backend)
    assert noise < 1e-3  # the layer's own range is many times wider than the clamp's
    # and what the clamp cuts is no error of the layer's
    assert {item.layer: item.own_db > 25 for item in result.layer_sqnrs.layers} == {"conv": True, "head": True}


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_what_does_not_saturate_keeps_its_clamp(backend):
    model = _louder(loaded(ClampedSum(), IMAGE), 10.0)
    samples = dataset((IMAGE,), count=64)
    result = quantized(model, backend=backend, observer="minmax", calibration=samples)
    assert len(_kinds(result.graph)) == (2 if backend == "qnnpack" else 3)
    assert max(_noise(model, result.graph, backend)) < 3e-3
