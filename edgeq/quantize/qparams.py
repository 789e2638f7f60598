"""Scales and zero points of a prepared graph, and taking over those of a shipped model where they still fit.

A weight that was fine-tuned a little has another largest value, hence another scale, hence other bytes all over: with
the shipped scale, only the values that crossed a rounding step differ, and a patch is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.core.errors import UsageError
from edgeq.core.results.model import QParams

# a shipped range may fall short of the new one by this share of its width, at either end
CLIPPED = 0.02

# a shipped step may be this many times as coarse as the new one, which costs at most 20 log10(1.25) = 1.9 dB
COARSEST = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a graph will be converted with.

    Attributes:
        qparams: of every int8 tensor, in the graph's order.
        fresh: names of the tensors that have a range of their own, in a channel at least, though there is a shipped
            one: it would clip, or be too coarse.
    """

    qparams: tuple[QParams, ...]
    fresh: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """An int8 tensor of a prepared graph.

    Attributes:
        shape: of a weight; () for an activation, whose shape is the samples'.
        pin: makes the conversion use these scales and zero points.
    """

    name: str
    shape: tuple[int, ...]
    observer: Any
    pin: Callable[[Any, Any], None]


def settle(
    prepared: Any, shipped: Sequence[QParams], is_observer: Callable[[Any], bool], *, clipped: float = CLIPPED
) -> Settled:
    """Return the scales and zero points that a calibrated graph is to have, and let it convert with them.

    Args:
        prepared: a calibrated graph (FX, PT2E) or module (eager mode); changed in place.
        shipped: those of the shipped model; none to leave all as they are.
        is_observer: tells observers from other modules.
        clipped: by which share of its width a shipped range of activations may fall short; of weights it is CLIPPED.

    Raises:
        UsageError: the shipped model has other tensors.
    """
    tensors = list(_tensors(prepared, is_observer))
    known = _matched(tensors, shipped) if shipped else {}
    settled, fresh = [], []
    pinned: dict[int, tuple[Any, Any]] = {}  # two tensors may share an observer: the first decides
    for tensor in tensors:
        scale, zero_point = pinned.get(id(tensor.observer)) or tensor.observer.calculate_qparams()
        if tensor.name in known and id(tensor.observer) not in pinned:
            scale, zero_point, whole = _chosen(
                tensor.observer, scale, zero_point, known[tensor.name], CLIPPED if tensor.shape else clipped
            )
            tensor.pin(scale, zero_point)
            if not whole:
                fresh.append(tensor.name)
        pinned[id(tensor.observer)] = (scale, zero_point)
        settled.append(
            QParams(
                name=tensor.name,
                shape=tensor.shape,
                scales=tuple(float(one) for one in scale.reshape(-1)),
                zero_points=tuple(int(one) for one in zero_point.reshape(-1)),
            )
        )
    return Settled(qparams=tuple(settled), fresh=tuple(fresh))


def _chosen(observer: Any, scale: Any, zero_point: Any, shipped: QParams, clipped: float) -> tuple[Any, Any, bool]:
    """Return the shipped values where they fit, channel by channel, else the new ones; and whether all fit."""
    import torch

    old_scale = torch.tensor(shipped.scales, dtype=scale.dtype).reshape(scale.shape)
    old_zero = torch.tensor(shipped.zero_points, dtype=zero_point.dtype).reshape(zero_point.shape)
    low, high = ((end - zero_point) * scale for end in (observer.quant_min, observer.quant_max))
    old_low, old_high = ((end - old_zero) * old_scale for end in (observer.quant_min, observer.quant_max))
    slack = clipped * (high - low)
    fits = (old_low <= low + slack) & (old_high >= high - slack) & (old_scale <= COARSEST * scale)
    return torch.where(fits, old_scale, scale), torch.where(fits, old_zero, zero_point), bool(fits.all())


def _matched(tensors: Sequence[_Tensor], shipped: Sequence[QParams]) -> dict[str, QParams]:
    known = {one.name: one for one in shipped}
    here = {tensor.name: tensor for tensor in tensors}
    fix = "give a bundle of the same model, scheme and --keep-fp32, or omit --reuse-qparams-from"
    if missing := sorted(known.keys() ^ here.keys()):
        side = "has no" if missing[0] in here else "has an"
        what = f"the shipped model differs from this one: it {side} int8 tensor {missing[0]}"
        raise UsageError(f"{what} ({len(missing)} of {len(known | here)} tensors are in only one of the models)", fix)
    for name, tensor in here.items():
        old, count = known[name], tensor.observer.calculate_qparams()[0].numel()
        if old.shape != tensor.shape or len(old.scales) != count:
            came = f"{list(old.shape)} in {len(old.scales)} channels"
            what = (
                f"the shipped model differs from this one: its {name} is {came}, here it is "
                f"{list(tensor.shape)} in {count}"
            )
            raise UsageError(what, fix)
    return known


def _tensors(prepared: Any, is_observer: Callable[[Any], bool]) -> Iterator[_Tensor]:
    names: dict[str, int] = {}
    for name, shape, observer, pin in (*_observed(prepared, is_observer), *_layer_tensors(prepared)):
        if not _is_int8(observer):
            continue
        names[name] = names.get(name, 0) + 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        yield _Tensor(name=unique, shape=shape, observer=observer, pin=pin)


_Found = tuple[str, tuple[int, ...], Any, Callable[[Any, Any], None]]


def _observed(prepared: Any, is_observer: Callable[[Any], bool]) -> Iterator[_Found]:
    """Yield the observers of the graph, by what they observe; in eager mode by the module that they belong to."""
    from torch import nn

    graph = getattr(prepared, "graph", None)
    if graph is None:
        for name, part in prepared.named_modules():
            if is_observer(part):
                yield name, (), part, _pinning(part)
        return
    parts = dict(prepared.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        part = parts.get(str(node.target)) if node.op == "call_module" else None
        if part is None or not is_observer(part):
            continue
        source = node.args[0]
        held = _attribute(prepared, source.target) if source.op == "get_attr" else None
        if isinstance(held, nn.Parameter):
            yield source.target, tuple(held.shape), part, _pinning(part)
        else:
            yield source.name, (), part, _pinning(part)


def layer_weights(prepared: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield the layers whose weights FX and eager mode observe only as they convert.

    Yields:
        The layer's name, the layer, what holds its weight where it is fused, and an observer that has seen the weight.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    done: set[str] = set()
    for name, layer in prepared.named_modules():
        if name.rpartition(".")[0] in done:
            continue  # the layer inside a fused one
        inner = layer[0] if isinstance(layer, nn.Sequential) and len(layer) else layer
        config = getattr(layer, "qconfig", None)
        if config is None or not isinstance(inner, nn.Linear | _ConvNd):
            continue
        done.add(name)
        observer = config.weight()
        observer(inner.weight.detach())
        yield name, layer, inner, observer


def _layer_tensors(prepared: Any) -> Iterator[_Found]:
    for name, layer, inner, observer in layer_weights(prepared):
        yield f"{name}.weight", tuple(inner.weight.shape), observer, _pinning_layer(layer, inner, observer)


def _pinning(observer: Any) -> Callable[[Any, Any], None]:
    def pin(scale: Any, zero_point: Any) -> None:
        # converting asks every kind of observer this, and nothing else, for the numbers
        observer.calculate_qparams = lambda: (scale, zero_point)

    return pin


def _pinning_layer(layer: Any, inner: Any, observer: Any) -> Callable[[Any, Any], None]:
    from torch.ao.quantization import QConfig

    def pin(scale: Any, zero_point: Any) -> None:
        _pinning(observer)(scale, zero_point)
        for part in (layer, inner):
            if getattr(part, "qconfig", None) is not None:
                part.qconfig = QConfig(activation=part.qconfig.activation, weight=lambda: observer)

    return pin


def _is_int8(observer: Any) -> bool:
    import torch

    limits = hasattr(observer, "quant_min") and hasattr(observer, "quant_max")
    return limits and observer.dtype in (torch.quint8, torch.qint8, torch.uint8, torch.int8)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


# --- The int8 weights of a prepared graph whose scales are settled, with the biases and the inputs beside them.


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
        bias: float32 [out]; None if there is none.
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


_WeightTensor = tuple[Held, Held | None, Any, Any]  # weight, bias, the weight's observer, the node of the layer's input


def _in_graph(prepared: Any, is_observer: IsObserver) -> Iterator[_WeightTensor]:
    """Yield weights that are nodes of a graph, with observers of their own (PT2E)."""
    for node in _nodes(prepared):
        observer = _observer_of(prepared, node, is_observer)
        if observer is None or node.args[0].op != "get_attr":
            continue
        for user in node.users:
            if len(user.args) > 1 and user.args[1] is node:
                bias = _bias(prepared, user, is_observer)
                yield _parameter(prepared, node.args[0]), bias, observer, user.args[0]


def _bias(prepared: Any, layer: Any, is_observer: IsObserver) -> Held | None:
    node = layer.args[2] if len(layer.args) > 2 else None
    source = node.args[0] if node is not None and _observer_of(prepared, node, is_observer) is not None else node
    return _parameter(prepared, source) if getattr(source, "op", None) == "get_attr" else None


def _in_layers(prepared: Any) -> Iterator[_WeightTensor]:
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


def _parameter(prepared: Any, node: Any) -> Held:
    place, _, name = str(node.target).rpartition(".")
    return Held(module=prepared.get_submodule(place), name=name)
