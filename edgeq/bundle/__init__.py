"""The release bundle: a deterministic writer, and a reader that verifies everything."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
