"""How a measured value is held against a limit, and how that is told."""

from __future__ import annotations

import math

from edgeq.artifacts import Gate
from edgeq.errors import ExitCode
from edgeq.units import Dimension, format_bytes, format_quantity


def amount(value: float, dimension: Dimension) -> str:
    """Return a difference as people read it; one that is not zero never reads as zero."""
    if dimension == "bytes":
        whole = math.ceil(value)
        return f"{whole} B" if whole < 1000 else f"{format_bytes(whole)} ({whole:,} B)"
    return f"{value:.3g}%" if dimension == "%" else f"{value:.3g} {dimension}"


def at_most(*, name: str, limit: float, measured: float, dimension: Dimension, code: ExitCode, note: str = "") -> Gate:
    """Hold `measured` to `limit`, both in the dimension's base unit; equal passes, NaN does not.

    Args:
        name: the gate's name.
        limit: the most that passes.
        measured: what was measured.
        dimension: what both are measured in.
        code: the exit code of a failure.
        note: said after by how much.
    """
    # negated, so that NaN fails
    over = not measured <= limit
    if math.isnan(measured) or math.isnan(limit):
        by = "not a number"
    else:
        by = f"+{amount(measured - limit, dimension)} over" if over else f"{amount(limit - measured, dimension)} left"
    return Gate(
        name=name,
        outcome="failed" if over else "ok",
        limit=f"<= {format_quantity(limit, dimension)}",
        measured=format_quantity(measured, dimension),
        detail=f"{by}; {note}" if note else by,
        exit_code=code,
    )


def unverified(name: str, limit: str, why: str) -> Gate:
    """Return the gate of something that was asked for and could not be measured (exit code 7)."""
    return Gate(
        name=name,
        outcome="unverified",
        limit=limit,
        measured="not measured",
        detail=why,
        exit_code=ExitCode.VERIFICATION,
    )
