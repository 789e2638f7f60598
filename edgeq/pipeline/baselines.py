"""`--compare`: the gain of a scheme over float on the same target. The float artifacts are built, timed and dropped.

They have no gates, are not written to the output folder, and are not installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeq.core.config import DeviceConfig, GateOptions, Job
from edgeq.core.results.report import Comparison, PackageResult, Variant, variant_of
from edgeq.core.system import host_arch
from edgeq.core.targets import TargetProfile, why_not_run
from edgeq.pipeline import cache
from edgeq.pipeline.auto import Build, choose_schemes
from edgeq.pipeline.cache import keep, seen_of, unit_of
from edgeq.pipeline.plan import BuildUnit, Finished, Results, Run
from edgeq.pipeline.publish import write_reports
from edgeq.pipeline.turns import Turns, paired_speedup, turns_ms, with_latency

_AGAINST = ("fp32", "fp16")


def with_float_baselines(run: Run, units: Sequence[BuildUnit], build: Build) -> Results:
    """Return the units of a run, each with its comparison.

    Raises:
        EdgeqError: what `choose_schemes` raises; the comparison lists float artifacts that cannot be made.
    """
    plain = {unit.key: unit_of(run.job, run.facts, unit.target, unit.scheme) for unit in units}
    made = choose_schemes(run, tuple(plain.values()), build)
    plain = {key: made.chosen.get(one.key, one) for key, one in plain.items()}
    units = [dataclasses.replace(unit, scheme=plain[unit.key].scheme) for unit in units]
    refusals = {unit.key: made.refused[plain[unit.key].key] for unit in units if plain[unit.key].key in made.refused}
    units = [unit for unit in units if unit.key not in refusals]
    rows = {unit.key: made.finished[plain[unit.key].key] for unit in units}
    job = float_job(run.job)
    beside = Run(job=job, facts=cache.job_facts(job), work=run.work, progress=run.progress)
    rivals = {
        unit.key: [
            unit_of(beside.job, beside.facts, unit.target, scheme) for scheme in _rivals(unit.target, rows[unit.key][0])
        ]
        for unit in units
    }
    unique = {rival.key: rival for several in rivals.values() for rival in several}
    got = build(beside, tuple(unique.values()))
    finished: Finished = {}
    for unit in units:
        row, data = rows[unit.key]
        others = [got.finished[rival.key][0] for rival in rivals[unit.key] if rival.key in got.finished]
        refused = [
            Variant(scheme=rival.scheme, error=got.refused[rival.key].what, exit_code=got.refused[rival.key].exit_code)
            for rival in rivals[unit.key]
            if rival.key in got.refused
        ]
        row = dataclasses.replace(row, compared=_comparison(run, unit, (row, *others), refused))
        row = write_reports(row, data)
        seen = [one.key for one in (plain[unit.key], *rivals[unit.key]) if one.key not in got.refused]
        finished |= keep(run, {unit.key: (row, data)}, seen_of(seen, run.job.build))
    return Results(finished=finished, refused=refusals)


def float_job(job: Job) -> Job:
    """Return the job of the float artifacts: the same model and data, no limits, this host only."""
    return dataclasses.replace(
        job,
        schemes=(),
        gates=GateOptions(),
        device=DeviceConfig(on="host"),
        reuse_qparams_from=None,
        compare=False,
    )


def _rivals(target: TargetProfile, row: PackageResult) -> tuple[str, ...]:
    return tuple(scheme for scheme in _AGAINST if scheme in target.schemes and scheme != row.scheme)


def _comparison(run: Run, unit: BuildUnit, rows: Sequence[PackageResult], refused: Sequence[Variant]) -> Comparison:
    """Return the row's own figures and the others', their latencies measured in turns where this host can run them."""
    variants = [variant_of(row) for row in rows]
    if why_not_run(unit.target.backend):
        variants = [dataclasses.replace(one, latency_ms=None, latency_p90_ms=None) for one in variants]
    else:
        turns = turns_ms(run, f"compare {unit.label}", [(row.path, unit.target) for row in rows])
        fp32 = next((times for row, times in zip(rows, turns, strict=True) if row.scheme == "fp32"), None)
        variants = [_timed(one, times, fp32) for one, times in zip(variants, turns, strict=True)]
    return Comparison(arch=host_arch(), variants=(*variants, *refused))


def _timed(one: Variant, times: Turns, fp32: Turns | None) -> Variant:
    """Return a variant with the latencies of its turns, and what they say against fp32's."""
    faster = None if fp32 is None or one.scheme == "fp32" else paired_speedup(fp32, times)
    return dataclasses.replace(with_latency(one, times), speedup=faster)
