"""Delivery of finished bundles: into an app's project, or over the air. Nothing here needs torch."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
