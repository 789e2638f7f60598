"""Ranges that were observed once, for every graph that leaves other layers of the same model in float."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any


def observed(prepared: Any, is_observer: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the observers of a prepared torch.fx.GraphModule by the name of the node that each observes."""
    parts = dict(prepared.named_modules(remove_duplicate=False))
    return {
        str(node.args[0].name): parts[str(node.target)]
        for node in prepared.graph.nodes
        if node.op == "call_module" and is_observer(parts.get(str(node.target)))
    }


def lend(prepared: Any, known: Mapping[str, Any], is_observer: Callable[[Any], bool]) -> bool:
    """Put copies of calibrated observers into a graph that was prepared otherwise, in place of its own.

    The float values that an observer sees do not depend on what is quantized, and so neither do its ranges.

    Returns:
        Whether all were known; if not, nothing was changed, and the graph needs calibration.
    """
    wanted = {str(node.target): str(node.args[0].name) for node in prepared.graph.nodes if _observes(prepared, node)}
    wanted = {target: name for target, name in wanted.items() if is_observer(prepared._modules.get(target))}
    found = {target: known.get(name) for target, name in wanted.items()}
    own = {target: prepared._modules[target] for target in found}
    if any(theirs is None or not _alike(own[target], theirs) for target, theirs in found.items()):
        return False
    # tensors that share an observer must do so in both
    pairs = {(id(own[target]), id(theirs)) for target, theirs in found.items()}
    if not len(pairs) == len({mine for mine, _ in pairs}) == len({theirs for _, theirs in pairs}):
        return False
    copies: dict[int, Any] = {}
    for target, theirs in found.items():
        setattr(prepared, target, copies.setdefault(id(theirs), copy.deepcopy(theirs)))
    return True


def _observes(prepared: Any, node: Any) -> bool:
    return node.op == "call_module" and str(node.target) in prepared._modules and bool(node.args)


def _alike(mine: Any, theirs: Any) -> bool:
    fields = ("dtype", "qscheme", "quant_min", "quant_max")
    return type(mine) is type(theirs) and all(getattr(mine, key) == getattr(theirs, key) for key in fields)
