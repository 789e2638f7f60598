"""The verify step: run the artifact in its runtime and compare it with its graph and with fp32."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgeq.artifacts import (
    Fidelity,
    GoldenSet,
    KernelShare,
    LoweredModel,
    TensorSpec,
    Timing,
    VerifyReport,
)
from edgeq.errors import EdgeqError, UsageError
from edgeq.job import Progress
from edgeq.samples import Batch, Dataset, Sample, batches
from edgeq.verify.any_batch import batch_findings
from edgeq.verify.flips import FlipTally
from edgeq.verify.golden import golden_set
from edgeq.verify.host import HostRuntime
from edgeq.verify.kernels import kernel_share
from edgeq.verify.metrics import Comparison, Outputs, paired_drop_pp, percentile_ms, top1
from edgeq.verify.parity import Forward, ParityTally
from edgeq.verify.rows import Variety, another_input, cut, of_sample, real_rows, scored
from edgeq.verify.scoring import Metric, Mismatches, batch_scores, chosen_metric

Observer = Callable[[Batch, Outputs, Outputs | None], None]

PARITY_SAMPLES = 8  # the converted graph runs fifty times slower than the artifact
GOLDEN_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySpec:
    """Input of the verify step.

    Attributes:
        lowered: the artifact on disk.
        inputs: the model's inputs.
        graph: computes what the artifact is to compute; None for an artifact that came as it is.
        fp32: the float model; None for an artifact that came as it is.
        output_steps: quantization steps of the outputs, where known.
        samples: evaluation data, or random inputs.
        is_evaluation: which of the two.
        metric: a score per sample, or None for top-1.
        scheme: the quantization scheme.
        backend, threads: how the runtime is set.
        warmup, runs: of the latency measurement.
        observe: is given each batch with the artifact's outputs, and those of fp32 where there is one.
    """

    lowered: LoweredModel
    inputs: tuple[TensorSpec, ...]
    graph: Forward | None
    fp32: Forward | None
    output_steps: tuple[float | None, ...]
    samples: Dataset
    is_evaluation: bool
    metric: Metric | None
    metric_name: str
    scheme: str
    backend: str
    threads: int
    progress: Progress
    label: str
    warmup: int = 5
    runs: int = 30
    observe: Observer | None = None


@dataclass(slots=True)
class Tally:
    """What is gathered while the samples run."""

    parity: ParityTally = field(default_factory=ParityTally)
    fidelity: Comparison = field(default_factory=Comparison)
    fp32_scores: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    mismatches: Mismatches = field(default_factory=Mismatches)
    labels: Counter[int] = field(default_factory=Counter)
    findings: dict[str, None] = field(default_factory=dict)
    golden: list[tuple[Sample, Outputs]] = field(default_factory=list)
    measured: Variety = field(default_factory=Variety)
    reference: Variety = field(default_factory=Variety)
    flips: FlipTally = field(default_factory=FlipTally)
    digests: set[str] = field(default_factory=set)
    shapes: tuple[TensorSpec, ...] = ()
    samples: int = 0


def verify(spec: VerifySpec, runtime: HostRuntime) -> tuple[VerifyReport, GoldenSet]:
    """Run the artifact on the samples, compare, time and profile it.

    Returns:
        What was seen, and a few samples with the artifact's outputs for a device's self-test.

    Raises:
        VerificationError: the artifact cannot be loaded or crashes the runtime.
        UsageError: samples that do not fit, or a metric that fails.
    """
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
    report = VerifyReport(
        host=f"host {host_arch()}",
        parity=tally.parity.result(spec.graph) if spec.graph else None,
        fidelity=fidelity_of(spec, tally),
        timing=timing,
        kernels=kernels,
        peak_memory_bytes=peak,
        load_ms=loaded.load_ms,
        outputs=tally.shapes,
        findings=findings_of(spec, tally),
        flips=tally.flips.result(),
    )
    return report, golden_set(tally.golden, spec.output_steps, scheme=spec.scheme)


def _look_at_any_batch(spec: VerifySpec, tally: Tally, first: Batch, runtime: HostRuntime) -> None:
    """Note whether an artifact for any batch size answers to several as to each; last, lest it raise the memory."""
    if spec.lowered.dynamic_batch:
        seen = [batch for batch, _ in tally.parity.batches] or [first]
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


def compare(spec: VerifySpec, tally: Tally, batch: Batch, outputs: Outputs) -> None:
    """Take in a batch with its outputs: against the graph and fp32, where `spec` has them, and the labels."""
    if not tally.shapes:
        tally.shapes = tuple(
            TensorSpec(name=f"output{i}", dtype=str(array.dtype), shape=array.shape) for i, array in enumerate(outputs)
        )
    _look(tally, batch, outputs)
    measured = cut(batch, outputs)
    if spec.graph is not None and tally.parity.samples < PARITY_SAMPLES:
        expected = cut(batch, spec.graph(batch))
        if _same_shapes(tally, expected, measured, "the converted graph"):
            tally.parity.add(batch, expected, measured, spec.output_steps)
    reference = spec.fp32(batch) if spec.fp32 else None
    if reference is not None:
        tally.reference.look(batch, reference)
        if _same_shapes(tally, cut(batch, reference), measured, "fp32"):
            tally.fidelity.add(cut(batch, reference), measured, rows=real_rows(batch))
            tally.flips.add(batch, cut(batch, reference), measured)
    _score(spec, tally, batch, reference, outputs)
    if spec.observe is not None:
        spec.observe(batch, outputs, reference)
    tally.samples += batch.rows
    if len(tally.golden) < GOLDEN_SAMPLES:
        tally.golden.append((batch.samples[0], of_sample(batch, outputs, 0)))


def _look(tally: Tally, batch: Batch, outputs: Outputs) -> None:
    """Note outputs that are wrong whatever the limits."""
    for index, array in enumerate(outputs):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            tally.findings[f"output{index} holds NaN or Inf"] = None
    tally.measured.look(batch, outputs)
    if len(tally.digests) < 2:
        tally.digests.update(sample.digest for sample in batch.samples)


def _probe(tally: Tally, batch: Batch, runtime: HostRuntime) -> None:
    """Where all samples are one and the same, try another input, lest a dead model go unnoticed."""
    inputs = another_input(batch)
    if inputs is not None:
        tally.measured.look(batch, runtime.run(inputs))
    elif not any(tally.measured.varied):
        what = "every input is the same, so that no one can tell whether the output is constant:"
        tally.findings[f"{what} give --input its range of values, or --eval-data"] = None


def _same_shapes(tally: Tally, expected: Outputs, measured: Outputs, of: str) -> bool:
    left, right = ([array.shape for array in side] for side in (expected, measured))
    if left == right:
        return True
    tally.findings[f"outputs have the shapes {right}, those of {of} {left}"] = None
    return False


def _score(spec: VerifySpec, tally: Tally, batch: Batch, reference: Outputs | None, measured: Outputs) -> None:
    score = chosen_metric(spec.metric, measured, labelled=spec.samples.labelled) if spec.is_evaluation else None
    if score is None:
        return
    tally.scores += batch_scores(score, batch, measured)
    if score is top1:
        tally.labels.update(int(np.asarray(label).item()) for _, label in scored(batch, measured, by_row=True))
    if reference is not None:
        fp32_scores = batch_scores(score, batch, reference)
        tally.fp32_scores += fp32_scores
        if score is not top1:
            tally.mismatches.add(score, batch, reference, fp32_scores)


def fidelity_of(spec: VerifySpec, tally: Tally) -> Fidelity:
    """Return what was taken in, against fp32."""
    sums = tally.fidelity
    has_fp32 = sums.elements > 0
    paired = len(tally.fp32_scores) == len(tally.scores) > 0
    return Fidelity(
        samples=tally.samples,
        inputs="evaluation" if spec.is_evaluation else "random",
        sqnr_db=sums.sqnr_db if has_fp32 else None,
        cosine=sums.cosine if has_fp32 else None,
        max_abs=sums.max_abs if has_fp32 else None,
        top1_agreement=sums.top1_agreement,
        metric=spec.metric_name if tally.scores else None,
        fp32_score=float(np.mean(tally.fp32_scores)) if tally.fp32_scores else None,
        score=float(np.mean(tally.scores)) if tally.scores else None,
        drop_pp=paired_drop_pp(tally.fp32_scores, tally.scores) if paired else None,
        chance_score=max(tally.labels.values()) / tally.labels.total() if tally.labels else None,
        mismatch_drop_pp=tally.mismatches.drop_pp(),
    )


def findings_of(spec: VerifySpec, tally: Tally) -> tuple[str, ...]:
    """Return what is wrong with the outputs whatever the limits."""
    findings = list(tally.findings)
    if not findings:
        findings += _constants(tally)
    if spec.fp32 is not None and not tally.fidelity.finite and not findings:
        findings.append("the fp32 model's own output holds NaN or Inf")
    return tuple(findings)


def _constants(tally: Tally) -> list[str]:
    """Name outputs that do not follow the input. One of several may be constant by design, if fp32's is too."""
    varied = tally.measured.varied
    if not any(varied):
        return ["the output is constant: it is the same for every input"]
    pairs = zip(varied, tally.reference.varied, strict=False)
    return [f"output{i} is constant, while that of fp32 is not" for i, (m, r) in enumerate(pairs) if r and not m]
