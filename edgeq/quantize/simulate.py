"""A calibrated graph whose layers can be quantized one by one, to learn what each of them costs in accuracy.

The graph is prepared and calibrated once. Observers become switches, which round to the static ranges or let the values
pass; weights are exchanged for their rounded values and back. This file needs torch to load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeq.quantize.fakequant import WeightFakeQuant, fake_range, observes_weight, own_parameters, part_at

LayerName = Callable[[Any, Any], str | None]


class Switch(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Rounds to a static range, or lets values pass."""

    def __init__(self, rounding: nn.Module) -> None:
        super().__init__()
        self.rounding = rounding
        self.on = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`, rounded while the switch is on."""
        return self.rounding(values) if self.on else values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    parameter: Any
    exact: torch.Tensor
    rounded: torch.Tensor

    def set(self, *, rounded: bool) -> None:
        self.parameter.data = self.rounded if rounded else self.exact


class Simulation:
    """Fake quantization of any set of a graph's layers.

    Args:
        prepared: a calibrated torch.fx.GraphModule; it is changed, and of no further use to convert.
        is_observer: tells its observers from other modules.
        fixed: the library's observer class of fixed parameters.
        layer_of: the module name of a node that is a convolution or a linear layer, else None.

    Raises:
        TypeError: an observer of another kind than those that edgeq's configurations give.
    """

    def __init__(self, prepared: Any, *, is_observer: Callable[[Any], bool], fixed: Any, layer_of: LayerName) -> None:
        own_parameters(prepared)
        self.graph = prepared
        self._layers = {node: name for node in prepared.graph.nodes if (name := layer_of(prepared, node)) is not None}
        self._weights: dict[str, list[_Weight]] = {name: [] for name in self._layers.values()}
        self._switches: dict[int, tuple[Switch, set[str]]] = {}
        self._pinned: list[Switch] = []
        self._replace_observers(is_observer, fixed)
        self._round_module_weights()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in the order of execution."""
        return tuple(self._weights)

    def weight_elements(self, layer: str) -> int:
        """Return how many weights a layer has."""
        return sum(weight.exact.numel() for weight in self._weights[layer])

    def quantize(self, layers: Collection[str], *, others: bool) -> None:
        """Quantize these layers and the activations that they read and write.

        Args:
            layers: their names.
            others: whether what is no layer, such as a sum, is quantized too.
        """
        wanted = set(layers)
        for name, weights in self._weights.items():
            for weight in weights:
                weight.set(rounded=name in wanted)
        for switch, touched in self._switches.values():
            switch.on = bool(touched & wanted)
        for switch in self._pinned:
            switch.on = switch.on or others

    def _replace_observers(self, is_observer: Callable[[Any], bool], fixed: Any) -> None:
        parts = dict(self.graph._modules)
        made: dict[int, nn.Module] = {}
        for node in list(self.graph.graph.nodes):
            observer = parts.get(str(node.target)) if node.op == "call_module" else None
            if observer is None or not is_observer(observer):
                continue
            if observes_weight(self.graph, node):
                self._round_observed_weight(node, observer)
                made.setdefault(id(observer), nn.Identity())
            elif id(observer) not in made:
                made[id(observer)] = Switch(fake_range(observer, fixed)[1])
            stand_in = made[id(observer)]
            if isinstance(stand_in, Switch):
                self._note(node, stand_in, is_observer, parts)
            setattr(self.graph, str(node.target), stand_in)

    def _note(self, node: Any, switch: Switch, is_observer: Callable[[Any], bool], parts: dict[str, Any]) -> None:
        """Note which layers an observed value belongs to: it stays in int8 as long as one of them does."""

        def ends(other: Any) -> bool:
            return other.op == "call_module" and is_observer(parts.get(str(other.target)))

        _, touched = self._switches.setdefault(id(switch), (switch, set()))
        beside = [*_reached(node.all_input_nodes, lambda n: n.all_input_nodes, self._layers, ends)]
        beside += _reached(list(node.users), lambda n: list(n.users), self._layers, ends)
        touched |= {self._layers[other] for other in beside if other in self._layers}
        # sums and products of two values are quantized on their own
        is_sum = any(other not in self._layers and len(other.all_input_nodes) > 1 for other in beside)
        if (is_sum or not touched) and switch not in self._pinned:
            self._pinned.append(switch)

    def _round_observed_weight(self, node: Any, observer: Any) -> None:
        parameter = part_at(self.graph, str(node.args[0].target))
        names = [self._layers[user] for user in node.users if user in self._layers]
        exact = parameter.detach().clone()
        rounded = WeightFakeQuant(observer)(exact)
        if names:
            self._weights[names[0]].append(_Weight(parameter=parameter, exact=exact, rounded=rounded))
        else:  # a functional layer of no module's own is always in int8
            parameter.data = rounded

    def _round_module_weights(self) -> None:
        """Round the weights of layers that are modules (FX)."""
        for node, name in self._layers.items():
            if node.op != "call_module" or self._weights[name]:
                continue
            layer = self.graph.get_submodule(str(node.target))
            config = getattr(layer, "qconfig", None)
            inner = layer[0] if isinstance(layer, nn.Sequential) else layer
            if config is not None:
                exact = inner.weight.detach().clone()
                observer = config.weight()
                rounded = WeightFakeQuant(observer)(exact)
                self._weights[name].append(_Weight(parameter=inner.weight, exact=exact, rounded=rounded))


def _reached(
    start: list[Any], following: Callable[[Any], list[Any]], layers: Collection[Any], ends: Callable[[Any], bool]
) -> Iterator[Any]:
    """Yield the nodes that can be reached without passing a layer or an observer."""
    seen: set[Any] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node in seen or ends(node):
            continue
        seen.add(node)
        yield node
        if node not in layers:
            waiting += following(node)
