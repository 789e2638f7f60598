"""Views of a run: an HTML page, text, JSON, JUnit, Markdown and annotations. They judge nothing."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
