"""Shell completion of names, from files alone: a key press must not wait for a library."""

from __future__ import annotations

from collections.abc import Iterable

from edgeq.profiles import device_files, profile_files
from edgeq.scheme import LIMITS


def targets(incomplete: str) -> list[str]:
    """Return the shipped targets that start with `incomplete`."""
    return starting(incomplete, profile_files())


def devices(incomplete: str) -> list[str]:
    """Return the shipped devices that start with `incomplete`."""
    return starting(incomplete, device_files())


def limits(incomplete: str) -> list[str]:
    """Return the limits that start with `incomplete`, with the sign that follows."""
    return starting(incomplete, (f"{name}=" for name in LIMITS))


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Return the `names` that start with `incomplete`."""
    return [name for name in names if name.startswith(incomplete)]
