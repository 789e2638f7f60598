"""Models that torch.fx cannot trace, and torch.export can."""

from __future__ import annotations

import warnings

import pytest
import torch
from scheme_models import Steps
from small_models import Silent, loaded, lowered, outputs_of, quantized
from torch import nn

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.load.inputs import parse_inputs
from edgeq.quantize.fx_export import exported_graph
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


class Upward(nn.Module):
    """Transposed convolutions of each setting, of maps that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2, bias=False)
        self.more = nn.ConvTranspose2d(12, 4, (3, 2), (2, 1), (1, 0), (1, 0), dilation=(1, 2))

    def forward(self, x):
        y = self.down(x)
        y[:, 0] = 0
        return self.more(self.up(y).relu())


@pytest.mark.parametrize(("backend", "quantizable"), [("qnnpack", {"down", "up", "more"}), ("x86", {"down"})])
def test_transposed_convolutions_are_layers_by_their_names(tmp_path, backend, quantizable):
    model = loaded(Upward, IMAGE)
    result = quantized(model, backend=backend)
    assert {*result.quantized} == quantizable
    low = lowered(result, model.inputs, tmp_path, backend=backend)
    assert [layer.name for layer in low.layers] == ["down", "up", "more"]
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, backend), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > 20


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


class Encoder(nn.Module):
    """Words with padding, which PyTorch's encoder leaves out by a mask that the model computes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(1))


class Causal(nn.Module):
    """Attention that sees the words before, and one whose added rows keep it whole."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.first = nn.MultiheadAttention(16, 2, batch_first=True)
        self.second = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)

    def forward(self, tokens):
        x = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = self.first(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.second(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (Encoder, {f"encoder.layers.0.{name}" for name in ("linear1", "linear2", "self_attn.out_proj")} | {"head"}),
        (Causal, {"first.linear_q", "first.out_proj", "second.out_proj"}),
    ],
)
def test_pytorchs_own_attention_is_quantized_although_fx_calls_it_as_a_whole(tmp_path, kind, layers, backend):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(kind, spec)
    result = quantized(model, backend=backend)
    assert layers <= set(result.quantized)
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, backend), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > 15
    assert lowered(result, model.inputs, tmp_path, backend=backend).layers


class Memory(nn.Module):
    """A recurrent layer in a model that FX cannot trace, with the state that it ends in."""

    def __init__(self, memory):
        super().__init__()
        self.memory, self.head = memory, nn.LazyLinear(4)

    def forward(self, x):
        batch, length, *_ = x.shape
        y, state = self.memory(x)
        last = state[1] if isinstance(state, tuple) else state
        return self.head(y.reshape(batch, length, -1)), last


@pytest.mark.parametrize(
    "memory",
    [
        nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True),
        nn.LSTM(8, 6, proj_size=3, batch_first=True, bias=False),
        nn.GRU(8, 6),
        nn.RNN(8, 6, nonlinearity="relu", batch_first=True),
    ],
    ids=["lstm", "projected", "gru", "rnn"],
)
def test_recurrent_layers_stay_modules_in_float_by_plan(memory):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 5, 8), low=-1.0)
    net = Memory(memory)
    net(torch.zeros(1, 5, 8))
    model = loaded(net, spec)
    result = quantized(model)
    assert list(result.quantized) == ["head"], "although FX puts no observer behind a reshape of such a layer"
    assert "memory" in {name for names in result.in_float.values() for name in names}
    for got, want in zip(
        outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4), strict=True
    ):
        assert torch.allclose(torch.as_tensor(got[1]), torch.as_tensor(want[1]), atol=0.02)


class Sized(nn.Module):
    """Cuts, expands, counts and fills by a size of its input."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(32, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        batch, steps, width = x.shape
        x = self.linear(x + self.places[:steps])
        x = x.view(batch, steps, 2, width // 2).transpose(1, 2).reshape(batch, 2 * steps, -1)
        order = torch.arange(2 * steps).view(1, -1, 1).expand(batch, 2 * steps, 4)
        return x * order + torch.ones(batch, 2 * steps, 4)


def test_a_trace_of_the_exported_graph_follows_sizes_that_vary():
    module = Sized().eval()
    graph = exported_graph(module, parse_inputs(["x=1x{steps=4..32}x8"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph, torch.randn(1, 32, 8), check_trace=False)
    for steps in (4, 17, 32):
        x = torch.randn(1, steps, 8)
        torch.testing.assert_close(graph(x), module(x))
        torch.testing.assert_close(traced(x), module(x))


class Query(nn.Module):
    """A learned query, and a linear layer whose bias forward clears in part, as torchvision's Swin V2 does."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 16))
        self.qkv, self.pool = nn.Linear(16, 16), nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        bias = self.qkv.bias.clone()
        bias[4:8].zero_()
        x = nn.functional.linear(x, self.qkv.weight, bias)
        return self.pool(self.query.expand(x.shape[0], -1, -1), x, x, need_weights=False)[0]


@pytest.mark.parametrize("scheme", ["static-int8", "dynamic-int8"])
def test_what_comes_of_parameters_alone_is_a_constant(scheme):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 5, 16), low=-1.0)
    model = loaded(Query, spec)
    result = quantized(model, scheme=scheme)
    assert set(result.quantized) == {"qkv", "pool.linear_k", "pool.linear_v", "pool.out_proj"}
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > 20


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0] if x.sum() > 0 else x


def test_attention_that_cannot_be_captured_is_refused_with_its_line():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 5, 16))
    with pytest.raises(UnsupportedError, match=r"torch.export cannot capture .* at .*test_fx_export\.py:\d+") as caught:
        quantized(loaded(Deciding, spec))
    assert "FX cannot trace" not in caught.value.what


def test_the_tables_of_lookups_are_modules_that_schemes_store():
    class Words(nn.Module):
        """A table that is read twice, one that is tied to a head, and one of constant rows."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.twice, self.tied, self.places = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Embedding(3, 4)
            self.register_buffer("index", torch.arange(3))

        def forward(self, tokens):
            x = self.twice(tokens) + self.twice(tokens.flip(1)) + self.tied(tokens) + self.places(self.index)
            return nn.functional.linear(x, self.tied.weight)

    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 3), low=0, high=8)
    module = Words().eval()
    graph = exported_graph(module, [spec])
    tables = {name: part for name, part in graph.named_modules() if isinstance(part, nn.Embedding)}
    assert sorted(tables) == ["tied_embedding_2", "twice"]
    tokens = torch.tensor([[1, 8, 5]])
    assert torch.equal(graph(tokens), module(tokens))


def test_bags_of_embeddings_become_layers_whose_tables_can_be_stored():
    torch.manual_seed(0)
    bag = nn.Sequential(nn.EmbeddingBag(50, 8, mode="mean"), nn.Linear(8, 4)).eval()
    ids = TensorSpec(name="ids", dtype="int64", shape=(2, 6), high=49.0)
    drawn = torch.randint(0, 50, ids.shape)
    program = torch.export.export(bag, (drawn,))
    graph = exported_graph(program.module(), (ids,))
    assert [type(part).__name__ for part in graph.modules() if isinstance(part, nn.Embedding)] == ["Embedding"]
    with torch.no_grad():
        assert torch.allclose(graph(drawn), bag(drawn), atol=1e-6)


def test_the_cells_of_an_exported_program_are_layers_beside_each_other():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4, 16))
    net = Steps(nn.GRUCell).eval()
    program = torch.export.export(net, (torch.randn(1, 4, 16),))
    graph = exported_graph(program.module(), [spec])
    x = torch.randn(1, 4, 16)
    torch.testing.assert_close(graph(x), net(x))
    layers = [part for part in graph.modules() if type(part) is nn.Linear]
    assert len(layers) == 4 + 3 + 1  # of inputs, of states but the first, the head's
