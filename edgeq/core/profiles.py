"""Where the shipped target and device profiles are. Apart from what reads them: listing them needs no pydantic."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any


@functools.cache
def profile_files() -> dict[str, Path]:
    """Return the shipped target profiles by name, sorted: from the wheel, or from `targets/` of a checkout."""
    return _shipped("targets")


@functools.cache
def group_files() -> dict[str, Path]:
    """Return the shipped files of targets that stand for several others, by name, sorted."""
    return _shipped("targets/groups")


def profile_values(name: str) -> dict[str, Any]:
    """Return the top-level keys of a shipped target file, with those of the profile that it extends; not validated.

    Tables are not merged key by key: `edgeq.core.targets.load_target` does that.
    """
    own = tomllib.loads((profile_files() | group_files())[name].read_text(encoding="utf-8"))
    return {**profile_values(own["extends"]), **own} if "extends" in own else own


@functools.cache
def device_files() -> dict[str, Path]:
    """Return the shipped device profiles by name, sorted: from the wheel, or from `devices/` of a checkout."""
    return _shipped("devices")


def _shipped(kind: str) -> dict[str, Path]:
    here = Path(__file__).resolve().parent.parent
    folder = next((place for place in (here / kind, here.parent / kind) if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}
