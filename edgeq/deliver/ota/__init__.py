"""Over-the-air updates: signed channels that any static server can hold, small patches, and the reference client.

docs of the two contracts that a client in another language needs: `facts.py` (what the signed index says) and
`store.py` (how a device keeps releases).
"""

from __future__ import annotations

from edgeq.core.lazy import submodules_of

__getattr__ = submodules_of(__name__)
