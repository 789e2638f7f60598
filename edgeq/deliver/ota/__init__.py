"""Over-the-air updates: signed channels that any static server can hold, small patches, and the reference client.

A client in another language needs two contracts: `index.py` (the fields of the signed index) and `store.py` (how a
device stores releases).
"""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
