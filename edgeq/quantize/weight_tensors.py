"""The int8 weights of a prepared graph whose scales are settled, with the biases and the inputs beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeq.quantize.qparams import layer_weights

IsObserver = Callable[[Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A parameter, by the module that has it."""

    module: Any
    name: str

    @property
    def values(self) -> Any:
        """Its tensor, without gradient."""
        return getattr(self.module, self.name).detach()

    def replace(self, values: Any) -> None:
        """Put another parameter in its place: the tensor itself may be the user's model's."""
        from torch import nn

        setattr(self.module, self.name, nn.Parameter(values, requires_grad=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTensor:
    """A convolution's or linear layer's weight.

    Attributes:
        weight: float32 [out, in / groups, …].
        bias: float32 [out]; None where there is none.
        scale, zero_point: what it will be converted with, [out] or [1].
        low, high: the least and the greatest int8 value.
        input_scale: quantization step of the layer's input; None where it is not known.
    """

    weight: Held
    bias: Held | None
    scale: Any
    zero_point: Any
    low: int
    high: int
    input_scale: float | None

    def along(self, channels: Any) -> Any:
        """Return one value for each channel in a shape that goes with the weight's."""
        return channels.reshape(-1, *(1 for _ in self.weight.values.shape[1:]))


def weight_tensors(prepared: Any, is_observer: IsObserver) -> Iterator[WeightTensor]:
    """Yield the weights with output channels first.

    Args:
        prepared: a calibrated graph (FX, PT2E) or module (eager mode).
        is_observer: tells observers from other modules.
    """
    for weight, bias, observer, source in (*_in_graph(prepared, is_observer), *_in_layers(prepared)):
        if getattr(observer, "ch_axis", 0) != 0:
            continue
        scale, zero_point = observer.calculate_qparams()
        own = _observer_of(prepared, source, is_observer)
        yield WeightTensor(
            weight=weight,
            bias=bias,
            scale=scale,
            zero_point=zero_point,
            low=observer.quant_min,
            high=observer.quant_max,
            input_scale=float(own.calculate_qparams()[0]) if own is not None else None,
        )


_Found = tuple[Held, Held | None, Any, Any]  # weight, bias, the weight's observer, the node of the layer's input


def _in_graph(prepared: Any, is_observer: IsObserver) -> Iterator[_Found]:
    """Yield weights that are nodes of a graph, with observers of their own (PT2E)."""
    for node in _nodes(prepared):
        observer = _observer_of(prepared, node, is_observer)
        if observer is None or node.args[0].op != "get_attr":
            continue
        for user in node.users:
            if len(user.args) > 1 and user.args[1] is node:
                bias = _bias(prepared, user, is_observer)
                yield _held(prepared, node.args[0]), bias, observer, user.args[0]


def _bias(prepared: Any, layer: Any, is_observer: IsObserver) -> Held | None:
    node = layer.args[2] if len(layer.args) > 2 else None
    source = node.args[0] if node is not None and _observer_of(prepared, node, is_observer) is not None else node
    return _held(prepared, source) if getattr(source, "op", None) == "get_attr" else None


def _in_layers(prepared: Any) -> Iterator[_Found]:
    """Yield weights of modules, which are observed as they are converted (FX, eager mode)."""
    inputs = {str(node.target): node.args[0] for node in _nodes(prepared) if node.op == "call_module"}
    for name, _, inner, observer in layer_weights(prepared):
        bias = None if inner.bias is None else Held(module=inner, name="bias")
        yield Held(module=inner, name="weight"), bias, observer, inputs.get(name)


def _nodes(prepared: Any) -> tuple[Any, ...]:
    graph = getattr(prepared, "graph", None)
    return () if graph is None else tuple(graph.nodes)


def _observer_of(prepared: Any, node: Any, is_observer: IsObserver) -> Any:
    """Return the observer that a node calls; None if it calls none."""
    if getattr(node, "op", None) != "call_module":
        return None
    part = prepared.get_submodule(str(node.target))
    return part if is_observer(part) else None


def _held(prepared: Any, node: Any) -> Held:
    place, _, name = str(node.target).rpartition(".")
    return Held(module=prepared.get_submodule(place), name=name)
