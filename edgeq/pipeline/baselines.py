"""`--compare`: the gain of a scheme over float on the same target. The float artifacts are built, timed and dropped.

They have no gates, are not written to the output folder, and are not installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from edgeq.bundle.reader import read_bundle
from edgeq.core.config import DeviceConfig, GateOptions, Job
from edgeq.core.results.measured import Interval
from edgeq.core.results.report import Comparison, PackageResult, Variant, variant_of
from edgeq.core.system import host_arch
from edgeq.core.targets import TargetProfile, why_not_run
from edgeq.pipeline import cache
from edgeq.pipeline.auto import Build, choose_schemes
from edgeq.pipeline.cache import keep, seen_of, unit_of
from edgeq.pipeline.plan import BuildUnit, Finished, Results, Run
from edgeq.pipeline.profile import first_sample
from edgeq.pipeline.publish import write_reports
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import percentile_ms, speedup

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


# --- Latencies of several artifacts, timed in turns on this host: a busy moment hits them all alike. So are the
# candidates of a target that stands for several.


# of one artifact: the times of each of its turns, in ms
Turns = Sequence[Sequence[float]]

TURNS = 15

_RUNS, _WARMUP = 3, 1


def turns_ms(run: Run, label: str, artifacts: Sequence[tuple[Path, TargetProfile]]) -> list[Turns]:
    """Return each turn's latencies of each artifact, with one golden sample, on the threads of its target.

    Args:
        run: the job; while artifacts are timed, nothing else of it computes.
        label: of the step, for progress.
        artifacts: the folders of bundles that this host can run, with their targets.
    """
    bundles = [read_bundle(folder) for folder, _ in artifacts]
    samples = [first_sample(bundle) for bundle in bundles]
    with contextlib.ExitStack() as stack:
        runtimes = [stack.enter_context(HostRuntime(folder=run.work, trusted=True)) for _ in bundles]
        task = stack.enter_context(run.progress.task(label, TURNS, "rounds"))
        for runtime, bundle, (_, target) in zip(runtimes, bundles, artifacts, strict=True):
            runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=target.device.threads)
        stack.enter_context(run.progress.alone())
        taken: list[list[Sequence[float]]] = [[] for _ in bundles]
        for turn in range(TURNS):
            order = list(zip(runtimes, samples, taken, strict=True))
            for runtime, sample, times in order if turn % 2 else reversed(order):
                times.append(runtime.latencies_ms(sample, warmup=_WARMUP, runs=_RUNS))
            task.advance()
    return list(taken)


def with_latency(one: Variant, turns: Turns) -> Variant:
    """Return a variant with the latencies of its turns in place of those of its verification."""
    times = [time for turn in turns for time in turn]
    return dataclasses.replace(one, latency_ms=percentile_ms(times, 0.5), latency_p90_ms=percentile_ms(times, 0.9))


def paired_speedup(reference: Turns, measured: Turns) -> Interval:
    """Return how many times faster `measured` is than `reference`: the median over the turns, with its interval."""
    return speedup(*[[statistics.median(turn) for turn in turns] for turns in (reference, measured)])
