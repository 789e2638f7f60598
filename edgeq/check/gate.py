"""Gates that compare a measured value with a limit."""

from __future__ import annotations

import math

from edgeq.core.errors import ExitCode
from edgeq.core.results.report import Gate
from edgeq.core.units import Dimension, format_bytes, format_quantity


def amount(value: float, dimension: Dimension) -> str:
    """Return a difference as text; a nonzero difference is never printed as zero."""
    if dimension == "bytes":
        whole = math.ceil(value)
        return f"{whole} B" if whole < 1000 else f"{format_bytes(whole)} ({whole:,} B)"
    if dimension == "cycles":
        return f"{math.ceil(value):,} cycles"
    return f"{value:.3g}%" if dimension == "%" else f"{value:.3g} {dimension}"


def decibels(value: float, digits: int = 1) -> str:
    """Return a signal-to-difference ratio as text; it is NaN where outputs hold NaN, or Inf at unlike places."""
    if math.isnan(value):
        return "NaN or Inf on one side only"
    return "equal" if value == math.inf else f"{value:.{digits}f} dB"


def at_most(*, name: str, limit: float, measured: float, dimension: Dimension, code: ExitCode, note: str = "") -> Gate:
    """Check that `measured` is at most `limit`, both in the dimension's base unit; equal passes, NaN fails.

    Args:
        name: the gate's name.
        limit: the largest value that passes.
        measured: what was measured.
        dimension: the dimension of both.
        code: the exit code of a failure.
        note: text after the margin.
    """
    left = limit - measured
    by = f"{amount(left, dimension)} left" if left >= 0 else f"+{amount(-left, dimension)} over"
    return _gate("<=", left, by, name, limit, measured, dimension, code, note)


def at_least(*, name: str, limit: float, measured: float, dimension: Dimension, code: ExitCode, note: str = "") -> Gate:
    """Check that `measured` is at least `limit`; the rest is as in `at_most`."""
    above = measured - limit
    by = f"{amount(above, dimension)} above" if above >= 0 else f"{amount(-above, dimension)} short"
    return _gate(">=", above, by, name, limit, measured, dimension, code, note)


def _gate(
    sign: str,
    margin: float,
    by: str,
    name: str,
    limit: float,
    measured: float,
    dimension: Dimension,
    code: ExitCode,
    note: str,
) -> Gate:
    by = "not a number" if math.isnan(margin) else by
    return Gate(
        name=name,
        # so that NaN fails
        outcome="ok" if margin >= 0 else "failed",
        limit=f"{sign} {format_quantity(limit, dimension)}",
        measured=format_quantity(measured, dimension),
        detail=f"{by}; {note}" if note else by,
        exit_code=code,
    )


def unverified(name: str, limit: str, why: str) -> Gate:
    """Return the gate of a value that was required but could not be measured (exit code 7)."""
    return Gate(
        name=name,
        outcome="unverified",
        limit=limit,
        measured="not measured",
        detail=why,
        exit_code=ExitCode.VERIFICATION,
    )
