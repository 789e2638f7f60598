"""Products with a parameter become linear layers of the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import Silent, loaded, outputs_of, quantized
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

from edgeq.core.results.model import BATCHED, EXACT, TensorSpec
from edgeq.quantize.fx_export import exported_graph, products_of
from edgeq.quantize.products import PRODUCT, WHY_IN_FLOAT, multiplies_constants, write_as_linear
from edgeq.verify.metrics import Comparison

_SHAPE = (1, 5, 8)


class _Net(nn.Module):
    """Multiplies an input [1, 5, 8] by what it holds."""

    def __init__(self, product: Callable[[Any, Any], Any], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.product = product
        self.w = nn.Parameter(torch.randn(*shape))
        self.b = nn.Parameter(torch.randn(shape[-1]))
        self.register_buffer("v", torch.randn(*shape))

    def forward(self, x: Any) -> Any:
        return self.product(self, x)


_LINEAR = {
    "matmul": (lambda net, x: x @ net.w, (8, 6)),
    "bias": (lambda net, x: x @ net.w + net.b, (8, 6)),
    "transposed": (lambda net, x: torch.matmul(x, net.w.t()), (6, 8)),
    "addmm": (lambda net, x: torch.addmm(net.b, x.view(-1, 8), net.w).view(1, 5, 6), (8, 6)),
    "mm": (lambda net, x: torch.mm(x[0], net.w), (8, 6)),
    "baddbmm": (lambda net, x: torch.baddbmm(net.b, x, net.w), (1, 8, 6)),
    "bmm": (lambda net, x: torch.bmm(x, net.w), (1, 8, 6)),
    "heads": (lambda net, x: torch.einsum("btd,dhk->bhtk", x, net.w), (8, 2, 3)),
    "einsum": (lambda net, x: torch.einsum("bd,od->bo", x[0], net.w), (6, 8)),
    "joined": (lambda net, x: torch.einsum("bhk,khd->bd", x.view(5, 2, 4), net.w), (4, 2, 6)),
    "implicit": (lambda net, x: torch.einsum("td,do", x[0], net.w), (8, 6)),
    "ellipsis": (lambda net, x: torch.einsum("...d,dk->...k", x, net.w), (8, 6)),
    "named": (lambda net, x: torch.matmul(input=x, other=net.w), (8, 6)),
    "computed": (lambda net, x: x @ (net.w * 2), (8, 6)),
    "tensordot": (lambda net, x: torch.tensordot(x, net.w, ([2], [1])), (6, 8)),
    "left": (lambda net, x: net.w @ x, (6, 5)),
    "square_left": (lambda net, x: torch.addmm(net.b, net.w, x[0, :, :5]), (5, 5)),
    "spread": (lambda net, x: x.unsqueeze(1) @ net.w, (3, 8, 6)),
    "buffer": (lambda net, x: x @ net.v, (8, 6)),
    "tied": (lambda net, x: (x @ net.w).relu() @ net.w, (8, 8)),
}


def _program(net: Any, x: Any) -> Any:
    return torch.export.export(net.eval(), (x,)).module()


@pytest.mark.parametrize("kind", _LINEAR)
def test_a_product_with_a_parameter_is_the_linear_layer_of_the_same_values(kind: str) -> None:
    product, shape = _LINEAR[kind]
    x = torch.randn(_SHAPE)
    net = _Net(product, *shape)
    graph = _program(net, x)
    write_as_linear(graph)
    layers = [node for node in graph.graph.nodes if PRODUCT in node.meta]
    assert {node.meta[PRODUCT] for node in layers} == {"v" if kind == "buffer" else "w"}
    assert len(layers) == (2 if kind == "tied" else 1)
    assert not any(name in str(node.target) for node in graph.graph.nodes for name in ("mm", "matmul", "einsum"))
    if kind in ("bias", "addmm", "baddbmm"):
        assert len(layers[0].args) == 3
    torch.testing.assert_close(graph(x), net(x))


def _overwritten(net: Any, x: Any) -> Any:
    net.v[0] = x[0, 0]
    return x @ net.v


def _sampled(net: Any, x: Any) -> Any:
    grid = torch.tanh(x[..., :2] @ net.w).unsqueeze(1)
    return nn.functional.grid_sample(x[:, None], grid, align_corners=False)


# what int8 would make noise of, and what is no layer of constant weights; the reasons
_NO_LINEAR = {
    "angles": (lambda net, x: torch.cat([(x @ net.w).sin(), (2 * (x @ net.w)).cos()]), (8, 6), {EXACT}),
    "rotary": (lambda net, x: (x[..., :1] @ net.w).cos(), (1, 6), {""}),
    "positions": (_sampled, (2, 2), {EXACT}),
    "softmax": (lambda net, x: torch.softmax(x.repeat(1, 1, 8), -1).flatten(1, 2) @ net.w, (320, 6), {EXACT}),
    "outer": (lambda net, x: x[..., :1] @ net.w, (1, 6), {""}),
    "diagonal": (lambda net, x: torch.einsum("bdd,dk->bk", x[..., :5], net.w), (5, 6), set()),
    "summed": (lambda net, x: torch.einsum("btd,dk->bk", x, net.w), (8, 6), {""}),
    "scaled": (lambda net, x: torch.addmm(net.b, x[0], net.w, alpha=2), (8, 6), set()),
    "half": (lambda net, x: (x.half() @ net.w.half()).float(), (8, 6), set()),
    "overwritten": (_overwritten, (8, 8), set()),
}


@pytest.mark.parametrize("kind", _NO_LINEAR)
def test_other_products_stay_what_they_are(kind: str) -> None:
    product, shape, reasons = _NO_LINEAR[kind]
    net, x = _Net(product, *shape), torch.randn(_SHAPE)
    graph = _program(net, x)
    write_as_linear(graph)
    assert not any(PRODUCT in node.meta for node in graph.graph.nodes)
    assert {node.meta[WHY_IN_FLOAT] for node in graph.graph.nodes if WHY_IN_FLOAT in node.meta} == reasons
    torch.testing.assert_close(graph(x), net(x))


def test_constants_are_found_in_deep_graphs() -> None:
    def deep(net: Any, x: Any) -> Any:
        for _ in range(40):
            x = x + torch.tanh(x)
        return x @ net.w

    net, x = _Net(deep, 8, 8), torch.randn(_SHAPE)
    graph = _program(net, x)
    write_as_linear(graph)
    assert any(PRODUCT in node.meta for node in graph.graph.nodes)


def test_a_batch_of_constants_stays_and_is_marked() -> None:
    net, x = _Net(lambda net, x: torch.einsum("bhk,hkd->bhd", x.view(5, 2, 4), net.w), 2, 4, 6), torch.randn(_SHAPE)
    graph = _program(net, x)
    write_as_linear(graph)
    (product,) = (node for node in graph.graph.nodes if node.meta.get(WHY_IN_FLOAT) == BATCHED)
    assert str(product.target) == "aten.einsum.default"
    torch.testing.assert_close(graph(x), net(x))


@pytest.mark.parametrize("kind", ["bias", "heads", "transposed", "tied", "buffer"])
def test_fx_gets_modules_named_after_the_parameters(kind: str) -> None:
    product, shape = _LINEAR[kind]
    x, net = torch.randn(_SHAPE), _Net(product, *shape).eval()
    graph = exported_graph(net, (TensorSpec(name="x", dtype="float32", shape=_SHAPE),))
    layers = products_of(graph).layers
    assert set(layers.values()) == {"v" if kind == "buffer" else "w"}
    assert all(isinstance(graph.get_submodule(name), nn.Linear) for name in layers)
    assert kind == "tied" or [*layers] == [*layers.values()]
    torch.testing.assert_close(graph(x), net(x))


def test_a_model_of_layers_alone_is_not_exported() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    assert not multiplies_constants(net, (torch.randn(_SHAPE),))


class _Multiplied(nn.Module):
    """linear, relu, a product [16, 16], linear: by a parameter, by a batch of four, or in its twin by a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        values = torch.randn(16, 16) / 4
        if kind == "layer":
            self.w = nn.Linear(16, 16, bias=False)
            self.w.weight = nn.Parameter(values.t().contiguous())
        else:
            self.w = nn.Parameter(values.expand(4, 16, 16).clone() if kind == "batch" else values)
        self.kind = kind

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x))
        if self.kind == "batch":
            return self.last(torch.bmm(x.expand(4, -1, -1), self.w).mean(0))
        return self.last(self.w(x) if self.kind == "layer" else x @ self.w)


class _Angles(_Multiplied):
    """As `_Multiplied`, with the sines of what its product gives."""

    def forward(self, x: Any) -> Any:
        return self.last(torch.sin(torch.relu(self.first(x)) @ self.w))


_ROUTES = {"xnnpack": "executorch", "qnnpack": "torchscript", "x86": "torchscript"}


def _multiplied(kind: str) -> Any:
    torch.manual_seed(0)
    return loaded(_Multiplied(kind), TensorSpec(name="x", dtype="float32", shape=_SHAPE))


def _sqnr_db(model: Any, result: Any, backend: str) -> float:
    sums = Comparison()
    engine = backend if _ROUTES[backend] == "torchscript" else None
    ours = outputs_of(result.graph, model.inputs, 8, engine)
    for measured, expected in zip(ours, outputs_of(model.model, model.inputs, 8), strict=True):
        sums.add(expected, measured)
    return sums.sqnr_db


@pytest.mark.parametrize("backend", ["xnnpack", "qnnpack"])
def test_a_product_in_static_int8_is_as_near_as_its_layer(backend: str) -> None:
    sqnrs = {}
    for kind in ("parameter", "layer"):
        model = _multiplied(kind)
        result = quantized(model, _ROUTES[backend], backend=backend)
        assert {"first", "w", "last"} == set(result.quantized)
        sqnrs[kind] = _sqnr_db(model, result, backend)
    assert sqnrs["parameter"] > 20
    assert sqnrs["parameter"] == pytest.approx(sqnrs["layer"], abs=1)
    kept = quantized(_multiplied("parameter"), _ROUTES[backend], backend=backend, keep=("w",))
    assert (set(kept.quantized), set(kept.kept_fp32)) == ({"first", "last"}, {"w"})


@pytest.mark.parametrize("backend", ["xnnpack", "x86"])
def test_a_product_in_dynamic_int8(backend: str) -> None:
    result = quantized(_multiplied("parameter"), _ROUTES[backend], "dynamic-int8", backend=backend)
    assert set(result.quantized) == {"first", "w", "last"}
    kept = quantized(_multiplied("parameter"), _ROUTES[backend], "dynamic-int8", backend=backend, keep=("w",))
    assert (set(kept.quantized), set(kept.kept_fp32)) == ({"first", "last"}, {"w"})


@pytest.mark.parametrize("backend", ["xnnpack", "qnnpack"])
def test_angles_stay_in_float_for_a_reason(backend: str) -> None:
    model = _multiplied("parameter")
    model.model.__class__ = _Angles
    result = quantized(model, _ROUTES[backend], backend=backend)
    assert set(result.quantized) == {"first", "last"}
    assert result.in_float[EXACT]


@pytest.mark.parametrize("backend", ["xnnpack", "qnnpack"])
def test_a_batch_of_constants_stays_in_float_for_a_reason(backend: str) -> None:
    result = quantized(_multiplied("batch"), _ROUTES[backend], backend=backend)
    assert set(result.quantized) == {"first", "last"}
    assert result.in_float[BATCHED]


class _Shared(nn.Module):
    """A product, a layer that is called twice, and a table that a layer is tied to."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.twice, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        self.head.weight, self.w = self.words.weight, nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.twice(torch.relu(self.twice(self.words(tokens) @ self.w))))


@pytest.mark.parametrize("scheme", ["static-int8", "dynamic-int8"])
def test_layers_beside_products_stay_in_float_by_their_own_names(scheme: str) -> None:
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    result = quantized(loaded(_Shared, tokens), scheme=scheme, keep=("twice", "words"))
    assert set(result.quantized) == {"w", "head"}
    assert len(result.kept_fp32) == (2 if scheme == "static-int8" else 3)


class _Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("scheme", "place", "name"),
    [
        ("static-int8", quantize_fx, "prepare_fx"),
        ("dynamic-int8", quantization, "quantize_dynamic"),
    ],
)
def test_a_model_whose_graph_with_layers_fails_does_without_and_says_so(
    monkeypatch: Any, scheme: str, place: Any, name: str
) -> None:
    original, notes = getattr(place, name), _Notes()

    def failing(module: Any, *args: Any, **kwargs: Any) -> Any:
        if products_of(module).layers:
            raise RuntimeError("no such pattern")
        return original(module, *args, **kwargs)

    monkeypatch.setattr(place, name, failing)
    result = quantized(_multiplied("parameter"), scheme=scheme, progress=notes)
    assert set(result.quantized) == {"first", "last"}
    (said,) = (text for text in notes.said if "no such pattern" in text)
    assert said.startswith("products with parameters stay in float")


class _Branching(_Multiplied):
    """Takes a branch by its input, which a trace of dynamic int8 alone follows."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) if float(x.sum()) < 1e9 else x


def test_dynamic_int8_does_without_a_graph_that_nothing_exports() -> None:
    model, notes = _multiplied("parameter"), _Notes()
    model.model.__class__ = _Branching
    result = quantized(model, scheme="dynamic-int8", progress=notes)
    assert set(result.quantized) == {"first", "last"}
    assert any(said.startswith("products with parameters stay in float") for said in notes.said)


def test_a_product_with_a_table_stays_with_the_table() -> None:
    tied = _Net(lambda own, x: own.table(x[..., 0].abs().long()) @ own.table.weight.t(), 8, 8)
    tied.table = nn.Embedding(8, 8)
    assert not multiplies_constants(tied.eval(), (torch.randn(_SHAPE),))


class Adapted(nn.Module):
    """Products with parameters one behind another, as in a low-rank adapter: rows [N, 4, 16] to [N, 4, 8]."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(16, 4) / 4), nn.Parameter(torch.randn(4, 16) / 2)
        self.shift, self.head = nn.Parameter(torch.randn(4)), nn.Linear(16, 8)

    def forward(self, x):
        return self.head(torch.relu((x @ self.down + self.shift) @ self.up * 2.5 + x))


def test_products_one_behind_another_are_layers_all():
    spec = TensorSpec(name="x", dtype="float32", shape=(2, 4, 16))
    model = loaded(Adapted(), spec)
    for runtime, backend in (("torchscript", "x86"), ("executorch", "xnnpack")):
        made = quantized(model, runtime, backend=backend)
        assert {"down", "up", "head"} <= set(made.quantized), made.quantized
        kept = quantized(model, runtime, backend=backend, keep=["up"])
        assert "up" not in kept.quantized
        assert {"down", "head"} <= set(kept.quantized)
