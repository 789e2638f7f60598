"""What happens to a bundle after it is built: it goes into an app. Nothing here needs torch."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
