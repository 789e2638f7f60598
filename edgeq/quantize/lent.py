"""Ranges that were observed once, for every graph that leaves other layers of the same model in float.

This file needs torch to load.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

IsObserver = Callable[[Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Calibrated observers, by the name of the node that each observes.

    Attributes:
        shared: as the graph has them; a pool's input and output share one.
        alone: of those that are shared, what each node would have by itself: a pool's output has a smaller range.
        sharing: the names of the nodes that share a node's observer, its own among them.
    """

    shared: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, frozenset[str]] = field(default_factory=dict)


@contextlib.contextmanager
def observed(prepared: Any, is_observer: IsObserver) -> Iterator[Ranges]:
    """Yield the ranges of a prepared torch.fx.GraphModule, which is calibrated meanwhile."""
    places = _places(prepared, is_observer)
    sharing = _sharing(prepared, places)
    shared = {name: getattr(prepared, target) for name, target in places.items()}
    alone = {name: copy.deepcopy(shared[name]) for name, others in sharing.items() if len(others) > 1}
    for name, own in alone.items():
        setattr(prepared, places[name], _Both(shared[name], own))
    yield Ranges(shared=shared, alone=alone, sharing=sharing)
    for name in alone:
        setattr(prepared, places[name], shared[name])


def lend(prepared: Any, known: Ranges, is_observer: IsObserver) -> bool:
    """Put copies of calibrated observers into a graph that was prepared otherwise, in place of its own.

    The float values that an observer sees do not depend on what is quantized, and so neither do its ranges.

    Returns:
        Whether all were known; if not, nothing was changed, and the graph needs calibration.
    """
    places = _places(prepared, is_observer)
    found = {}
    for name, others in _sharing(prepared, places).items():
        source = known.shared if others == known.sharing.get(name) else known.alone if len(others) == 1 else {}
        found[name] = source.get(name)
        if found[name] is None or not _alike(getattr(prepared, places[name]), found[name]):
            return False
    copies: dict[int, Any] = {}
    for name, theirs in found.items():
        setattr(prepared, places[name], copies.setdefault(id(theirs), copy.deepcopy(theirs)))
    return True


class _Both(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Lets two observers see a value."""

    def __init__(self, shared: nn.Module, own: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = shared, own

    def forward(self, values: Any) -> Any:
        self.own(values)
        return self.shared(values)


def _places(prepared: Any, is_observer: IsObserver) -> dict[str, str]:
    """Return the module name of the observer of each node that has one."""
    return {
        str(node.args[0].name): str(node.target)
        for node in prepared.graph.nodes
        if node.op == "call_module" and node.args and is_observer(prepared._modules.get(str(node.target)))
    }


def _sharing(prepared: Any, places: dict[str, str]) -> dict[str, frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, target in places.items():
        names.setdefault(id(getattr(prepared, target)), set()).add(name)
    return {name: frozenset(names[id(getattr(prepared, target))]) for name, target in places.items()}


def _alike(mine: Any, theirs: Any) -> bool:
    fields = ("dtype", "qscheme", "quant_min", "quant_max")
    return type(mine) is type(theirs) and all(getattr(mine, key) == getattr(theirs, key) for key in fields)
