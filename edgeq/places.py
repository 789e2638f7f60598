"""Where edgeq keeps what it may make again: the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache folder; EDGEQ_CACHE_DIR overrides it."""
    from platformdirs import user_cache_path

    named = os.environ.get("EDGEQ_CACHE_DIR")
    return Path(named) if named else user_cache_path("edgeq")
