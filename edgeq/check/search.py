"""What the search for a mixed precision came to: a gate that an assignment keeps the limits on its own samples."""

from __future__ import annotations

from edgeq.artifacts import Gate, Scores, Search
from edgeq.errors import ExitCode
from edgeq.scheme import LIMITS, LimitName
from edgeq.units import counted, format_quantity


def search_gates(search: Search | None) -> tuple[Gate, ...]:
    """Fail where no assignment kept the limits (exit code 5); there is no gate where nothing was searched."""
    if search is None:
        return ()
    found = search.found
    told = (
        f"{len(found.kept)} of {len(search.ranking)} layers in float, over {counted(search.samples, 'search sample')}"
    )
    nearest = "; no assignment of those tried does: this one is the nearest"
    return (
        Gate(
            name="search",
            outcome="ok" if found.meets else "failed",
            limit=", ".join(_limit(name, limit) for name, limit in search.limits),
            measured=", ".join(_score(name, found.scores) for name, _ in search.limits),
            detail=f"{told}, {counted(len(search.attempts), 'assignment')} tried{'' if found.meets else nearest}",
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
