"""Layers whose weights are stored in less than float32."""

from __future__ import annotations

import pytest
import torch
from small_models import loaded, lowered, outputs_of, quantized
from torch import nn
from torch.nn import functional

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.verify.metrics import Comparison


class Functions(nn.Module):
    """Calls functions with the weights of its layers, as torchvision's Swin does, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.conv = nn.Embedding(40, 16), nn.Linear(16, 24), nn.Conv1d(24, 16, 3, padding=1)

    def forward(self, tokens):
        x = functional.linear(self.embed(tokens), self.qkv.weight, self.qkv.bias)
        x = functional.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias, padding=1)
        return functional.linear(x.transpose(1, 2), self.embed.weight)


class Scaled(nn.Embedding):
    """As of Gemma: the rows are multiplied."""

    def forward(self, tokens):
        return super().forward(tokens) * 4


class Tables(nn.Module):
    """A table that is looked up twice and tied to the head, one that a product reads, a subclass, one that is kept."""

    def __init__(self):
        super().__init__()
        self.words, self.read, self.scaled, self.kept = (kind(40, 16) for kind in (nn.Embedding,) * 2 + (Scaled,) * 2)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.words(tokens.flip(1)) + self.read(tokens) + self.scaled(tokens)
        x = self.mix(x.to(self.words.weight.dtype) + self.kept(tokens))  # to ask for a dtype reads no number
        return self.head(x), x @ self.read.weight.t()


@pytest.mark.parametrize(
    ("runtime", "backend", "tables"),
    [
        ("torchscript", "qnnpack", {"words"}),
        ("torchscript", "x86", {"words"}),
        ("executorch", "xnnpack", {"words", "read", "scaled"}),
    ],
)
def test_dynamic_int8_stores_tables_of_embeddings(tmp_path, runtime, backend, tables):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(Tables, spec)
    result = quantized(model, runtime=runtime, scheme="dynamic-int8", backend=backend, keep=["kept"])
    every = {"words", "read", "scaled", "kept"}
    assert {*result.quantized} & every == tables
    assert {*result.kept_fp32} & every == every - tables
    engine = None if backend == "xnnpack" else backend
    pairs = zip(
        outputs_of(result.graph, model.inputs, 4, engine), outputs_of(model.model, model.inputs, 4), strict=True
    )
    for ours, theirs in pairs:
        sums = Comparison()
        sums.add(theirs, ours)
        assert sums.sqnr_db > 30
    stored = dict(lowered(result, model.inputs, tmp_path, runtime, backend=backend).stored)
    layers = 16 * 16 + 40 * 16  # packed ones, whose head is tied no more
    layers += 40 * 16 if runtime == "executorch" else 0  # the product with `read` is a packed layer too
    assert stored["int8"] == layers + len(tables) * 40 * 16
    constants = 1.5 if runtime == "torchscript" else 0.5  # scales and biases too
    assert stored["float32"] < (len(every - tables) + constants) * 40 * 16


class TwoNames(nn.Module):
    """A table that has two names, and that a product reads."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(400, 16), nn.Embedding(400, 16)
        self.target.weight = self.source.weight
        self.mix = nn.Linear(16, 16)

    def forward(self, tokens):
        x = self.mix(self.source(tokens) + self.target(tokens.flip(1)))
        return x @ self.source.weight.t() + x @ self.target.weight.t()


def test_a_table_that_stays_in_float_stays_tied(tmp_path):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=399)
    model = loaded(TwoNames, spec)
    result = quantized(model, scheme="dynamic-int8")
    assert {*result.kept_fp32} == {"source", "target"}
    assert dict(lowered(result, model.inputs, tmp_path, backend="qnnpack").stored)["float32"] < 1.1 * 400 * 16


class Bags(nn.Module):
    """Bags of a fixed size, weighted ones, and bags by their offsets."""

    def __init__(self, mode, padding):
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.head = nn.EmbeddingBag(40, 16, mode=mode, padding_idx=padding), nn.Linear(16, 4)

    def forward(self, tokens):
        weights = {"per_sample_weights": torch.full(tokens.shape, 0.5)} if self.bag.mode == "sum" else {}
        flat = self.bag(tokens.flatten(), torch.tensor([0, 2, 2]))
        return self.head(self.bag(tokens, **weights)), self.head(flat)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "weight-only-int8"])
@pytest.mark.parametrize(("mode", "padding"), [("sum", None), ("mean", None), ("max", None), ("mean", 3)])
def test_the_tables_of_bags_are_stored(tmp_path, scheme, mode, padding):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(Bags(mode, padding).eval(), spec)
    result = quantized(model, runtime="torchscript", scheme=scheme, backend="x86")
    assert {*result.quantized} == {"bag", "head"}
    tokens = torch.tensor([[0, 3, 7, 3, 39, 39]])
    for ours, theirs in zip(result.graph(tokens), model.model(tokens), strict=True):
        assert torch.allclose(ours, theirs, atol=0.05)
    stored = dict(lowered(result, model.inputs, tmp_path, "torchscript", backend="x86").stored)
    assert stored["int8"] == 40 * 16 + 16 * 4
    assert stored["float32"] < 40 * 16 / 2


@pytest.mark.parametrize("scheme", ["weight-only-int8", "fp16"])
def test_recurrent_layers_of_each_kind_are_stored(tmp_path, scheme):
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList(kind(8, 8, batch_first=True) for kind in (nn.LSTM, nn.GRU, nn.RNN))

        def forward(self, x):
            return torch.cat([cell(x)[0] for cell in self.cells], -1)

    model = loaded(Cells, TensorSpec(name="x", dtype="float32", shape=(1, 5, 8), low=-1.0))
    result = quantized(model, runtime="torchscript", scheme=scheme, backend="x86")
    assert {*result.quantized} == {"cells.0", "cells.1", "cells.2"}
    made = lowered(result, model.inputs, tmp_path, "torchscript", backend="x86")
    assert dict(made.stored)["int8" if scheme == "weight-only-int8" else "float16"] == (4 + 3 + 1) * 8 * 16
    # each is one operator that multiplies its first state of zeros too: x at once, and a product for each step
    assert [layer.name for layer in made.layers].count("cells.2.recurrent") == 1 + 5


class Whisper(nn.Module):
    """Reads the settings of its layers, as transformers' Whisper does."""

    def __init__(self):
        super().__init__()
        self.places, self.head = nn.Embedding(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        places = torch.arange(self.places.num_embeddings, device=x.device)
        return self.head(x[..., : self.head.in_features] + self.places(places)).reshape(-1, self.head.out_features)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "weight-only-int8"])
def test_forward_may_read_the_settings_of_a_stored_layer(scheme):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 6, 16))
    model = loaded(Whisper, spec)
    result = quantized(model, scheme=scheme)
    assert "places" in result.quantized
    (ours,), (theirs,) = (outputs_of(net, model.inputs, 1, "qnnpack") for net in (result.graph, model.model))
    assert abs(ours[0] - theirs[0]).max() < 0.05 * abs(theirs[0]).max()


def test_a_table_whose_rows_are_changed_by_a_lookup_is_kept_or_refused():
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(nn.Sequential(nn.Embedding(40, 16, max_norm=1.0), nn.Linear(16, 4)), spec)
    assert quantized(model, scheme="dynamic-int8").kept_fp32 == ("0",)
    with pytest.raises(UnsupportedError, match="cannot store 0: max_norm"):
        quantized(model, scheme="weight-only-int8")


@pytest.mark.parametrize(("scheme", "least_db"), [("weight-only-int8", 30), ("fp16", 60)])
def test_functions_may_be_called_with_a_stored_weight(tmp_path, scheme, least_db):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(Functions, spec)
    result = quantized(model, scheme=scheme)
    assert set(result.quantized) == {"embed", "qkv", "conv"}
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > least_db
    stored = dict(lowered(result, model.inputs, tmp_path, backend="qnnpack").stored)
    weights = sum(part.weight.numel() for part in (model.model.embed, model.model.qkv, model.model.conv))
    assert stored["int8" if scheme == "weight-only-int8" else "float16"] == weights
