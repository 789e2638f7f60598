"""Quantities as people write them: sizes, shares, percentage points, times.

MB is 10^6 bytes and MiB is 2^20 (IEC 80000-13); both are accepted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from typing import Literal

from edgeq.core.errors import UsageError, nearest

Dimension = Literal["bytes", "ms", "s", "pp", "%", "dB", "cycles"]

_FACTORS: dict[Dimension, dict[str, Decimal]] = {
    "bytes": {
        "B": Decimal(1),
        "kB": Decimal(10**3),
        "KB": Decimal(10**3),
        "MB": Decimal(10**6),
        "GB": Decimal(10**9),
        "KiB": Decimal(2**10),
        "MiB": Decimal(2**20),
        "GiB": Decimal(2**30),
    },
    "ms": {"us": Decimal("0.001"), "ms": Decimal(1), "s": Decimal(1000)},
    "s": {"s": Decimal(1), "m": Decimal(60), "min": Decimal(60), "h": Decimal(3600)},
    "pp": {"pp": Decimal(1), "%": Decimal(1)},
    "%": {"%": Decimal(1)},
    "dB": {"dB": Decimal(1)},
    "cycles": {"cycles": Decimal(1), "kcycles": Decimal(10**3), "Mcycles": Decimal(10**6)},
}

_EXAMPLE: dict[Dimension, str] = {
    "bytes": "5MB or 4MiB",
    "ms": "40ms or 0.3s",
    "s": "90s, 10m or 1h",
    "pp": "0.5pp",
    "%": "2%",
    "dB": "30dB",
    "cycles": "3Mcycles or 800kcycles",
}

_QUANTITY = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z%]+)\s*", re.ASCII)


def parse_quantity(text: str, dimension: Dimension) -> float:
    """Return `text` in the dimension's base unit (bytes, milliseconds, percentage points or percent).

    Raises:
        UsageError: no number, no unit, or a unit of another dimension.
    """
    match = _QUANTITY.fullmatch(text)
    factors = _FACTORS[dimension]
    if match is None:
        raise UsageError(
            f"expected a number with a unit, such as {_EXAMPLE[dimension]}, got {text!r}",
            f"write the unit: {', '.join(factors)}",
        )
    number, unit = match.groups()
    if unit not in factors:
        raise UsageError(
            f"unknown unit {unit!r} in {text!r}.{nearest(unit, factors)}", f"use one of: {', '.join(factors)}"
        )
    return float(Decimal(number) * factors[unit])


def parse_size_bytes(text: str) -> int:
    """Return a size in whole bytes, rounded down, since a limit must not grow."""
    return math.floor(parse_quantity(text, "bytes"))


def format_bytes(size_bytes: float) -> str:
    """Return a size in decimal units ("3.74 MB"); exact bytes below 1 kB."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        # 999.95 kB would print as "1000.0 kB"
        if size_bytes < factor * 999.95 or unit == "GB":
            value = size_bytes / factor
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"
    raise AssertionError("unreachable: the last unit covers every size")


def format_quantity(value: float, dimension: Dimension) -> str:
    """Return a value in its base unit as text."""
    if dimension == "bytes":
        return format_bytes(value)
    if dimension == "ms":
        if 0 < value < 0.01:  # a limit of 1us is not 0.00 ms
            return f"{value:.2g} ms"
        return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"
    if dimension == "cycles":
        if value < 10_000:
            return f"{value:.0f} cycles"
        return f"{value / 1e3:.1f} kcycles" if value < 999_950 else f"{value / 1e6:.2f} Mcycles"
    return f"{value:.2f}%" if dimension == "%" else f"{value:.2f} {dimension}"


def counted(count: float, noun: str) -> str:
    """Return "1 step", "2 steps", "3 tries"; a fraction with three digits ("0.996 steps")."""
    number = str(count) if isinstance(count, int) else f"{count:.3g}"
    if number == "1":
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith(("ry", "ty")) else f"{noun}s"
    return f"{number} {plural}"


def is_safe(char: str) -> bool:
    """Whether a character cannot move a terminal's cursor, change its state or reorder text: no control or format."""
    return char == "\n" or char.isprintable() or unicodedata.category(char) == "Zs"


def safe_lines(text: str) -> str:
    """Return `text` with "?" in place of each unsafe character; line breaks stay.

    Names, labels and libraries' messages come from untrusted files.
    """
    return "".join(char if is_safe(char) else "?" for char in text)
