"""Gate of models with state: over many steps the artifact, fed with its own state, stays with fp32."""

from __future__ import annotations

from edgeq.check.fidelity import FAINT_DB
from edgeq.check.gate import unverified
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import DriftReport, OutputDrift, VerifyReport
from edgeq.core.results.report import Gate
from edgeq.core.schemes import LOST_DB, REACTION_DB
from edgeq.core.units import counted

STATE = "state"

# From the second quarter of 1,000 steps to the last, the energy of an error that grows evenly grows by 7.2 dB, that of
# a sum of independent errors by 3.7 dB; that of a state that forgets within 300 steps by less than 2.5 dB.
MAX_GROWTH_DB = 3.0

# an error this small may grow: at this rate it stays small over millions of steps
FINE_DB = 60.0

# a state that forgets has nothing left of one rounding after 500 steps; one that sums has it still, some 40 dB of an
# int8 step. Below this it was amplified
CHAOTIC_DB = 20.0

_LEAST_MOTION = 0.01  # of fp32's variance: less is an output that stays where it is

# a trajectory that only lost its phase has fp32's variance, within a decibel, and its mean. The error of a state that
# winds up is mostly one of the mean, however small it still is
_SAME_MOTION, _SAME_MEAN, _MOSTLY_MEAN = (0.8, 1.25), 0.05, 0.1

# of fp32's largest value: the artifact's range ends before it. Clipping rare peaks leaves more than this of the signal
_LESS_REACH, _POOR_DB = 0.8, 10.0

_ADVICE = (
    "calibrate on sequences as long as the app's, keep the layers that compute the state in float (--keep-fp32), or "
    "use another scheme; --limit sqnr=0 turns this check off"
)


def state_gates(verified: VerifyReport, options: GateOptions, *, has_state: bool) -> tuple[Gate, ...]:
    """Judge the artifact over many steps, each side fed with its own state (exit code 5); none without states.

    `--limit sqnr=0` leaves NaN alone to be judged.

    It fails where the artifact gives NaN, differs from fp32 as much as fp32 without its state, holds a state still that
    moves in fp32, or where its error grows all the time. The last is left to `--limit drift` where that is given. It is
    unverified where fp32's own trajectory cannot be compared: a chaotic one, or an oscillation that lost its phase.
    """
    report = verified.drift
    if not has_state:
        return ()
    limit = "follows fp32 with its own state"
    if report is None:
        why = verified.graph_only.why if verified.graph_only else verified.stand_in
        return (unverified(STATE, limit, why or "a float model to compare with is missing"),)
    limit = f"{limit} over {report.steps:,} steps"
    if report.unsure:
        return (unverified(STATE, limit, report.unsure),)
    limits = dict(options.limits)
    judges_growth, judges_floor = "drift" not in limits, limits.get("sqnr") != 0
    wrong = [report.problem] if report.problem else []
    excused: list[str] = []
    for one in report.outputs if judges_floor else ():
        if ignored := _ignores_state(one):
            wrong.append(ignored)
        elif lost := (_lost(one) or (_grown(one) if judges_growth else "")):
            why = why_incomparable(one)
            (excused if why else wrong).append(f"{lost}; {why}" if why else lost)
    if excused and not wrong:
        return (unverified(STATE, limit, "; ".join(excused)),)
    return (
        Gate(
            name=STATE,
            outcome="failed" if wrong else "ok",
            limit=limit,
            measured=_measured(report),
            detail=f"{'; '.join(wrong)}; {_ADVICE}" if wrong else _seen(report),
            exit_code=ExitCode.ACCURACY,
        ),
    )


def growth_of(report: DriftReport | None, limit_db: float) -> tuple[float | None, str]:
    """Return the largest growth of an output's error in dB, for `--limit drift`, with a remark; None with the reason.

    Of an output that differs from fp32 by next to nothing it is 0. One beyond the limit that proves nothing is None.
    """
    if report is None:
        return None, "only a model with --state drifts, and only against a float model"
    if report.problem or report.unsure:
        return None, report.problem or report.unsure
    judged = {one.output: 0.0 if one.sqnr_db[-1] >= FINE_DB else one.growth_db for one in report.outputs}
    worst = max(report.outputs, key=lambda one: judged[one.output])
    if judged[worst.output] > limit_db and (why := why_incomparable(worst)):
        return None, f"{_name(worst)}: {why}"
    return judged[worst.output], f"{_name(worst)}: {_quarters(worst)}"


def why_incomparable(one: OutputDrift) -> str:
    """Return why an output that is far from fp32's late in the run proves nothing; "" where it does."""
    late = one.sqnr_db[-1]
    if one.reaction_db is not None and one.reaction_db < CHAOTIC_DB and late >= one.reaction_db - REACTION_DB:
        return (
            f"fp32 itself ends at {one.reaction_db:.1f} dB after one rounding of its state, so that its trajectory "
            "cannot be compared"
        )
    low, high = _SAME_MOTION
    if one.motion is None or one.offset is None or one.untracked is None:
        return ""
    if low <= one.motion <= high and one.offset <= min(_SAME_MEAN, _MOSTLY_MEAN * one.untracked):
        return "mean and variance are those of fp32, so that only the phase may have moved"
    return ""


def _ignores_state(one: OutputDrift) -> str:
    if one.start_effect_db is None or one.start_effect_db >= LOST_DB:
        return ""
    return (
        f"{_name(one)} differs from fp32 as much as fp32 without its state does, from the first steps on "
        f"({one.start_effect_db:.1f} dB): the artifact does not use the state"
    )


def _lost(one: OutputDrift) -> str:
    late = one.sqnr_db[-1]
    if one.is_state and late < _POOR_DB and (ends := _end_of_range(one)):
        return f"{_name(one)} leaves the range that it was calibrated for{ends}: {_quarters(one)}"
    if late < FAINT_DB and one.motion is not None and one.motion < _LEAST_MOTION:
        return f"{_name(one)} stays where it is, and fp32's moves{_end_of_range(one)}"
    if late < LOST_DB:
        return f"nothing is left of {_name(one)}: {_quarters(one)}{_end_of_range(one)}"
    if late < FAINT_DB and one.untracked is not None and one.untracked > 10 ** (-LOST_DB / 10):
        return f"{_name(one)} does not move as fp32's: {_quarters(one)}{_end_of_range(one)}"
    if one.effect_db is not None and one.effect_db < LOST_DB:
        what = f"{_name(one)} ends as far from fp32 as fp32 without its state ({one.effect_db:.1f} dB)"
        return f"{what}{_end_of_range(one)}"
    return ""


def _grown(one: OutputDrift) -> str:
    if one.sqnr_db[-1] >= FINE_DB or one.growth_db <= MAX_GROWTH_DB or not one.grows_evenly:
        return ""
    return f"the error of {_name(one)} grows all the time: {_quarters(one)}{_end_of_range(one)}"


def _end_of_range(one: OutputDrift) -> str:
    if one.reach >= _LESS_REACH * one.fp32_reach:
        return ""
    return f" (it ends at {one.reach:.3g}, where fp32 reaches {one.fp32_reach:.3g})"


def _name(one: OutputDrift) -> str:
    return f"{'state output' if one.is_state else 'output'}{one.output}"


def _quarters(one: OutputDrift) -> str:
    return f"SQNR {', '.join(f'{value:.1f}' for value in one.sqnr_db)} dB by quarter"


def _measured(report: DriftReport) -> str:
    if report.problem:
        return report.problem
    late = min(one.sqnr_db[-1] for one in report.outputs)
    growth = max(one.growth_db for one in report.outputs)
    return f"SQNR {late:.1f} dB at the end, {growth:+.1f} dB of growth"


def _seen(report: DriftReport) -> str:
    repeated = f"the first {counted(report.inputs, 'step')} of the data, repeated"
    return f"{repeated}; {'; '.join(f'{_name(one)}: {_quarters(one)}' for one in report.outputs)}"
