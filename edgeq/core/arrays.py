"""NumPy, imported when a name of it is first used: bundles are read, installed and released without it."""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:

    class _NumPy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module("numpy"), name)
            setattr(self, name, value)  # the next look-up does not come here
            return value

    class NDArray:
        """Stands in annotations for numpy.typing.NDArray."""

        def __class_getitem__(cls, _dtype: Any) -> type:
            return cls

    np = _NumPy("numpy")

__all__ = ["NDArray", "np"]
