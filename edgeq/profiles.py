"""Where the shipped target profiles are. Apart from `target.py`, so that listing them needs no pydantic."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def profile_files() -> dict[str, Path]:
    """Return the shipped profiles by name, sorted: from the wheel, or from `targets/` of a checkout."""
    here = Path(__file__).resolve().parent
    folder = next((place for place in (here / "targets", here.parent / "targets") if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}
