"""Per-layer SQNR of a quantized graph: a few samples through it and through the float graph that it was made from.

The float values are taken from the prepared graph, whose observers are passed over, so that batch norm is folded on
both sides and a node has one name. They are taken before the graph is converted, since that changes it in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeq.core.results.model import LayerSqnr, LayerSqnrs, TensorSpec
from edgeq.core.samples import Batch, Dataset, batch_size, batches, evenly

# a batch of resnet18 or mobilenet_v2 (224 x 224) costs about 0.2 s of CPU, through three graphs: of large
# models one is run, of small ones several
_MOST_BATCHES = 16

_SMALL_ELEMENTS = 4 * 10**6  # of weights and layers' outputs in all batches, up to which one more is run

# what XNNPACK's and FX's quantizers fuse into the layer before it: the sum is rounded once, after it
_FUSED = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_"})

NameOf = Callable[[Any, Node], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRun:
    """What the float graph's layers gave.

    Attributes:
        names: the layer's name of each node, in the order of execution.
        merged: of nodes that conversion may merge into the one before them, that one.
        batches: what was run.
        values: for each batch, the output of each of these nodes.
        samples: how many real samples the batches hold.
    """

    names: Mapping[str, str]
    merged: Mapping[str, str]
    batches: tuple[Batch, ...]
    values: tuple[Mapping[str, torch.Tensor], ...]
    samples: int

    def against(self, converted: GraphModule) -> LayerSqnrs | None:
        """Return the SQNR of each layer of the quantized graph; None where the graph has no layer.

        Args:
            converted: the quantized graph, whose nodes have kept their names.
        """
        whole: dict[str, _Power] = {}
        own: dict[str, _Power] = {}
        weights: dict[str, torch.Tensor] = {}
        left = {node.name for node in converted.graph.nodes}
        place = {node: node if node in left else self.merged.get(node, node) for node in self.names}
        for batch, values in zip(self.batches, self.values, strict=True):
            exact = {place[node]: value for node, value in values.items()}
            for sums, reset in ((whole, False), (own, True)):
                _Compared(converted, exact, sums, weights, reset=reset).run(*_tensors(batch))
        layers = tuple(
            LayerSqnr(layer=name, sqnr_db=whole[place[node]].sqnr_db, own_db=own[place[node]].sqnr_db)
            for node, name in self.names.items()
            if place[node] in whole
        )
        return LayerSqnrs(samples=self.samples, layers=layers) if layers else None


def float_run(
    prepared: GraphModule,
    samples: Dataset,
    specs: Sequence[TensorSpec],
    *,
    is_observer: Callable[[Any], bool],
    name_of: NameOf,
    clamps: Mapping[str, str] | None = None,
) -> FloatRun:
    """Run a few samples through a prepared graph as if it had no observers; it is not changed.

    Args:
        prepared: the graph before it is converted.
        samples: calibration data; a few batches of it are run, from its beginning on.
        specs: the model's inputs.
        is_observer: tells its observers from other modules.
        name_of: the name of a node that is a layer, else None.
        clamps: the clamp's node behind a layer's, whose range the layer is rounded to.
    """
    clamps = clamps or {}
    names = {node: name for node in prepared.graph.nodes if (name := name_of(prepared, node)) is not None}
    ends = {clamps.get(node.name) or _end(node, prepared, is_observer).name: name for node, name in names.items()}
    size = batch_size(samples, specs) or 1
    weights = sum(parameter.numel() for parameter in prepared.parameters())
    run: list[Batch] = []
    values: list[Mapping[str, torch.Tensor]] = []
    elements = 0
    for batch in batches(evenly(samples, _MOST_BATCHES * size), specs):
        if elements > _SMALL_ELEMENTS:
            break
        recorder = _Float(prepared, frozenset(ends), is_observer)
        recorder.run(*_tensors(batch))
        elements += weights + sum(value.numel() for value in recorder.values.values())
        run.append(batch)
        values.append(recorder.values)
    return FloatRun(
        names=ends,
        merged={clamp: layer for layer, clamp in clamps.items()},
        batches=tuple(run),
        values=tuple(values),
        samples=sum(batch.rows for batch in run),
    )


@dataclass(slots=True)
class _Power:
    """Sums of squares of a signal and of what differs from it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: torch.Tensor, came: torch.Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.noise += float((exact.double() - came.double()).square().sum())

    @property
    def sqnr_db(self) -> float:
        if not math.isfinite(self.signal + self.noise):
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class _Float(Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph without its observers, and keeps what the layers give."""

    def __init__(self, graph: GraphModule, wanted: frozenset[str], is_observer: Callable[[Any], bool]) -> None:
        super().__init__(graph)
        self.values: dict[str, torch.Tensor] = {}
        self._wanted, self._is_observer = wanted, is_observer

    def run(self, *args: Any) -> Any:
        """Run without gradients."""
        with torch.no_grad():
            return super().run(*args)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pass over observers: to see a calibration sample twice would change the ranges."""
        if self._is_observer(self.fetch_attr(target)):
            return args[0]
        return super().call_module(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        """Keep a layer's output, as a copy: what follows may work in place."""
        value = super().run_node(n)
        if n.name in self._wanted:
            self.values[n.name] = value.detach().clone()
        return value


class _Compared(Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a quantized graph and adds up how far its layers are from the float ones.

    Args:
        graph: the quantized graph.
        exact: the float outputs, by node.
        sums: added to.
        weights: what is computed from weights alone, by node; filled by the first run, for the next ones.
        reset: whether each layer's output is put back to the float one once it was compared.
    """

    def __init__(
        self,
        graph: GraphModule,
        exact: Mapping[str, torch.Tensor],
        sums: dict[str, _Power],
        weights: dict[str, torch.Tensor],
        *,
        reset: bool,
    ) -> None:
        super().__init__(graph)
        self._exact, self._sums, self._weights, self._reset = exact, sums, weights, reset

    def run(self, *args: Any) -> Any:
        """Run without gradients."""
        with torch.no_grad():
            return super().run(*args)

    def run_node(self, n: Node) -> Any:
        """Compare a layer's output, rounded as the next layer gets it."""
        if "dequantize" in str(n.target) and all(source.op == "get_attr" for source in n.all_input_nodes):
            # an int8 weight turned into float: the same in every run
            if n.name not in self._weights:
                self._weights[n.name] = super().run_node(n)
            return self._weights[n.name]
        value = super().run_node(n)
        exact = self._exact.get(n.name)
        if exact is None:
            return value
        self._sums.setdefault(n.name, _Power()).add(exact, self._rounded(n, value))
        return _like(value, exact) if self._reset else value

    def _rounded(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """Return a layer's output in float, after the quantize node that reads it where it has one."""
        if value.is_quantized:
            return value.dequantize()
        rounding = next((user for user in node.users if _is_rounding(user)), None)
        if rounding is None:
            return value
        scale, zero_point, *rest = (self._constant(argument) for argument in rounding.args[1:])
        if len(rest) == 1:  # FX's: the dtype
            return torch.quantize_per_tensor(value, float(scale), int(zero_point), rest[0]).dequantize()
        low, high, _ = rest  # PT2E's
        steps = (value / scale).round() + zero_point
        return (steps.clamp(low, high) - zero_point) * scale

    def _constant(self, argument: Any) -> Any:
        return self.fetch_attr(str(argument.target)) if isinstance(argument, Node) else argument


def _is_rounding(node: Node) -> bool:
    return "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target)


def _like(value: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return the float output in the form that the graph goes on with, its memory format too: kernels depend on it."""
    made = exact.clone()
    if value.is_quantized:
        made = torch.quantize_per_tensor(exact, value.q_scale(), value.q_zero_point(), value.dtype)
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return made.contiguous(memory_format=torch.channels_last)
    return made.contiguous()


def _end(node: Node, graph: GraphModule, is_observer: Callable[[Any], bool]) -> Node:
    """Return the node whose output is rounded: the layer itself, or the relu that is fused with it."""
    users = list(node.users)
    if len(users) != 1 or users[0].op == "output" or _observes(users[0], graph, is_observer):
        return node
    name = str(getattr(users[0].target, "__name__", "")).partition(".")[0]
    return users[0] if users[0].op == "call_function" and name in _FUSED else node


def _observes(node: Node, graph: GraphModule, is_observer: Callable[[Any], bool]) -> bool:
    return node.op == "call_module" and is_observer(graph.get_submodule(str(node.target)))


def _tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
