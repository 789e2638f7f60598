"""edgeq: package a trained PyTorch model for phones and edge hosts, and refuse one that must not ship."""

from __future__ import annotations

__version__ = "0.1.0"
