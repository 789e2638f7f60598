"""Nouns without behaviour: what every other room reads. Nothing here imports another room."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
