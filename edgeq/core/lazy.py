"""Submodules that are imported when they are first used, so that `edgeq --help` and completion stay quick."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType


def submodules_of(package: str) -> Callable[[str], ModuleType]:
    """Return a package's `__getattr__` (PEP 562), which imports a submodule when its name is first used.

    A command writes `edgeq.report.text.render(report)` and names the module under `TYPE_CHECKING`. It needs no import
    statement inside the function.
    """

    def load(name: str) -> ModuleType:
        full = f"{package}.{name}"
        if name.startswith("_") or importlib.util.find_spec(full) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(full)

    return load
