"""Targets that stand for several: build each candidate, time those that pass in turns, and keep the fastest.

Each candidate equals a run of its target alone, and is cached as such. What is kept for the group is the choice, for
the kind of machine that timed it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from edgeq.core.errors import EdgeqError
from edgeq.core.results.report import (
    Candidate,
    DataFacts,
    Fastest,
    ModelError,
    PackageResult,
    Variant,
    variant_of,
    with_warning,
)
from edgeq.core.system import processor_kind
from edgeq.pipeline.baselines import TURNS, Turns, paired_speedup, turns_ms, with_latency
from edgeq.pipeline.cache import keep, seen_of
from edgeq.pipeline.plan import Finished, GroupUnit, Results, Run
from edgeq.pipeline.preflight import no_candidate
from edgeq.pipeline.publish import write_reports

Rows = dict[str, tuple[PackageResult, DataFacts]]


def choose_fastest(run: Run, groups: Sequence[GroupUnit], made: Results) -> Results:
    """Return, for each group, the result of its fastest candidate that passes every gate.

    Where none passes, it is that of the nearest to that; where none could be built, why.

    Args:
        run: the job.
        groups: units whose candidates were built.
        made: the results of the candidates.
    """
    finished: Finished = {}
    refused: dict[str, EdgeqError] = {}
    for unit in groups:
        keys = {one.target.name: made.chosen.get(one.key, one).key for one in unit.candidates}
        rows: Rows = {name: made.finished[key] for name, key in keys.items() if key in made.finished}
        errors = {name: ModelError.of(made.refused[key]) for name, key in keys.items() if key in made.refused}
        errors |= unit.left_out
        if not rows:
            refused[unit.key] = no_candidate(unit.name, errors)
            continue
        fastest = _chosen(run, unit, rows, errors)
        row, data = rows[fastest.candidates[fastest.chosen].target]
        row = dataclasses.replace(row, fastest=fastest)
        rejected = sum(data.evaluation_samples > 0 and not one.ok for one, _ in rows.values())
        if row.ok and rejected:
            before = "one candidate was" if rejected == 1 else f"{rejected} candidates were"
            row = with_warning(row, f"{before} rejected on the same evaluation samples on which this one passed")
        result = {unit.key: (write_reports(row, data), data)}
        finished |= keep(run, result, seen_of([keys[name] for name in rows], run.job.build))
    return Results(finished=finished, refused=refused)


def _chosen(run: Run, unit: GroupUnit, rows: Rows, errors: Mapping[str, ModelError]) -> Fastest:
    """Time the candidates that passed in turns, if there are several, and return all of them with the chosen one."""
    passed = [one for one in unit.group.candidates if one.name in rows and rows[one.name][0].ok]
    turns: dict[str, Turns] = {}
    if len(passed) > 1:
        artifacts = [(rows[one.name][0].path, one) for one in passed]
        taken = turns_ms(run, f"time the candidates of {unit.name}", artifacts)
        turns = {one.name: times for one, times in zip(passed, taken, strict=True)}
    figures: dict[str, Variant] = {}
    for name in (one.name for one in unit.group.candidates):
        if name in errors:
            error = errors[name]
            told = f"{error.what}; {error.fix}" if name in unit.left_out else error.what
            figures[name] = Variant(scheme=unit.scheme, error=told, exit_code=error.exit_code)
        else:
            own = variant_of(rows[name][0])
            figures[name] = with_latency(own, turns[name]) if name in turns else own
    best = min(turns, key=lambda name: figures[name].latency_ms or math.inf, default="")
    candidates = tuple(
        Candidate(
            target=name,
            figures=own,
            slowdown=paired_speedup(turns[name], turns[best]) if name in turns and name != best else None,
        )
        for name, own in figures.items()
    )
    return Fastest(
        name=unit.name,
        cpu=processor_kind(),
        turns=TURNS if turns else 0,
        candidates=candidates,
        chosen=winner(candidates),
    )


def winner(candidates: Sequence[Candidate]) -> int:
    """Return the place of the candidate to keep; at least one has an artifact.

    Of those that passed it is the fastest; where the turns show no difference between several, the smallest of these,
    and of several as small the first. Where none passed, it is the nearest to that.
    """
    passed = [place for place, one in enumerate(candidates) if one.figures.passed]
    if not passed:
        built = [place for place, one in enumerate(candidates) if not one.figures.error]
        return min(built, key=lambda place: candidates[place].figures.distance)
    level = [place for place in passed if candidates[place].slowdown is None or candidates[place].is_as_fast]
    return min(level, key=lambda place: candidates[place].figures.size_bytes or 0)
