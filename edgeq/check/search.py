"""The gate of the mixed-precision search: an assignment meets the limits on the search samples."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Scores, Search, Tuning
from edgeq.core.results.report import Gate
from edgeq.core.schemes import LIMITS, LimitName
from edgeq.core.units import counted, format_quantity


def search_gates(search: Search | None, limits: Sequence[Gate]) -> tuple[Gate, ...]:
    """Fail if no assignment meets the limits (exit code 5); no gate for schemes without a search.

    The search has few samples, and some channel may hardly change on them. So the nearest assignment passes where the
    evaluation data, which the search has not seen, prove the same limits.

    Args:
        search: its attempts; None for schemes without one.
        limits: the gates of the artifact's own limits, where they were judged on evaluation data.
    """
    if search is None:
        return ()
    found = search.found
    passed = {gate.name for gate in limits if gate.outcome == "ok"}
    meets_later = not found.meets and all(name in passed for name, _ in search.limits)
    kept = (
        f"{len(found.kept)} of {len(search.ranking)} layers in float, over {counted(search.samples, 'search sample')}"
    )
    nearest = "; no assignment that was tried meets the limits there: this one is the nearest"
    nearest += ", and meets them on the evaluation data" if meets_later else ""
    return (
        Gate(
            name="search",
            outcome="ok" if found.meets or meets_later else "failed",
            limit=", ".join(_limit(name, limit) for name, limit in search.limits),
            measured=", ".join(_score(name, found.scores) for name, _ in search.limits),
            detail=f"{kept}, {counted(len(search.attempts), 'assignment')} tried{'' if found.meets else nearest}",
            exit_code=ExitCode.ACCURACY,
        ),
    )


def _limit(name: str, limit: float) -> str:
    kind = LIMITS[_known(name)]
    return f"{name} {'>=' if kind.at_least else '<='} {format_quantity(limit, kind.dimension)}"


def _score(name: str, scores: Scores) -> str:
    agreement = None if scores.agreement is None else 100 * scores.agreement
    value = {"accuracy_drop": scores.drop_pp, "agreement": agreement, "sqnr": scores.sqnr_db}[name]
    return "not measured" if value is None else format_quantity(value, LIMITS[_known(name)].dimension)


def _known(name: str) -> LimitName:
    return next(known for known in LIMITS if known == name)


# --- What quantization-aware training came to: a gate that it did not diverge, and a word where it did not help.


# fake quantization clips, so that a training that runs away may keep a finite loss: this many times what it began with
_MOST_TIMES = 10.0

# KL in nats, or squared error relative to the signal: below a hundredth, ten times as much is still a small change
_LEAST_LOSS = 0.01


def training_gates(tuning: Tuning | None) -> tuple[Gate, ...]:
    """Fail if the training diverged (exit code 5); no gate for schemes without training."""
    if tuning is None:
        return ()
    measured = _divergence(tuning)
    kept = f"epoch {tuning.epochs}" if tuning.epochs and tuning.weights != "start" else "before the training"
    return (
        Gate(
            name="training",
            outcome="failed" if measured else "ok",
            limit="no divergence",
            measured=measured or "none",
            detail=f"the weights are those of {kept}; lower --qat-lr" if measured else "",
            exit_code=ExitCode.ACCURACY,
        ),
    )


def training_warnings(tuning: Tuning | None) -> tuple[str, ...]:
    """Warn if no epoch was better than static-int8 on the held-out samples."""
    if tuning is None or tuning.weights != "start" or _divergence(tuning):
        return ()
    return (
        (
            "training did not bring the outputs closer to fp32 on held-out samples: the weights are those of "
            "static-int8; try another --qat-lr or more --qat-data"
        ),
    )


def _divergence(tuning: Tuning) -> str:
    """Return in words how the training diverged; "" where it did not."""
    if tuning.diverged_in is not None:
        return f"a loss of NaN or infinity in epoch {tuning.diverged_in}"
    # NaN is no small loss; that of a user's own loop may be one
    if not tuning.trained_loss <= max(_LEAST_LOSS, _MOST_TIMES * tuning.start_loss):
        return f"a held-out loss of {tuning.trained_loss:.3g}, {tuning.start_loss:.3g} before the training"
    return ""
