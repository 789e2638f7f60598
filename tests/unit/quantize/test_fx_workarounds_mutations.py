"""Operators that write in place: the int8 graph must read what they wrote, as Python does."""

from __future__ import annotations

import pytest
import torch
from small_models import loaded, outputs_of, quantized
from torch import nn
from torch.nn import functional

from edgeq.core.results.model import TensorSpec

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))


class Writes(nn.Module):
    """Convolution, an operator that writes into its output, another convolution."""

    def __init__(self, write):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.write = write

    def forward(self, x):
        return self.write(self, x)


def statement(act):
    """A write whose result nobody names."""

    def write(net, image):
        x = net.first(image)
        act(net, x)
        return net.last(x)

    return write


def residual(net, image):
    """The well-known trap: the identity is rectified too."""
    x = net.first(image)
    return net.last(net.act(x)) + x


def through_dropout(net, image):
    x = net.first(image)
    net.drop(x).relu_()
    return net.last(x)


def twice(net, image):
    x = net.first(image)
    x.clamp_(-0.2, 0.2)
    y = net.last(x)
    x.mul_(2.0)
    return y + x


def the_input(net, image):
    image.clamp_(0.3, 0.6)
    return net.last(net.first(image))


WRITES = {
    "clamp_": statement(lambda _, x: x.clamp_(-0.1, 0.1)),
    "relu_": statement(lambda _, x: x.relu_()),
    "torch.relu_": statement(lambda _, x: torch.relu_(x)),
    "F.relu": statement(lambda _, x: functional.relu(x, inplace=True)),
    "F.hardtanh": statement(lambda _, x: functional.hardtanh(x, -0.1, 0.1, inplace=True)),
    "module": statement(lambda net, x: net.act(x)),
    "add_": statement(lambda _, x: x.add_(1.0)),
    "residual": residual,
    "through dropout": through_dropout,
    "twice": twice,
    "the input": the_input,
}


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_was_written_in_place_is_read(write, backend):
    model = loaded(Writes(write), IMAGE)
    result = quantized(model, backend=backend)
    ours, theirs = outputs_of(result.graph, (IMAGE,), 4, backend), outputs_of(model.model, (IMAGE,), 4)
    for (mine,), (float_one,) in zip(ours, theirs, strict=True):
        assert abs(mine - float_one).max() < 0.1 * abs(float_one).max()


class Untraced(nn.Module):
    """Is kept in float, and not traced."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        x.clamp_(-0.1, 0.1)
        return self.inner(x)


def through_a_view(net, image):
    x = net.first(image)
    x.flatten(1).clamp_(-0.1, 0.1)
    return net.last(x)


def before_a_view_is_read(net, image):
    x = net.first(image)
    rows = x.flatten(2)
    x.clamp_(-0.1, 0.1)
    return rows


class HasUntraced(Writes):
    def __init__(self):
        super().__init__(None)
        self.odd = Untraced()

    def forward(self, image):
        x = self.first(image)
        return self.odd(x) + x


@pytest.mark.parametrize(
    ("make", "keep"),
    [
        (lambda: Writes(through_a_view), ()),
        (lambda: Writes(before_a_view_is_read), ()),
        (lambda: Writes(statement(lambda _, x: torch.clamp(x, -0.1, 0.1, out=x))), ()),
        (HasUntraced, ("odd",)),
    ],
)
def test_what_fx_cannot_follow_is_right_by_the_exported_graph(make, keep):
    model = loaded(make(), IMAGE)
    result = quantized(model, keep=keep)
    assert "first" in result.quantized
    ours, theirs = outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        assert abs(got[0] - want[0]).max() < 0.1 * abs(want[0]).max()


def test_a_read_before_the_write_stays_what_it_was():
    def write(net, image):
        x = net.first(image)
        y = net.last(x)
        x.clamp_(-0.01, 0.01)
        return y

    model = loaded(Writes(write), IMAGE)
    result = quantized(model, backend="x86")
    (mine,), (float_one,) = outputs_of(result.graph, (IMAGE,), 1, "x86")[0], outputs_of(model.model, (IMAGE,), 1)[0]
    assert abs(mine - float_one).max() < 0.1 * abs(float_one).max()
