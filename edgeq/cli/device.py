"""The emulated runs as tables: each against the host and fp32, and where two runs disagree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeq.cli.columns import aligned

if TYPE_CHECKING:
    from edgeq.artifacts import Agreement, Emulation

_HEADS = ("against", "run", "max abs", "SQNR", "differing", "top-1 flips")


def disagreements(emulation: Emulation) -> list[str]:
    """Return a line for each pair of runs, of host and devices, whose outputs are not equal."""
    pairs = [(run.host.left, run.name, run.host) for run in emulation.runs]
    pairs += [(pair.left, pair.right, pair) for pair in emulation.between]
    rows = [_row(left, right, pair) for left, right, pair in pairs if pair.sqnr_db != math.inf]
    return aligned([_HEADS, *rows], right=frozenset({2, 3, 4, 5})) if rows else []


def runs_table(emulation: Emulation) -> list[str]:
    """Return a line for each run against the host, and one against fp32 where that is known."""
    rows = []
    for run in emulation.runs:
        rows.append(_row("host", run.name, run.host))
        if run.fp32 is not None:
            rows.append(_row("fp32", run.name, run.fp32))
    rows += [_row(pair.left, pair.right, pair) for pair in emulation.between]
    return aligned([_HEADS, *rows], right=frozenset({2, 3, 4, 5})) if rows else []


def _row(left: str, right: str, pair: Agreement) -> tuple[str, ...]:
    flips = "-" if pair.top1_flips is None else f"{pair.top1_flips} of {pair.samples}"
    if pair.sqnr_db == math.inf:
        return (left, right, "0", "equal", "0", flips)
    differing = f"{pair.differing:.2%}" if pair.differing >= 1e-4 else f"{pair.differing:.1e}"
    return (left, right, f"{pair.max_abs:.3g}", f"{pair.sqnr_db:.1f} dB", differing, flips)
