"""The verify step: run the artifact in its runtime and compare it with its graph and with fp32."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edgeq.artifacts import (
    GoldenSet,
    KernelShare,
    Parity,
    Timing,
    VerifyReport,
)
from edgeq.errors import EdgeqError, UsageError
from edgeq.samples import Batch, batches
from edgeq.verify.any_batch import batch_findings
from edgeq.verify.golden import golden_set
from edgeq.verify.host import HostRuntime
from edgeq.verify.kernels import kernel_share
from edgeq.verify.metrics import percentile_ms
from edgeq.verify.parity import Forward
from edgeq.verify.rows import another_input, cut
from edgeq.verify.spec import VerifySpec
from edgeq.verify.tally import Tally, compare, fidelity_of, findings_of, same_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What running the artifact alone gave; its graph has not run yet."""

    tally: Tally
    timing: Timing
    kernels: KernelShare
    peak_memory_bytes: int | None
    load_ms: float


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
    with spec.progress.task(f"verify {spec.label}", spec.samples.count) as task:
        for batch in batches(spec.samples, spec.inputs):
            first = first or batch
            compare(spec, tally, batch, runtime.run(batch.inputs))
            task.advance(batch.rows)
    if first is None:
        raise UsageError(f"no samples in {spec.samples.origin}", "give data with at least one sample")
    if len(tally.digests) == 1:
        _probe(tally, first, runtime)
    peak = runtime.peak_memory_bytes()
    timing, kernels = _timed(spec, runtime, first, loaded.threads)
    _look_at_any_batch(spec, tally, first, runtime)
    return Ran(tally=tally, timing=timing, kernels=kernels, peak_memory_bytes=peak, load_ms=loaded.load_ms)


def judge(spec: VerifySpec, ran: Ran) -> tuple[VerifyReport, GoldenSet]:
    """Run the converted graph on some of the samples, and return what `verify` does; raises as it."""
    tally = ran.tally
    parity = _parity(spec.graph, spec, tally) if spec.graph else None
    report = VerifyReport(
        host=f"host {host_arch()}",
        parity=parity,
        fidelity=fidelity_of(spec, tally),
        timing=ran.timing,
        kernels=ran.kernels,
        peak_memory_bytes=ran.peak_memory_bytes,
        load_ms=ran.load_ms,
        outputs=tally.shapes,
        findings=findings_of(spec, tally),
        flips=tally.flips.result(),
    )
    return report, golden_set(tally.golden, spec.output_steps, scheme=spec.scheme)


def _look_at_any_batch(spec: VerifySpec, tally: Tally, first: Batch, runtime: HostRuntime) -> None:
    """Note whether an artifact for any batch size answers to several as to each; last, lest it raise the memory."""
    if spec.lowered.dynamic_batch:
        seen = [batch for batch, _ in tally.for_parity] or [first]
        tally.findings |= dict.fromkeys(batch_findings(seen, spec.output_steps, spec.scheme, runtime))


def _timed(spec: VerifySpec, runtime: HostRuntime, batch: Batch, threads: int) -> tuple[Timing, KernelShare]:
    """Time and profile the artifact on one batch, with nothing else of the run going on."""
    with spec.progress.task(f"time {spec.label}"), spec.progress.alone():
        latencies = runtime.latencies_ms(batch.inputs, warmup=spec.warmup, runs=spec.runs)
        kernels = _profiled(spec, runtime, batch)
    timing = Timing(
        p50_ms=percentile_ms(latencies, 0.5),
        p90_ms=percentile_ms(latencies, 0.9),
        runs=spec.runs,
        warmup=spec.warmup,
        threads=threads,
        arch=host_arch(),
        latencies_ms=tuple(round(value, 6) for value in latencies),
    )
    return timing, kernels


def host_arch() -> str:
    """Return this machine's architecture in the words of target profiles."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


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
