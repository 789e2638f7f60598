"""What is imported when it is first used: submodules and NumPy.

So `edgeq --help` and completion stay quick, and bundles are read, installed and released without NumPy.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:

    class _NumPy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module("numpy"), name)
            setattr(self, name, value)  # the next look-up does not come here
            return value

    class NDArray:
        """Stands in annotations for numpy.typing.NDArray."""

        def __class_getitem__(cls, _dtype: Any) -> type:
            return cls

    np = _NumPy("numpy")

__all__ = ["NDArray", "np", "submodules_of"]


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
