"""The gate on instructions: an update must not cost a phone much more than the model that is shipped."""

from __future__ import annotations

from pathlib import Path

from edgeq.artifacts import Gate, VerifyReport
from edgeq.check.outcome import unverified
from edgeq.counts import CountReport
from edgeq.errors import ExitCode

NAME = "instructions"
# a tenth: kernels for other shapes cost some percent more or less, a lost delegate or a float layer far more
MOST_RATIO = 1.1


def instruction_gates(shipped: Path | None, verified: VerifyReport) -> tuple[Gate, ...]:
    """Hold the instructions of one inference to those of the shipped model, core by core (exit code 6).

    Args:
        shipped: the bundle that was named for comparison; None: no gate.
        verified: with the counts of both, where they could be taken.
    """
    if shipped is None:
        return ()
    limit = f"<= {MOST_RATIO} x the shipped model's"
    cost = verified.cost
    pairs = [] if cost is None else _pairs(cost.counts, cost.shipped)
    if not pairs:
        return (unverified(NAME, limit, "instructions are counted for ARM64 targets, under QEMU"),)
    ratios = [(now.total.instructions / then.total.instructions, now, then) for now, then in pairs]
    worst, now, _ = max(ratios, key=lambda found: found[0])
    told = (f"{one.cpu}: {one.total.instructions:,} against {other.total.instructions:,}" for _, one, other in ratios)
    return (
        Gate(
            name=NAME,
            outcome="ok" if worst <= MOST_RATIO else "failed",
            limit=limit,
            measured=f"{worst:.3f} x on {now.cpu}",
            detail="; ".join(told),
            exit_code=ExitCode.LATENCY,
        ),
    )


def _pairs(counts: tuple[CountReport, ...], shipped: tuple[CountReport, ...]) -> list[tuple[CountReport, CountReport]]:
    known = {one.cpu: one for one in shipped if one.total.instructions}
    return [(one, known[one.cpu]) for one in counts if one.cpu in known]
