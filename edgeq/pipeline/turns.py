"""Latencies of several artifacts, timed in turns on this host: a busy moment hits them all alike.

`--compare` times a scheme beside float, a target that stands for several its candidates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from edgeq.bundle.reader import read_bundle
from edgeq.core.results.measured import Interval
from edgeq.core.results.report import Variant
from edgeq.core.targets import TargetProfile
from edgeq.pipeline.plan import Run
from edgeq.pipeline.profile import first_sample
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import percentile_ms, speedup

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
