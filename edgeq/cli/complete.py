"""Shell completion of names, from files alone: a key press must not wait for a library."""

from __future__ import annotations

from collections.abc import Iterable

from edgeq.profiles import profile_files
from edgeq.scheme import AUTO, LIMITS, OBSERVERS, SCHEMES


def targets(incomplete: str) -> list[str]:
    """Return the shipped targets that start with `incomplete`."""
    return _starting(incomplete, profile_files())


def schemes(incomplete: str) -> list[str]:
    """Return the schemes that start with `incomplete`."""
    return _starting(incomplete, (*SCHEMES, AUTO))


def observers(incomplete: str) -> list[str]:
    """Return the observers that start with `incomplete`."""
    return _starting(incomplete, OBSERVERS)


def limits(incomplete: str) -> list[str]:
    """Return the limits that start with `incomplete`, with the sign that follows."""
    return _starting(incomplete, (f"{name}=" for name in LIMITS))


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
