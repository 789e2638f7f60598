"""The verify step: run the artifact in its runtime and compare it with its graph and with fp32."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.artifacts import (
    GoldenSet,
    KernelShare,
    Parity,
    Timing,
    VerifyReport,
)
from edgeq.errors import EdgeqError, UsageError
from edgeq.machine import host_arch
from edgeq.samples import Batch, Sample, batch_size, batches
from edgeq.verify.any_batch import batch_findings, in_mixed_order, mixed_batch_findings
from edgeq.verify.golden import golden_set, sqnr_floor_db
from edgeq.verify.host import HostRuntime, Loaded
from edgeq.verify.kernels import kernel_share
from edgeq.verify.metrics import Comparison, percentile_ms
from edgeq.verify.parity import Forward
from edgeq.verify.rows import another_input, cut
from edgeq.verify.spec import VerifySpec
from edgeq.verify.tally import Tally, compare, fidelity_of, findings_of, same_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What running the artifact alone gave; its graph has not run yet. A stand-in is not timed."""

    tally: Tally
    loaded: Loaded
    timing: Timing | None = None
    kernels: KernelShare | None = None
    peak_memory_bytes: int | None = None


def verify(spec: VerifySpec, runtime: HostRuntime) -> tuple[VerifyReport, GoldenSet]:
    """Run the artifact on the samples, time and profile it, and compare it with fp32 and with its graph.

    Returns:
        What was seen, and a few samples with the artifact's outputs for a device's self-test.

    Raises:
        VerificationError: the artifact cannot be loaded or crashes the runtime.
        UsageError: samples that do not fit, or a metric that fails.
    """
    return judge(spec, run_artifact(spec, runtime))


def run_artifact(spec: VerifySpec, runtime: HostRuntime) -> Ran:
    """Do what needs the child process: it takes memory, and so may be ended before `judge`; raises as `verify`."""
    lowered = spec.lowered
    loaded = runtime.load(lowered.path, runtime=lowered.runtime, backend=spec.backend, threads=spec.threads)
    tally = Tally()
    first: Batch | None = None
    size = batch_size(spec.samples, spec.inputs)
    samples = in_mixed_order(spec.samples) if size > 1 else spec.samples
    with spec.progress.task(f"verify {spec.label}", spec.samples.count) as task:
        for batch in batches(samples, spec.inputs):
            first = first or batch
            compare(spec, tally, batch, runtime.run(batch.inputs))
            task.advance(batch.rows)
    if first is None:
        raise UsageError(f"no samples in {spec.samples.origin}", "give data with at least one sample")
    _look_at_inputs(spec, tally, first, runtime)
    if len(tally.digests) == 1:
        _probe(tally, first, runtime)
    if loaded.stand_in:
        return Ran(tally=tally, loaded=loaded)
    peak = runtime.peak_memory_bytes()
    timing, kernels = _timed(spec, runtime, first, loaded)
    _look_at_batches(spec, tally, first, runtime, size)
    return Ran(tally=tally, loaded=loaded, timing=timing, kernels=kernels, peak_memory_bytes=peak)


def judge(spec: VerifySpec, ran: Ran) -> tuple[VerifyReport, GoldenSet]:
    """Run the converted graph on some of the samples, and return what `verify` does; raises as it."""
    tally, loaded = ran.tally, ran.loaded
    where = ", emulated" if loaded.stand_in else f", {loaded.gpu}" if loaded.gpu else ""
    parity = _parity(spec.graph, spec, tally) if spec.graph else None
    report = VerifyReport(
        host=f"host {host_arch()}{where}",
        parity=parity,
        fidelity=fidelity_of(spec, tally),
        timing=ran.timing,
        kernels=ran.kernels,
        peak_memory_bytes=ran.peak_memory_bytes,
        load_ms=None if loaded.stand_in else loaded.load_ms,
        outputs=tally.shapes,
        findings=findings_of(spec, tally),
        flips=tally.flips.result(),
        stand_in=loaded.stand_in,
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
        tally.findings[f"it overwrites its caller's input {name!r}: copy the tensor in forward, x = x.clone()"] = None
    sums = Comparison()
    sums.add(once, again)
    least = sqnr_floor_db(once, spec.output_steps, spec.scheme)
    if sums.finite and not runtime.overwritten and not sums.sqnr_db >= least:
        what = "a second call on the same input answers otherwise than the first"
        tally.findings[f"{what}: {sums.sqnr_db:.1f} dB, at least {least:.1f} dB"] = None


def _look_at_batches(spec: VerifySpec, tally: Tally, first: Batch, runtime: HostRuntime, size: int) -> None:
    """Note an artifact whose answer to a sample depends on the others; last, lest it raise the memory."""
    seen = [batch for batch, _ in tally.for_parity] or [first]
    found: tuple[str, ...] = ()
    if spec.lowered.dynamic_batch:
        unlike = [_batch_of(sample) for sample in tally.extremes.samples] if size == 1 else []
        found = batch_findings([*unlike, *seen[len(seen) // 2 :], *seen], spec.output_steps, spec.scheme, runtime)
    elif size > 1:
        samples = {one.digest: one for one in (*tally.extremes.samples, *(batch.samples[0] for batch in seen))}
        if len(samples) > 1:
            found = mixed_batch_findings(list(samples.values()), size, spec.output_steps, spec.scheme, runtime)
    tally.findings |= dict.fromkeys(found)


def _batch_of(sample: Sample) -> Batch:
    return Batch(inputs=tuple(array[None] for array in sample.inputs), samples=(sample,))


def _timed(spec: VerifySpec, runtime: HostRuntime, batch: Batch, loaded: Loaded) -> tuple[Timing, KernelShare]:
    """Time and profile the artifact on one batch, with nothing else of the run going on."""
    with spec.progress.task(f"time {spec.label}"), spec.progress.alone():
        latencies = runtime.latencies_ms(batch.inputs, warmup=spec.warmup, runs=spec.runs)
        kernels = _profiled(spec, runtime, batch)
    timing = Timing(
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        runs=spec.runs,
        warmup=spec.warmup,
        threads=loaded.threads,
        arch=host_arch(),
        latencies_ms=tuple(round(value, 6) for value in latencies),
        gpu=loaded.gpu,
    )
    return timing, kernels


def _profiled(spec: VerifySpec, runtime: HostRuntime, batch: Batch) -> KernelShare:
    """Return the audit's evidence; a profile that fails leaves the audit unverified, with the reason."""
    try:
        names = runtime.kernels(batch.inputs)
    except EdgeqError as err:
        return KernelShare(int8_macs=None, kernels=(), why_unmatched=err.what)
    return kernel_share(spec.lowered.runtime, names, spec.lowered.layers)


def _parity(graph: Forward, spec: VerifySpec, tally: Tally) -> Parity:
    """Run the converted graph on the first samples."""
    with spec.progress.task(f"compare {spec.label} with its graph"):
        for batch, measured in tally.for_parity:
            expected = cut(batch, graph(batch))
            if same_shapes(tally, expected, measured, "the converted graph"):
                tally.parity.add(batch, expected, measured, spec.output_steps)
        return tally.parity.result(graph)


def _probe(tally: Tally, batch: Batch, runtime: HostRuntime) -> None:
    """Where all samples are one and the same, try another input, lest a dead model go unnoticed."""
    inputs = another_input(batch)
    if inputs is not None:
        tally.measured.look(batch, runtime.run(inputs))
    elif not any(tally.measured.varied):
        what = "every input is the same, so that no one can tell whether the output is constant:"
        tally.findings[f"{what} give --input its range of values, or --eval-data"] = None
