"""The verify step: run the artifact in its runtime and compare it with its graph and with fp32."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, VerificationError
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.artifact import Observed
from edgeq.core.results.measured import (
    MAX_SPREAD,
    BeyondRun,
    DriftReport,
    GraphOnly,
    KernelShare,
    Parity,
    SizeRun,
    SizesReport,
    Timing,
    VerifyReport,
)
from edgeq.core.results.model import LoweredModel, TensorSpec
from edgeq.core.results.report import GoldenSet
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.samples import (
    Batch,
    Dataset,
    Outputs,
    Sample,
    Sizes,
    batch_size,
    batches,
    beyond_sizes,
    fixed_at,
    run_in_order,
    sizes_text,
    state_specs,
    tried_sizes,
    varying_outputs,
)
from edgeq.core.schemes import arithmetic
from edgeq.core.system import host_arch, host_load, processor_kind
from edgeq.core.targets import NPU
from edgeq.verify.accumulate import (
    ParityTally,
    Tally,
    compare,
    expect_outputs,
    fidelity_of,
    findings_of,
    infinity_findings,
    same_shapes,
    spread,
)
from edgeq.verify.drift import golden_calls, judge_continuation, run_continuation, run_drift
from edgeq.verify.golden import golden_set, sqnr_floor_db
from edgeq.verify.host import HostRuntime, Killed, Loaded, Refused
from edgeq.verify.kernels import kernel_share, npu_share
from edgeq.verify.metrics import Comparison, another_input, cut, of_sample, percentile_ms
from edgeq.verify.spec import Forward, VerifySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The results of running the artifact alone, before its graph runs. A stand-in is not timed."""

    tally: Tally
    loaded: Loaded
    timing: Timing | None = None
    kernels: KernelShare | None = None
    peak_memory_bytes: int | None = None
    trials: Sequence[Trial] = ()
    beyond: tuple[BeyondRun, ...] = ()
    drift: DriftReport | None = None
    continuation: tuple[Observed, ...] = ()
    decode_ms: float | None = None


def verify(spec: VerifySpec, runtime: HostRuntime) -> tuple[VerifyReport, GoldenSet]:
    """Run the artifact on the samples, time and profile it, and compare it with fp32 and with its graph.

    Returns:
        The report, and a few samples with the artifact's outputs for a device's self-test.

    Raises:
        VerificationError: the artifact cannot be loaded or crashes the runtime.
        UsageError: samples that do not fit, or a metric that fails.
    """
    return judge(spec, run_artifact(spec, runtime))


def run_artifact(spec: VerifySpec, runtime: HostRuntime) -> Ran:
    """Run the artifact in the child, which may then be closed to free memory; raises the errors of `verify`."""
    lowered = spec.lowered
    if lowered is None:
        raise ValueError("an artifact that was not lowered cannot run")
    loaded = runtime.load(lowered.path, runtime=lowered.runtime, backend=spec.backend, threads=spec.threads)
    tally = Tally()
    size = batch_size(spec.samples, spec.inputs)
    samples = in_mixed_order(spec.samples) if size > 1 else spec.samples
    trials = run_sizes(spec, lambda batch: runtime.run(batch.inputs)) if spec.samples.count else []
    expect_outputs(tally, output_specs(trials, spec.output_names))
    show(spec, trials)
    # where sizes vary, what is timed here and on a device is a sample of the largest ones
    largest = trials[0].pairs if trials else []
    tally.golden += [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in largest]
    first: Batch | None = largest[0][0] if largest else None
    with spec.progress.task(f"verify {spec.label}", spec.samples.count) as task:
        for batch, fed, outputs in run_in_order(
            batches(samples, spec.inputs), spec.inputs, lambda fed: runtime.run(fed.inputs)
        ):
            first = first or batch
            compare(spec, tally, batch, fed, outputs)
            task.advance(batch.rows)
    if first is None:
        raise UsageError(f"no samples in {spec.samples.origin}", "give data with at least one sample")
    _look_at_inputs(spec, tally, first, runtime)
    for trial in trials:
        for batch, outputs in trial.pairs:
            tally.measured.look(batch, outputs)
    if len(tally.digests) == 1 or trials:
        # all samples are equal, or no two have equal sizes: try another input, or a dead model would pass
        inputs = another_input(first)
        if inputs is not None:
            tally.measured.look(first, runtime.run(inputs))
        elif not any(tally.measured.varied):
            what = "all inputs are equal, so edgeq cannot check that the output depends on the input:"
            tally.findings[f"{what} give a range of values in --input, or give --eval-data"] = None
    if loaded.stand_in:
        kernels = _profiled(spec, lowered, runtime, first) if loaded.reference else None
        return Ran(tally=tally, loaded=loaded, trials=trials, kernels=kernels)
    peak = runtime.peak_memory_bytes()
    timing, kernels = _timed(spec, lowered, runtime, first, loaded)
    _look_at_batches(spec, tally, first, runtime, any_size=lowered.dynamic_batch)
    # a bundle's artifact, which has nothing to compare with, is run again afterwards
    beyond = run_beyond(spec, runtime) if trials and spec.fp32 else ()
    drift = run_drift(spec, runtime) if state_specs(spec.inputs) and spec.fp32 else None
    said: list[Observed] = []
    continuation = run_continuation(spec, runtime) if spec.language and spec.fp32 else []
    if continuation:
        said = golden_calls(spec, runtime)
        tally.golden = [(one.batch.samples[0], one.host) for one in said]
    decode_ms = None
    if continuation:
        with spec.progress.alone():
            taken = runtime.latencies_ms(continuation[-1].batch.inputs, warmup=spec.warmup, runs=spec.runs)
        decode_ms = percentile_ms(taken, 0.5)
    return Ran(
        tally=tally,
        loaded=loaded,
        timing=timing,
        kernels=kernels,
        peak_memory_bytes=peak,
        trials=trials,
        beyond=beyond,
        drift=drift,
        continuation=(*said, *continuation),
        decode_ms=decode_ms,
    )


def judge(spec: VerifySpec, ran: Ran) -> tuple[VerifyReport, GoldenSet]:
    """Run the converted graph on some of the samples, and return what `verify` does; raises the same errors."""
    tally, loaded = ran.tally, ran.loaded
    by = loaded.reference or ("emulated" if loaded.stand_in else loaded.gpu)
    where = f", {by}" if by else ""
    parity = _parity(spec.graph, spec, tally) if spec.graph else None
    steps = [one for one in ran.continuation if one.continues]
    continuation = judge_continuation(spec, steps) if steps else None
    if continuation and ran.timing and spec.language:
        continuation = replace(
            continuation,
            prefill_ms=ran.timing.p50_ms,
            prefill_tokens=spec.language.most_tokens,
            decode_ms=ran.decode_ms,
        )
    report = VerifyReport(
        host=f"host {host_arch()}{where}",
        parity=parity,
        fidelity=fidelity_of(spec, tally),
        timing=ran.timing,
        kernels=ran.kernels,
        peak_memory_bytes=ran.peak_memory_bytes,
        load_ms=None if loaded.stand_in else loaded.load_ms,
        outputs=tally.shapes,
        findings=findings_of(tally),
        flips=tally.flips.result(),
        stand_in=loaded.stand_in,
        sizes=judge_sizes(spec, ran.trials, ran.beyond),
        drift=ran.drift,
        continuation=continuation,
        npu=spec.lowered.npu if spec.lowered else None,
    )
    return report, golden_set(tally.golden, spec.output_steps, scheme=spec.scheme)


def _look_at_inputs(spec: VerifySpec, tally: Tally, first: Batch, runtime: HostRuntime) -> None:
    """Note an artifact that writes to its caller's tensors, or that answers the same input otherwise the next time.

    An app fills one buffer and calls again and again; the samples so far came in buffers of their own.
    """
    once = runtime.run(first.inputs)
    again = runtime.run(first.inputs, twice=True)
    for index in sorted(runtime.overwritten):
        name = spec.inputs[index].name if index < len(spec.inputs) else str(index)
        tally.findings[f"the artifact overwrites its input {name!r}: copy the tensor in forward, x = x.clone()"] = None
    sums = Comparison()
    sums.add(once, again)
    least = sqnr_floor_db(once, spec.output_steps, spec.scheme)
    if sums.finite and not runtime.overwritten and not sums.sqnr_db >= least:
        what = "a second call on the same input gives other outputs than the first"
        tally.findings[f"{what}: {sums.sqnr_db:.1f} dB, expected at least {least:.1f} dB"] = None


def _look_at_batches(spec: VerifySpec, tally: Tally, first: Batch, runtime: HostRuntime, *, any_size: bool) -> None:
    """Note an artifact whose answer to a sample depends on the others; last, lest it raise the memory."""
    size = batch_size(spec.samples, spec.inputs)
    seen = [batch for batch, _ in tally.for_parity] or [first]
    found: tuple[str, ...] = ()
    if any_size:
        unlike = [_batch_of(sample) for sample in tally.extremes.samples] if size == 1 else []
        found = batch_findings([*unlike, *seen[len(seen) // 2 :], *seen], spec.output_steps, spec.scheme, runtime)
    elif size > 1:
        samples = {one.digest: one for one in (*tally.extremes.samples, *(batch.samples[0] for batch in seen))}
        by_shape: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
        for one in samples.values():
            by_shape.setdefault(tuple(array.shape for array in one.inputs), []).append(one)
        alike = max(by_shape.values(), key=len)  # only these make a batch
        if len(alike) > 1:
            found = mixed_batch_findings(alike, size, spec.output_steps, spec.scheme, runtime)
    tally.findings |= dict.fromkeys(found)


def _batch_of(sample: Sample) -> Batch:
    return Batch(inputs=tuple(array[None] for array in sample.inputs), samples=(sample,))


_MOST_TRIES = 3  # of timing, while the spread of the times shows a busy machine


def _timed(
    spec: VerifySpec, lowered: LoweredModel, runtime: HostRuntime, batch: Batch, loaded: Loaded
) -> tuple[Timing, KernelShare]:
    """Time and profile the artifact on one batch, with nothing else of the run going on."""
    with spec.progress.task(f"time {spec.label}"), spec.progress.alone():
        tries = [runtime.latencies_ms(batch.inputs, warmup=spec.warmup, runs=spec.runs)]
        while len(tries) < _MOST_TRIES and percentile_ms(tries[-1], 0.9) > MAX_SPREAD * percentile_ms(tries[-1], 0.5):
            tries.append(runtime.latencies_ms(batch.inputs, warmup=spec.warmup, runs=spec.runs))
        latencies = min(tries, key=lambda times: percentile_ms(times, 0.9))
        kernels = _profiled(spec, lowered, runtime, batch)
    timing = Timing(
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        runs=spec.runs,
        warmup=spec.warmup,
        threads=loaded.threads,
        arch=host_arch(),
        latencies_ms=tuple(round(value, 6) for value in latencies),
        gpu=loaded.gpu,
        cpu=processor_kind(),
        tries=len(tries),
        load=host_load(),
    )
    return timing, kernels


def _profiled(spec: VerifySpec, lowered: LoweredModel, runtime: HostRuntime, batch: Batch) -> KernelShare:
    """Return the audit's evidence; a profile that fails leaves the audit unverified, with the reason.

    Raises:
        EdgeqError: the profile failed, and --devtools asks for it.
    """
    if spec.backend == NPU:
        return KernelShare(int8_macs=None, kernels=(), why_unmatched="the NPU's emulator gives no profile of kernels")
    try:
        names = runtime.kernels(batch.inputs, etdump=spec.etdump)
    except EdgeqError as err:
        if spec.etdump is not None:
            raise
        return KernelShare(int8_macs=None, kernels=(), why_unmatched=err.what)
    if spec.backend in ETHOS_U:
        return npu_share(names, lowered.layers)
    return kernel_share(lowered.runtime, names, lowered.layers)


def _parity(graph: Forward, spec: VerifySpec, tally: Tally) -> Parity:
    """Run the converted graph on the first samples."""
    with spec.progress.task(f"compare {spec.label} with its graph"):
        for batch, measured in tally.for_parity:
            expected = cut(batch, graph(batch))
            if same_shapes(tally, expected, measured, "the converted graph"):
                tally.parity.add(batch, expected, measured, spec.output_steps)
        return tally.parity.result(graph)


# --- The verify step of an artifact that nothing here can run: its converted graph is judged, and nothing else is
# said.


def judge_graph(spec: VerifySpec, *, why: str) -> tuple[VerifyReport, GoldenSet]:
    """Run the converted graph on the samples, and compare it with fp32.

    Args:
        spec: as for `verify`; it has a graph.
        why: the reason why the artifact itself is not run.

    Returns:
        A report on the graph only, and a few samples with the graph's outputs.

    Raises:
        UsageError: samples that do not fit, or a metric that fails.
    """
    graph = spec.graph
    if graph is None:
        raise ValueError("an artifact without a graph cannot be judged")
    lowered = spec.lowered
    alone = dataclasses.replace(spec, graph=None)  # with itself it would always agree
    tally = Tally()
    trials = run_sizes(alone, graph, samples=1) if spec.samples.count else []
    expect_outputs(tally, output_specs(trials, spec.output_names))
    samples = in_mixed_order(spec.samples) if batch_size(spec.samples, spec.inputs) > 1 else spec.samples
    with spec.progress.task(f"run the graph of {spec.label}", spec.samples.count) as task:
        for batch, fed, outputs in run_in_order(batches(samples, spec.inputs), spec.inputs, graph):
            compare(alone, tally, batch, fed, outputs)
            task.advance(batch.rows)
    if not tally.samples:
        raise UsageError(f"no samples in {spec.samples.origin}", "give data with at least one sample")
    report = VerifyReport(
        host="nothing",
        outputs=tally.shapes,
        findings=(),
        graph_only=GraphOnly(why=why, fidelity=fidelity_of(spec, tally), findings=findings_of(tally)),
        kernels=kernel_share(spec.backend, lowered.kernels, lowered.layers) if lowered and lowered.kernels else None,
        sizes=judge_sizes(alone, trials, ()),
    )
    scheme = arithmetic(spec.scheme, spec.backend)
    return report, golden_set(tally.golden, spec.output_steps, scheme=scheme, made_by="graph")


def look_first(spec: VerifySpec, most: int) -> tuple[VerifyReport, tuple[float, ...]]:
    """Run the converted graph on spread samples before it is lowered, and compare it with fp32.

    Args:
        spec: as for `judge_graph`.
        most: how many samples at most.

    Returns:
        A report on the graph only, and by output the highest SQNR of any of the samples, in dB.

    Raises:
        UsageError: as `judge_graph`.
    """
    rows = sorted(spread(spec.samples.count, most))
    samples = replace(spec.samples, count=len(rows), read=lambda i: spec.samples.read(rows[i]))
    best: dict[int, float] = {}

    def look(batch: Batch, outputs: Outputs, reference: Outputs | None) -> None:
        for row in range(batch.rows):
            pairs = zip(of_sample(batch, reference or (), row), of_sample(batch, outputs, row), strict=True)
            for index, (expected, measured) in enumerate(pairs):
                sums = Comparison()
                sums.add((expected,), (measured,))
                best[index] = max(best.get(index, -math.inf), sums.sqnr_db)

    report, _ = judge_graph(replace(spec, samples=samples, observe=look), why="it is not lowered yet")
    return report, tuple(best[index] for index in sorted(best))


# --- Artifacts that answer several samples at once: the same samples together and alone.


TOGETHER = 3

# a single sample may be so much further off than all of them together
_ROW_DB = 10.0

_MAX_STEPS = 1.0 + 1e-3


def in_mixed_order(dataset: Dataset) -> Dataset:
    """Return the same samples in a seeded order: data is often sorted by class, and a batch of one class is easier."""
    order = np.random.default_rng(0).permutation(dataset.count).tolist()
    return replace(dataset, read=lambda i: dataset.read(order[i]))


def mixed_batch_findings(
    samples: Sequence[Sample], size: int, steps: Sequence[float | None], scheme: str, runtime: HostRuntime
) -> tuple[str, ...]:
    """Return the findings of an artifact whose output for a sample depends on the other samples of the batch.

    Args:
        samples: different ones, at least two, in any order.
        size: how many the artifact takes at once.
        steps: quantization steps of the outputs, where known: so much may differ.
        scheme: the quantization scheme.
        runtime: has the artifact loaded.
    """
    alone = [runtime.run(_filled([sample], size)) for sample in samples]
    rows = [samples[i % len(samples)] for i in range(max(size, len(samples)))][:size]
    together = runtime.run(_filled(rows, size))
    if any(array.ndim == 0 or len(array) != size for array in together):
        return ()  # outputs without the batch axis belong to no sample
    expected = tuple(
        np.stack([alone[i % len(samples)][output][0] for i in range(size)]) for output in range(len(together))
    )
    return _row_findings(expected, together, steps, scheme, f"a batch of {size} different samples gives")


def _filled(samples: Sequence[Sample], size: int) -> tuple[NDArray[Any], ...]:
    rows = [samples[i % len(samples)] for i in range(size)]
    return tuple(np.stack(column) for column in zip(*(sample.inputs for sample in rows), strict=True))


def _row_findings(
    expected: Outputs, together: Outputs, steps: Sequence[float | None], scheme: str, what: str
) -> tuple[str, ...]:
    """Compare row by row: the largest one of a batch would rule the ratio of all."""
    worst, least = math.inf, sqnr_floor_db(expected, steps, scheme) - _ROW_DB
    for index, (left, right) in enumerate(zip(expected, together, strict=True)):
        step = steps[index] if index < len(steps) else None
        for row, other in zip(left.astype(np.float64), right.astype(np.float64), strict=True):
            if step and float(np.abs(row - other).max(initial=0.0)) <= _MAX_STEPS * step:
                continue
            sums = Comparison()
            sums.add((row,), (other,))
            worst = -math.inf if math.isnan(sums.sqnr_db) else min(worst, sums.sqnr_db)
    if worst >= least:
        return ()
    return (
        (
            f"{what} other outputs than each sample alone: {worst:.1f} dB for the worst, expected at least "
            f"{least:.1f} dB; the output for a sample depends on the other samples of its batch"
        ),
    )


def batch_findings(
    seen: Sequence[Batch], steps: Sequence[float | None], scheme: str, runtime: HostRuntime
) -> tuple[str, ...]:
    """Return the findings of an artifact that is run on more samples at once than its stated batch.

    Args:
        seen: batches of the stated shape, at least one.
        steps: quantization steps of the outputs, where known: outputs may differ by one step; others by what kernels
            lose that sum in another order. Dynamic int8 takes its ranges from the whole batch.
        scheme: the quantization scheme.
        runtime: has the artifact loaded.
    """
    inputs = [batch.inputs for batch in seen[:TOGETHER]]
    while len(inputs) < TOGETHER:
        inputs.append(another_input(seen[0]) or inputs[0])
    alone = [runtime.run(arrays) for arrays in inputs]
    try:
        together = runtime.run([np.concatenate(column) for column in zip(*inputs, strict=True)])
    except VerificationError as err:
        return (f"the artifact states that it accepts any batch size but fails on {TOGETHER} at once: {err.what}",)
    expected: Outputs = tuple(np.concatenate(column) for column in zip(*alone, strict=True))
    shapes, wanted = ([array.shape for array in side] for side in (together, expected))
    if shapes != wanted:
        return (f"{TOGETHER} batches at once give outputs with the shapes {shapes}, expected {wanted}",)
    sums = Comparison()
    sums.add(expected, together)
    least = sqnr_floor_db(expected, steps, scheme)
    if sums.sqnr_db >= least:
        return _row_findings(expected, together, steps, scheme, f"{TOGETHER} batches at once give")
    return (
        (
            f"{TOGETHER} batches at once give other outputs than alone: {sums.sqnr_db:.1f} dB, expected at least "
            f"{least:.1f} dB"
        ),
    )


# --- Sizes that vary: the artifact at the smallest, the middle and the largest ones, and just outside of the range.
# Data need not have samples of these sizes: samples are cut, or repeated from their beginning, until they have them.


_SAMPLES = 4  # of each size

_NEAR_DB = 10.0  # outside of the range, an answer nearer to fp32's than this is no other answer


@dataclass(slots=True)
class Trial:
    """What the artifact gave at some sizes, with its inputs."""

    sizes: Sizes
    pairs: list[tuple[Batch, Outputs]] = field(default_factory=list)


def run_sizes(spec: VerifySpec, run: Forward, *, samples: int = _SAMPLES) -> list[Trial]:
    """Run `samples` inputs of all sizes to be tried, the largest first; none where no size varies.

    Raises:
        UnsupportedError, VerificationError: the runtime refuses a size, or crashes.
    """
    trials = [Trial(sizes=sizes) for sizes in tried_sizes(spec.inputs)]
    for trial in trials:
        for batch in _batches_at(spec, trial.sizes, samples):
            try:
                outputs = run(batch)
            except (Refused, UnsupportedError) as err:
                fix = "use another target, or give fixed sizes or another range in --input"
                raise type(err)(f"the artifact does not run at {sizes_text(trial.sizes)}: {err.what}", fix) from err
            trial.pairs.append((batch, outputs))
    return trials


def show(spec: VerifySpec, trials: Sequence[Trial]) -> None:
    """Hand what ran to whoever observes it: all of the largest sizes, and one sample of each of the others."""
    if spec.observe_sizes is None:
        return
    for index, trial in enumerate(trials):
        for batch, outputs in trial.pairs[: None if index == 0 else 1]:
            spec.observe_sizes(batch, outputs, spec.fp32(batch) if spec.fp32 else None)


def output_specs(trials: Sequence[Trial], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the outputs at the largest sizes, with what varies of them; () without trials."""
    if not trials:
        return ()
    shapes = [[output.shape for output in trial.pairs[0][1]] for trial in trials]
    varying = varying_outputs([trial.sizes for trial in trials], shapes)
    largest = trials[0].pairs[0][1]
    return tuple(
        TensorSpec(
            name=names[i] if names else f"output{i}", dtype=str(array.dtype), shape=array.shape, varying=varying[i]
        )
        for i, array in enumerate(largest)
    )


def judge_sizes(spec: VerifySpec, trials: Sequence[Trial], beyond: Sequence[BeyondRun]) -> SizesReport | None:
    """Compare what ran with the converted graph and with fp32, size by size; None where no size varies."""
    if not trials:
        return None
    planned = spec.lowered.planned_memory_bytes if spec.lowered else None
    runs = tuple(_judged(spec, trial) for trial in trials)
    return SizesReport(runs=runs, beyond=tuple(beyond), planned_memory_bytes=planned)


def _judged(spec: VerifySpec, trial: Trial) -> SizeRun:
    problem, parity, sums = "", ParityTally(), Comparison(nominal=True)
    for batch, measured in trial.pairs:
        of_fp32 = spec.fp32(batch) if spec.fp32 else None
        for expected, of in ((spec.graph(batch) if spec.graph else None, "the converted graph"), (of_fp32, "fp32")):
            if expected is not None and [one.shape for one in expected] != [one.shape for one in measured]:
                shapes, others = ([list(one.shape) for one in side] for side in (measured, expected))
                problem = problem or f"outputs have the shapes {shapes}, but those of {of} have {others}"
            elif expected is not None and of == "fp32":
                sums.add(expected, measured)
            elif expected is not None:
                parity.add(batch, expected, measured, spec.output_steps)
        problem = problem or "; ".join(infinity_findings(measured, of_fp32, "fp32"))
    found: Parity | None = None
    if parity.batches and spec.graph is not None:
        found = parity.result(spec.graph)
    return SizeRun(
        sizes=tuple(trial.sizes.items()),
        samples=len(trial.pairs),
        parity=found,
        sqnr_db=sums.sqnr_db if sums.elements else None,
        problem=problem,
    )


def run_beyond(spec: VerifySpec, runtime: HostRuntime) -> tuple[BeyondRun, ...]:
    """Run sizes just outside of the range, last: the runtime may crash on them."""
    found = []
    for sizes in beyond_sizes(spec.inputs):
        (batch,) = _batches_at(spec, sizes, 1)
        try:
            outputs = runtime.run(batch.inputs)
        except (Refused, UnsupportedError):
            found.append(BeyondRun(sizes=tuple(sizes.items()), outcome="refused"))
            continue
        except Killed:
            raise
        except VerificationError:
            found.append(BeyondRun(sizes=tuple(sizes.items()), outcome="crashes"))
            break
        found.append(BeyondRun(sizes=tuple(sizes.items()), outcome=_answers(spec, batch, outputs)))
    return tuple(found)


def _answers(spec: VerifySpec, batch: Batch, outputs: Outputs) -> Literal["same", "other"]:
    """Return "same" where the outputs are near those of fp32, "other" where they are not, or fp32 fails there."""
    try:
        expected = spec.fp32(batch) if spec.fp32 else ()
    except Exception:  # the user's forward may raise anything
        return "other"
    if [one.shape for one in expected] != [one.shape for one in outputs]:
        return "other"
    sums = Comparison(nominal=True)
    sums.add(expected, outputs)
    return "same" if sums.sqnr_db >= _NEAR_DB else "other"


def _batches_at(spec: VerifySpec, sizes: Sizes, samples: int) -> Iterator[Batch]:
    """Yield so many samples, spread over the data, at these sizes."""
    specs = fixed_at(spec.inputs, sizes)
    axes = [{one.axis: one.name for one in item.varying} for item in spec.inputs]
    for row in sorted(spread(spec.samples.count, samples)):
        (whole,) = batches(_only(spec.samples, row), spec.inputs)
        if spec.language is not None:  # a later golden sample's place leaves no room for the largest sizes
            whole = replace(whole, inputs=(whole.inputs[0], np.zeros_like(whole.inputs[1])))
        for is_from_end in (False, True):
            inputs = tuple(
                _resized(array, item.shape, tuple(known), is_from_end=is_from_end)
                for array, item, known in zip(whole.inputs, specs, axes, strict=True)
            )
            sample = whole.samples[0]
            name = f"{sample.name} at {sizes_text(sizes)}"
            digest = f"{sample.digest} at {sizes_text(sizes)}{' from its end' if is_from_end else ''}"
            sized = Sample(inputs=inputs, raw=inputs, label=None, name=name, digest=digest)
            batch = Batch(inputs=inputs, samples=(sized,))
            # of a mask that is padded in front, the beginning may leave nothing to compute
            if is_from_end or _is_finite(spec, batch):
                yield batch
                break


def _only(samples: Dataset, row: int) -> Dataset:
    return replace(samples, count=1, read=lambda _: samples.read(row))


def _resized(
    array: NDArray[np.generic], shape: tuple[int, ...], axes: tuple[int, ...], *, is_from_end: bool
) -> NDArray[np.generic]:
    for axis in axes:
        size, wanted = array.shape[axis], shape[axis]
        places = np.arange(wanted) - (wanted if is_from_end else 0)
        array = np.take(array, places % size, axis=axis)
    return np.ascontiguousarray(array)


def _is_finite(spec: VerifySpec, batch: Batch) -> bool:
    """Whether fp32 gives finite outputs; also where it fails, or there is none to ask."""
    try:
        outputs = spec.fp32(batch) if spec.fp32 else ()
    except EdgeqError:
        raise
    except Exception:  # the user's forward may raise anything
        return True
    return all(np.isfinite(one).all() for one in outputs if one.dtype.kind == "f")
