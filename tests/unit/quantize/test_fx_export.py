"""Models that torch.fx cannot trace, and torch.export can."""

from __future__ import annotations

import pytest
import torch
from small_models import Silent, loaded, lowered, outputs_of, quantized
from torch import nn

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.verify.metrics import Comparison

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16))


class Net(nn.Module):
    """conv-bn-relu, a head, and what `end` makes of both."""

    def __init__(self, end):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(8, 6, 1)
        self.mix = nn.Conv2d(6, 4, 3, padding=1)
        self.norms = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
        self.end = end

    def forward(self, x):
        return self.end(self, self.body(x))


def half(net, x):
    y = net.head(x)
    y[:, :2] = y[:, :2].sigmoid()
    return net.mix(y)


def relu_of_slice(net, x):
    y = net.head(x)
    nn.functional.relu(y[:, :3], inplace=True)
    return net.mix(y)


def unpacked(net, x):
    batch, channels, *_ = x.shape
    return {"whole": net.mix(net.head(x)), "flat": x.reshape(batch, channels, -1).mean(-1)}


def zeros(net, x):
    z = torch.zeros_like(x)
    z[..., ::2] = x[..., ::2]
    return net.head(z)


def twice(net, x):
    y = net.head(x)
    y[:, 0] = 0
    return net.head(torch.cat((y, y[:, :2] * 3), 1))


def border(net, x):
    y = net.head(x)
    y[:, :, 0].zero_()
    return net.mix(y)


def normed(net, x):
    y = net.head(x)
    y[:, 0] = 0
    return net.mix(net.norms(y))


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
@pytest.mark.parametrize(
    "end", [half, relu_of_slice, unpacked, zeros, twice, border, normed], ids=lambda end: end.__name__
)
def test_the_exported_graph_is_quantized_where_fx_traces_none(tmp_path, end, backend):
    model = loaded(Net(end), IMAGE)
    result = quantized(model, backend=backend)
    assert len(result.quantized) >= 2
    assert "body.0" in result.quantized
    sums = Comparison()
    outputs = outputs_of(result.graph, model.inputs, 4, backend), outputs_of(model.model, model.inputs, 4)
    for ours, theirs in zip(*outputs, strict=True):
        for got, want in zip(ours, theirs, strict=True):
            assert got.shape == want.shape
        sums.add(theirs, ours)
    assert sums.sqnr_db > 20
    assert lowered(result, model.inputs, tmp_path, backend=backend).layers


def test_the_way_is_told_and_a_layer_may_stay_in_float():
    class Told(Silent):
        notes: tuple[str, ...] = ()

        def note(self, text):
            self.notes += (text,)

    progress = Told()
    result = quantized(loaded(Net(half), IMAGE), keep=["head"], progress=progress)
    assert sorted(result.quantized) == ["body.0", "mix"]
    assert any(
        ("quantizing its exported graph instead") in note and "test_fx_export.py" in note for note in progress.notes
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        batch, length = tokens.shape
        return self.head(self.inner(self.embed(tokens)).relu().reshape(batch, length, -1))


def test_a_tied_embedding_keeps_its_table():
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(Tied, spec)
    result = quantized(model)
    assert result.quantized
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > 25


def test_what_neither_can_capture_is_refused_with_its_line():
    def branch(net, x):
        return net.head(x) if x.sum() > 0 else net.head(x) * 2

    with pytest.raises(
        UnsupportedError, match=r"FX cannot trace the model at .*test_fx_export\.py:\d+.*exported graph"
    ):
        quantized(loaded(Net(branch), IMAGE))
