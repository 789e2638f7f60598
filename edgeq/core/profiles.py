"""Where the shipped target and device profiles are. Apart from what reads them: listing them needs no pydantic."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def profile_files() -> dict[str, Path]:
    """Return the shipped target profiles by name, sorted: from the wheel, or from `targets/` of a checkout."""
    return _shipped("targets")


@functools.cache
def device_files() -> dict[str, Path]:
    """Return the shipped device profiles by name, sorted: from the wheel, or from `devices/` of a checkout."""
    return _shipped("devices")


def _shipped(kind: str) -> dict[str, Path]:
    here = Path(__file__).resolve().parent.parent
    folder = next((place for place in (here / kind, here.parent / kind) if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}
