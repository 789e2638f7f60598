"""The pipeline: the only place that knows the order of the steps."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
