"""What a model must be before anything is captured of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_models import loaded
from torch import nn

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.quantize.capture import capture, example_tensors, run_once

FOUR = TensorSpec(name="x", dtype="float32", shape=(2, 4))


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.mean(0))
        return self.linear(x) + self.mean


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), 0.5)


@pytest.mark.parametrize("exported", [False, True])
def test_a_model_that_keeps_state_between_calls_is_refused(exported):
    model = loaded(Remembering, FOUR)
    if exported:
        model = dataclasses.replace(model, kind="exported", model=capture(model))
    with pytest.raises(UnsupportedError, match=r"not deterministic: .*: forward changes mean") as caught:
        run_once(model)
    assert "an input and an output" in caught.value.fix


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.vmap(lambda row: row / (1 + row.abs().sum()))(self.linear(x))


def test_what_vmap_maps_becomes_operators_on_whole_batches():
    model = loaded(Mapped, FOUR)
    program = capture(model)
    assert all(
        isinstance(node.target, torch._ops.OpOverload) for node in program.graph.nodes if node.op == "call_function"
    )
    inputs = example_tensors(model.inputs)
    assert torch.allclose(program.module()(*inputs), model.model(*inputs), atol=1e-6)


def test_a_model_that_draws_random_numbers_is_refused():
    with pytest.raises(UnsupportedError, match="not deterministic") as caught:
        run_once(loaded(Dropping, FOUR))
    assert "training=self.training" in caught.value.fix


def test_a_model_that_returns_nan_and_its_own_buffer_is_not_taken_for_a_stateful_one():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(2, 4))

        def forward(self, x):
            self.last.copy_(x)
            return self.last, x / 0 * 0

    assert len(run_once(loaded(Holding, FOUR))[0]) == 2


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
def test_bags_of_one_size_are_captured_as_lookups(mode, padding):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(11, 4, mode=mode, padding_idx=padding)
    ids = TensorSpec(name="ids", dtype="int64", shape=(2, 9), high=10.0)
    program = capture(loaded(bag, ids))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("embedding_bag" in name for name in names) == (mode == "max" and padding is not None)
    drawn = torch.tensor([[3, 3, 3, 3, 3, 3, 3, 3, 3], [0, 10, 3, 4, 4, 9, 3, 1, 2]])
    with torch.no_grad():
        assert torch.allclose(program.module()(drawn), bag(drawn), atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("is_decomposed", [False, True])
def test_bags_of_an_exported_program_are_captured_as_lookups(mode, padding, is_decomposed):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(11, 4, mode=mode, padding_idx=padding)
    ids = TensorSpec(name="ids", dtype="int64", shape=(2, 9), high=10.0)
    given = torch.export.export(bag, (torch.zeros(ids.shape, dtype=torch.int64),))
    given = given.run_decompositions() if is_decomposed else given
    program = capture(dataclasses.replace(loaded(bag, ids), kind="exported", model=given))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("embedding_bag" in name for name in names) == (mode == "max" and padding is not None)
    drawn = torch.tensor([[3, 3, 3, 3, 3, 3, 3, 3, 3], [0, 10, 3, 4, 4, 9, 3, 1, 2]])
    with torch.no_grad():
        assert torch.allclose(program.module()(drawn), bag(drawn), atol=1e-6)


class LastIsPadding(nn.Module):
    """A padding index that counts from the end of the table, as a functional call may have it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 4))

    def forward(self, ids):
        return nn.functional.embedding_bag(ids, self.table, mode="mean", padding_idx=-1)


def test_a_padding_index_may_count_from_the_end():
    torch.manual_seed(0)
    bag = LastIsPadding()
    program = capture(loaded(bag, TensorSpec(name="ids", dtype="int64", shape=(2, 3), high=10.0)))
    drawn = torch.tensor([[10, 3, 10], [10, 10, 10]])
    with torch.no_grad():
        assert torch.allclose(program.module()(drawn), bag(drawn), atol=1e-6)


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.big, self.small = nn.Embedding(900, 4), nn.Embedding(6, 4)

    def forward(self, ids):
        return self.big(ids[:, 0]) + self.small(ids[:, 1])


def test_the_columns_of_ids_are_drawn_below_their_own_bounds():
    ids = TensorSpec(name="ids", dtype="int64", shape=(1, 2), high=899.0)
    with pytest.raises(UsageError, match="index out of range") as caught:
        run_once(loaded(Tables, ids))
    assert "ids from 0 to 899" in caught.value.fix
    ids = dataclasses.replace(ids, highs=(899.0, 5.0))
    assert run_once(loaded(Tables, ids))[0][0].shape == (1, 4)
    drawn = torch.cat([example_tensors((ids,), seed)[0] for seed in range(50)])
    assert drawn.dtype == torch.int64
    assert drawn[:, 0].max() > 500
    assert set(drawn[:, 1].tolist()) == set(range(6))


class Convolutions(nn.Module):
    """Each kind of convolution, plain and transposed."""

    def __init__(self):
        super().__init__()
        self.line, self.line_up = nn.Conv1d(4, 6, 3, 2, 1), nn.ConvTranspose1d(6, 4, 3, 2, 1, output_padding=1)
        self.plane = nn.Conv2d(4, 4, 3, padding=(1, 0), dilation=2, groups=2)
        self.plane_up = nn.ConvTranspose2d(4, 4, 2, 2, groups=2, bias=False)
        self.space = nn.Conv3d(4, 2, (1, 2, 2))

    def forward(self, x):
        y = self.line_up(self.line(x)).unflatten(2, (8, 8))
        return self.space(self.plane_up(self.plane(y)).unsqueeze(2))


def test_convolutions_of_a_decomposed_program_are_those_that_quantizers_know():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4, 64))
    model = loaded(Convolutions, spec)
    decomposed = torch.export.export(model.model, example_tensors((spec,))).run_decompositions()
    assert sum(node.target is torch.ops.aten.convolution.default for node in decomposed.graph.nodes) == 5
    program = capture(dataclasses.replace(model, kind="exported", model=decomposed))
    names = [str(node.target).split(".")[1] for node in program.graph.nodes if "conv" in str(node.target)]
    assert names == ["conv1d", "conv_transpose1d", "conv2d", "conv_transpose2d", "conv3d"]
    (x,) = example_tensors((spec,), 3)
    torch.testing.assert_close(program.module()(x), model.model(x))


class Writing(nn.Module):
    """A constant that forward writes into before it multiplies by it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("base", torch.eye(4))

    def forward(self, x):
        weight = torch.zeros_like(self.base)
        weight[:2] += x
        return nn.functional.linear(x, weight)


class ScaledTie(nn.Module):
    """A table that is looked up, and multiplied by with another scale."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 4))

    def forward(self, x):
        return nn.functional.linear(x, self.table * 0.5), self.table[x.argmax(1)], x @ self.table.t()


class Query(nn.Module):
    """A learned query that a layer projects, as poolings by attention have it."""

    def __init__(self):
        super().__init__()
        self.query, self.project, self.keys = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, x):
        return self.keys(x) * self.project(self.query.expand(len(x), -1))


class Probe(nn.Module):
    """A learned query that attends to rows, as in SigLIP: the query's weights are a part of those for rows."""

    def __init__(self):
        super().__init__()
        self.query, self.weights = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(12, 4))

    def forward(self, x):
        query, others = self.weights.split([4, 8])
        return nn.functional.linear(x, others) * nn.functional.linear(self.query.repeat(1, 1), query).repeat(1, 2)


class Zeroed(nn.Module):
    """A layer with a part of its bias zeroed, as in Swin V2's attention."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x):
        bias = self.layer.bias.clone()
        bias[2:5].zero_()
        return nn.functional.linear(x, self.layer.weight, bias)


@pytest.mark.parametrize("module", [Query, Probe, Zeroed])
def test_what_a_layer_makes_of_parameters_is_computed_once(module):
    model = loaded(module, FOUR)
    program = capture(model)
    (layer,) = [node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert layer.args[0].target == "x"
    assert {arg.op for arg in layer.args[1:]} == {"placeholder"}
    (x,) = example_tensors((FOUR,), 1)
    torch.testing.assert_close(program.module()(x), model.model(x))


@pytest.mark.parametrize("module", [Writing, ScaledTie])
def test_what_is_written_or_used_otherwise_is_no_constant(module):
    model = loaded(module, FOUR)
    program = capture(model)
    assert not [name for name in program.state_dict if "constant" in name]
    for seed in (1, 2, 3):
        (x,) = example_tensors((FOUR,), seed)
        torch.testing.assert_close(program.module()(x), model.model(x))


class Translator(nn.Module):
    """PyTorch's own transformer with a mask, whose second attention splits its weights and biases."""

    def __init__(self):
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.body(x, x.flip(1), src_mask=mask, tgt_mask=mask)


def test_pytorchs_own_transformer_with_a_mask_is_captured_with_constant_weights_and_biases():
    model = loaded(Translator, spec := TensorSpec(name="x", dtype="float32", shape=(1, 6, 16), low=-1.0))
    program = capture(model)
    x = example_tensors((spec,))[0]
    torch.testing.assert_close(program.module()(x), model.model(x))
    layers = [node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(layers) == 11
    assert {arg.op for node in layers for arg in node.args[1:]} == {"placeholder"}
