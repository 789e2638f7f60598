"""Weights rounded in a float graph: on the grid of the type, near where they were, and the module's own stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import IMAGE, dataset, folder, forward, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches

ROW = TensorSpec(name="x", dtype="float32", shape=(2, 4))


def weights(graph):
    tensors = dict([*graph.graph.named_parameters(), *graph.graph.named_buffers()])
    return {name: value.detach() for name, value in tensors.items() if value.ndim > 1}


def test_int8_rounds_each_row_to_255_steps():
    graph = quantized(small_net(), "openvino", "weight-only-int8", backend="openvino")
    assert graph.quantized == ("conv", "depth", "hidden.0", "head")
    for value in weights(graph).values():
        rows = value.reshape(len(value), -1)
        steps = rows / (rows.abs().amax(dim=1, keepdim=True) / 127)
        assert float((steps - steps.round()).abs().max()) < 1e-3
        assert float(steps.abs().max()) == pytest.approx(127)


def test_half_rounds_to_what_half_holds_and_leaves_vectors():
    graph = quantized(small_net(), "openvino", "fp16", backend="openvino")
    assert all(bool((value == value.half().float()).all()) for value in weights(graph).values())
    vectors = [value for _, value in graph.graph.named_parameters() if value.ndim == 1]
    assert any(bool((value != value.half().float()).any()) for value in vectors)


@pytest.mark.parametrize(("scheme", "most"), [("fp16", 1e-3), ("weight-only-int8", 0.02)])
def test_outputs_stay_near_and_the_model_itself_is_not_changed(scheme, most):
    model = small_net()
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    (before,) = forward(model.model)(batch)
    (rounded,) = forward(quantized(model, "openvino", scheme, backend="openvino").graph)(batch)
    assert 0 < np.abs(rounded - before).max() < most * np.abs(before).max()
    assert np.array_equal(forward(model.model)(batch)[0], before)


@pytest.mark.parametrize("keep", ["head", "Linear"])
def test_kept_layers_are_not_rounded(keep):
    graph = quantized(small_net(), "openvino", "weight-only-int8", backend="openvino", keep=(keep,))
    assert "head" in graph.kept_fp32
    own = dict(small_net().model.named_parameters())["head.weight"]
    assert any(value.shape == own.shape and torch.equal(value, own) for value in weights(graph).values())


class Masked(nn.Module):
    """Attention with a mask of infinities, as windows that are shifted have it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("mask", torch.tensor([[0.0, float("-inf")], [float("-inf"), 0.0]]))

    def forward(self, x):
        return (self.layer(x) + self.mask).softmax(-1)


@pytest.mark.parametrize("scheme", ["weight-only-int8", "fp16"])
def test_a_mask_of_infinities_is_no_weight(scheme):
    model = loaded(Masked, ROW)
    graph = quantized(model, "openvino", scheme, backend="openvino")
    assert graph.quantized == ("layer",)
    (batch,) = batches(dataset((ROW,), 1), (ROW,))
    assert np.array_equal(forward(graph.graph)(batch)[0], np.eye(2, dtype=np.float32))


def test_unknown_names_and_weights_beyond_half_are_refused_by_name():
    with pytest.raises(UsageError, match="haed"):
        quantized(small_net(), "openvino", "fp16", backend="openvino", keep=("haed",))
    model = loaded(nn.Linear(4, 3), ROW)
    with torch.no_grad():
        model.model.weight[0, 0] = 1e6
    with pytest.raises(UnsupportedError, match="holds 1e\\+06, but half precision holds at most 65504"):
        quantized(model, "openvino", "fp16", backend="openvino")


def test_a_model_without_weights_is_refused():
    with pytest.raises(UnsupportedError, match="weight-only-int8 quantized nothing"):
        quantized(loaded(nn.ReLU(), ROW), "openvino", "weight-only-int8", backend="openvino")


class Biased(nn.Module):
    """Attention scores with a bias for each head and each distance of two of 12 places, as T5 has it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.distances, self.project = nn.Embedding(8, 2), nn.Linear(4, 4)
        with torch.no_grad():
            self.distances.weight[:, 1] *= 100

    def forward(self, x):
        places = torch.arange(12)
        buckets = (places[:, None] - places[None]).abs().clamp(max=7)
        bias = self.distances(buckets).permute(2, 0, 1).unsqueeze(0)
        return self.project(x).reshape(1, 12, 2, 2).transpose(1, 2) @ x.reshape(1, 12, 2, 2).permute(0, 2, 3, 1) + bias


PLACES = TensorSpec(name="x", dtype="float32", shape=(1, 12, 4))


def test_a_bias_that_is_larger_than_its_table_is_rounded_as_it_is_used():
    graph = quantized(loaded(Biased, PLACES), "openvino", "weight-only-int8", backend="openvino")
    assert "distances" in graph.quantized
    (bias,) = [value for value in weights(graph).values() if value.ndim == 4]
    steps = bias / (bias.abs().amax(dim=(0, 2, 3), keepdim=True) / 127)  # a scale for each head
    assert float((steps - steps.round()).abs().max()) < 1e-3
    kept = quantized(loaded(Biased, PLACES), "openvino", "weight-only-int8", backend="openvino", keep=("distances",))
    assert "distances" in kept.kept_fp32
    (table,) = [value for value in weights(kept).values() if value.shape == (8, 2)]
    assert torch.equal(table, Biased().distances.weight)


def test_the_rounded_bias_is_stored_in_int8():
    model = loaded(Biased, PLACES)
    graph = quantized(model, "openvino", "weight-only-int8", backend="openvino")
    low = lowered(graph, (PLACES,), folder() / "biased", "openvino", backend="openvino")
    assert dict(low.stored)["int8"] >= 2 * 12 * 12
    assert dict(low.stored).get("float32", 0) < 12 * 12
