"""Which activations of a prepared graph are to be rounded: those that a layer in int8 reads or writes.

Quantizers also round the operands of what has no weights, such as sums and pools, wherever these stand: between layers
that are left in float that is noise and nothing else. This file needs torch to load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.quantize.fakequant import observes_weight

_UNNAMED = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
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
        self._beside = {node: _beside(node, {**unnamed, **layers}, observers) for node in self.nodes}

    def rounded(self, in_int8: Collection[str]) -> frozenset[Any]:
        """Return the observers' nodes whose values are rounded.

        A value beside no layer at all, as between two sums, is rounded where a value next to it is.

        Args:
            in_int8: names of layers.
        """
        wanted = {*in_int8, _UNNAMED}
        found = {node for node in self.nodes if self._beside[node].layers & wanted}
        loose = {node for node in self.nodes if not self._beside[node].layers}
        while joined := {node for node in loose - found if self._beside[node].observers & found}:
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


def _beside(node: Any, layers: Mapping[Any, str], observers: frozenset[Any]) -> _Beside:
    reached = {
        *_reached(node.all_input_nodes, lambda n: n.all_input_nodes, layers, observers),
        *_reached(list(node.users), lambda n: list(n.users), layers, observers),
    }
    return _Beside(
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
