"""Module names and types as `--keep-fp32` gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgeq.errors import UsageError, nearest


def matched_names(keep: Sequence[str], modules: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the modules that `keep` names, by module name or by type.

    Args:
        keep: module names ("features.0") or type names ("Linear").
        modules: type name by module name.

    Raises:
        UsageError: an entry that matches no module; the nearest is offered.
    """
    matched: set[str] = set()
    for entry in keep:
        found = {name for name, kind in modules.items() if entry in (name, kind)}
        if not found:
            known = sorted({*modules, *modules.values()} - {""})
            what = f"--keep-fp32 {entry!r} names no module of the model.{nearest(entry, known)}"
            raise UsageError(what, "give a module's name or type; `edgeq inspect` of a bundle lists the names")
        matched |= found
    return frozenset(matched)


def inside(name: str, modules: Collection[str]) -> bool:
    """Return whether a module or parameter is one of `modules`, or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
