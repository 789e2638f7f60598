"""Views of a run: a page for people, JSON, JUnit, Markdown and annotations for machines. They judge nothing."""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
