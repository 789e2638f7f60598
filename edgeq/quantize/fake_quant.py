"""Fake quantization for training: a calibrated graph's observers become modules that round as the kernels will.

The graph is the one that static quantization converts (batch norm folded with its own eps, dropout out), so training
starts from the static ranges exactly, and what is trained converts by the same path. This file needs torch to load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# kernels compute on all values of the type, also where the observer kept to seven bits (`reduce_range`)
_LIMITS = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.uint8: (0, 255), torch.int8: (-128, 127)}

RANGE_SUFFIX = "log_factor"  # ends the names of the parameters that are ranges


class RangeFakeQuant(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Rounds an activation to its int8 grid, whose step size is learned (as in LSQ, arXiv:1902.08153).

    Attributes:
        start: float32 [1], the static step size.
        log_factor: float32 [1], the logarithm of what the step size has grown by; 0 at the start.
        zero_point: float32 [1], fixed: zero stays exact.
    """

    def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int, *, learned: bool) -> None:
        super().__init__()
        self.register_buffer("start", scale.detach().float().reshape(1))
        self.log_factor = nn.Parameter(torch.zeros(1), requires_grad=learned)
        self.register_buffer("zero_point", zero_point.detach().float().reshape(1))
        self.low, self.high = low, high

    @property
    def scale(self) -> torch.Tensor:
        """The present step size, float32 [1]."""
        return self.start * self.log_factor.exp()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` rounded to the grid; integers pass."""
        if values.dtype != torch.float32:
            return values
        return torch._fake_quantize_learnable_per_tensor_affine(
            values, self.scale, self.zero_point, self.low, self.high, 1.0
        )


class WeightFakeQuant(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Rounds a weight to the grid that its observer gives for its present values, as converting it will."""

    def __init__(self, observer: Any) -> None:
        super().__init__()
        self.observer = observer

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight; gradients pass to the values within the range."""
        self.observe(weight)
        scale, zero_point = self.observer.calculate_qparams()
        low, high = self.observer.quant_min, self.observer.quant_max
        if scale.numel() == 1:
            return torch.fake_quantize_per_tensor_affine(weight, scale, zero_point.to(torch.int32), low, high)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zero_point.to(torch.int32), self.observer.ch_axis, low, high
        )

    def observe(self, weight: torch.Tensor) -> None:
        """Let the observer see these values and no earlier ones.

        A histogram, which observes a constant that an operator other than a layer reads, cannot forget: it has seen
        that constant alone, at every calibration sample.
        """
        if hasattr(self.observer, "histogram"):
            return
        self.observer.reset_min_max_vals()
        self.observer(weight.detach())


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What was put into a prepared graph, to be taken out again.

    Attributes:
        ranges: the observer and its stand-in, by the name in the graph.
        layers: the layer and its stand-in, by module name.
        attributes: what was taken off modules because it cannot be pickled, as module, name and value: a user's loop
            may send the graph to other processes.
    """

    ranges: dict[str, tuple[Any, nn.Module]]
    layers: dict[str, tuple[nn.Module, nn.Module]]
    attributes: tuple[tuple[nn.Module, str, Any], ...]


def attach(prepared: Any, *, is_observer: Callable[[Any], bool], fixed: Any) -> Attached:
    """Put fake quantization into a calibrated graph, in place, with parameters of its own.

    Args:
        prepared: a torch.fx.GraphModule with observers that have seen the calibration samples.
        is_observer: tells observers from other modules.
        fixed: the observer class of fixed parameters in the library that converts the graph.

    Raises:
        TypeError: an observer of another kind than the two that edgeq's configurations give.
    """
    own_parameters(prepared)
    weights = {str(node.target) for node in prepared.graph.nodes if observes_weight(prepared, node)}
    made: dict[int, tuple[Any, nn.Module]] = {}
    ranges = {}
    # not named_children(), which leaves out the second name of an observer that two tensors share
    for name, part in list(prepared._modules.items()):
        if not is_observer(part):
            continue
        if id(part) not in made:
            made[id(part)] = (part, WeightFakeQuant(part)) if name in weights else fake_range(part, fixed)
        ranges[name] = made[id(part)]
        setattr(prepared, name, made[id(part)][1])
    layers = _swapped_layers(prepared)
    attributes = [
        (part, "qconfig", vars(part).pop("qconfig")) for part in prepared.modules() if "qconfig" in vars(part)
    ]
    attributes.append((prepared, "meta", prepared.meta))
    prepared.meta = {}
    return Attached(ranges=ranges, layers=layers, attributes=tuple(attributes))


def detach(prepared: Any, attached: Attached) -> None:
    """Put observers that know the trained ranges, and the layers with the trained weights, back into the graph."""
    for part, name, value in attached.attributes:
        setattr(part, name, value)
    for name, (observer, stand_in) in attached.ranges.items():
        if isinstance(stand_in, RangeFakeQuant):
            observer.scale.copy_(stand_in.scale.detach())
        setattr(prepared, name, observer)
    for node in prepared.graph.nodes:
        _, stand_in = attached.ranges.get(str(node.target), (None, None))
        if node.op == "call_module" and isinstance(stand_in, WeightFakeQuant):
            stand_in.observe(part_at(prepared, node.args[0].target))
    for name, (layer, stand_in) in attached.layers.items():
        inner = layer[0] if isinstance(layer, nn.Sequential) else layer
        inner.weight, inner.bias = stand_in.weight, stand_in.bias
        _replace(prepared, name, layer)


def own_parameters(module: Any) -> None:
    """Give a module trainable copies of its float parameters: what it was made from stays as it is."""
    copies: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, tensor in list(part._parameters.items()):
            if tensor is None:
                continue
            if id(tensor) not in copies:
                copies[id(tensor)] = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.is_floating_point())
            part._parameters[name] = copies[id(tensor)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = buffer.detach().clone()


def fake_range(observer: Any, fixed: Any) -> tuple[Any, nn.Module]:
    """Return an observer of fixed parameters, and the module that learns them; raises TypeError for other kinds."""
    scale, zero_point = observer.calculate_qparams()
    if scale.numel() != 1 or observer.dtype not in _LIMITS:
        raise TypeError(f"cannot train through {type(observer).__name__} of {observer.dtype}")
    low, high = _LIMITS[observer.dtype]
    keeper = fixed(
        scale=float(scale),
        zero_point=int(zero_point),
        dtype=observer.dtype,
        qscheme=observer.qscheme,
        quant_min=observer.quant_min,
        quant_max=observer.quant_max,
    )
    # seven bits keep the sums of x86 kernels without VNNI from overflowing: a smaller step would undo that
    learned = (observer.quant_min, observer.quant_max) == (low, high)
    return keeper, RangeFakeQuant(scale, zero_point, low, high, learned=learned)


def observes_weight(prepared: Any, node: Any) -> bool:
    """Whether a node of a prepared graph is the observer of a parameter."""
    if node.op != "call_module" or not node.args or getattr(node.args[0], "op", "") != "get_attr":
        return False
    return isinstance(part_at(prepared, node.args[0].target), nn.Parameter)


def part_at(module: Any, path: str) -> Any:
    """Return the module or parameter that a dotted path leads to."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _swapped_layers(prepared: Any) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Exchange FX's float layers that will be converted for PyTorch's own with a fake-quantized weight."""
    from torch.ao.quantization import QConfig
    from torch.ao.quantization.quantization_mappings import get_default_qat_module_mappings

    kinds = get_default_qat_module_mappings()
    swapped: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, layer in list(prepared.named_modules()):
        if name.rpartition(".")[0] in swapped:
            continue  # the convolution inside a fused layer
        config = getattr(layer, "qconfig", None)
        kind = kinds.get(type(layer))
        inner = layer[0] if isinstance(layer, nn.Sequential) else layer
        if config is None or kind is None or not isinstance(getattr(inner, "weight", None), nn.Parameter):
            continue
        before = getattr(inner, "qconfig", None)
        inner.qconfig = QConfig(activation=config.activation, weight=_fake_weights(config))
        layer.qconfig = inner.qconfig
        stand_in = kind.from_float(layer)
        inner.qconfig, layer.qconfig = before, config
        _replace(prepared, name, stand_in)
        swapped[name] = (layer, stand_in)
    return swapped


def _fake_weights(config: Any) -> Callable[..., WeightFakeQuant]:
    def make(factory_kwargs: Any = None) -> WeightFakeQuant:  # noqa: ARG001  # the signature of a qconfig's maker
        return WeightFakeQuant(config.weight())

    return make


def _replace(root: Any, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, part)


# --- Which activations of a prepared graph are to be rounded: those that a layer in int8 reads or writes.


_UNNAMED = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Neighbors:
    """What is next to an observed value, with no layer or observer between."""

    layers: frozenset[str]
    observers: frozenset[Any]


class Activations:
    """The observed activations of a prepared graph, and the layers beside them.

    Args:
        prepared: a torch.fx.GraphModule with observers.
        is_observer: tells its observers from other modules.
        layers: the name of each node that is a layer; functional layers of no module's own are always in int8.
    """

    def __init__(self, prepared: Any, is_observer: Callable[[Any], bool], layers: Mapping[Any, str]) -> None:
        parts = prepared._modules
        self.nodes = tuple(
            node
            for node in prepared.graph.nodes
            if node.op == "call_module"
            and is_observer(parts.get(str(node.target)))
            and not observes_weight(prepared, node)
        )
        observers = frozenset(self.nodes)
        unnamed = {node: _UNNAMED for node in prepared.graph.nodes if _has_observed_weight(prepared, node)}
        self._neighbors = {node: _neighbors(node, {**unnamed, **layers}, observers) for node in self.nodes}

    def rounded(self, in_int8: Collection[str]) -> frozenset[Any]:
        """Return the observers' nodes whose values are rounded.

        A value beside no layer at all, as between two sums, is rounded where a value next to it is.

        Args:
            in_int8: names of layers.
        """
        wanted = {*in_int8, _UNNAMED}
        found = {node for node in self.nodes if self._neighbors[node].layers & wanted}
        loose = {node for node in self.nodes if not self._neighbors[node].layers}
        while joined := {node for node in loose - found if self._neighbors[node].observers & found}:
            found |= joined
        return frozenset(found)


def leave_in_float(prepared: Any, is_observer: Callable[[Any], bool], layers: Mapping[Any, bool]) -> None:
    """Take the observers away that no layer in int8 needs, in place; without a layer in float all are needed.

    Args:
        prepared: a torch.fx.GraphModule with observers.
        is_observer: tells its observers from other modules.
        layers: whether each node that is a layer is in int8.
    """
    if all(layers.values()):
        return
    activations = Activations(prepared, is_observer, {node: node.name for node in layers})
    rounded = activations.rounded([node.name for node, is_int8 in layers.items() if is_int8])
    for node in activations.nodes:
        if node not in rounded:
            node.replace_all_uses_with(node.args[0])
            prepared.graph.erase_node(node)
            delattr(prepared, str(node.target))
    prepared.recompile()


def _neighbors(node: Any, layers: Mapping[Any, str], observers: frozenset[Any]) -> _Neighbors:
    reached = {
        *_reached(node.all_input_nodes, lambda n: n.all_input_nodes, layers, observers),
        *_reached(list(node.users), lambda n: list(n.users), layers, observers),
    }
    return _Neighbors(
        layers=frozenset(layers[other] for other in reached if other in layers),
        observers=frozenset(reached) & observers,
    )


def _has_observed_weight(prepared: Any, node: Any) -> bool:
    return any(observes_weight(prepared, source) for source in node.all_input_nodes)


def _reached(
    start: list[Any], following: Callable[[Any], list[Any]], layers: Collection[Any], observers: Collection[Any]
) -> Iterator[Any]:
    """Yield the nodes that can be reached, going beyond no layer and no observer."""
    seen: set[Any] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node not in layers and node not in observers:
            waiting += following(node)
