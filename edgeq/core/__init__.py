"""Data types and constants that all other packages use. Nothing here imports another package of edgeq."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
