"""Scales and zero points of a prepared graph, and taking over those of a shipped model where they still fit.

A weight that was fine-tuned a little has another largest value, hence another scale, hence other bytes all over: with
the shipped scale, only the values that crossed a rounding step differ, and a patch is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.artifacts import QParams
from edgeq.errors import UsageError

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
    fix = "give a bundle of the same model, scheme and --keep-fp32, or leave --reuse-qparams-from out"
    if missing := sorted(known.keys() ^ here.keys()):
        side = "has no" if missing[0] in here else "has an"
        what = f"the shipped model is another one: it {side} int8 tensor {missing[0]}"
        raise UsageError(f"{what} ({len(missing)} of {len(known | here)} tensors are in one model only)", fix)
    for name, tensor in here.items():
        old, count = known[name], tensor.observer.calculate_qparams()[0].numel()
        if old.shape != tensor.shape or len(old.scales) != count:
            came = f"{list(old.shape)} in {len(old.scales)} channels"
            what = f"the shipped model is another one: its {name} is {came}, and here {list(tensor.shape)} in {count}"
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
