"""What is gathered of outputs while the samples run, and what it comes to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from edgeq.artifacts import (
    Fidelity,
    TensorSpec,
)
from edgeq.samples import Batch, Sample
from edgeq.verify.flips import FlipTally
from edgeq.verify.metrics import Comparison, Outputs, paired_drop_pp, top1
from edgeq.verify.parity import ParityTally
from edgeq.verify.rows import Variety, cut, of_sample, real_rows, scored
from edgeq.verify.scoring import Mismatches, batch_scores, chosen_metric
from edgeq.verify.spec import VerifySpec

PARITY_SAMPLES = 8  # the converted graph runs far slower than the artifact
GOLDEN_SAMPLES = 4


@dataclass(slots=True)
class Tally:
    """What is gathered while the samples run."""

    parity: ParityTally = field(default_factory=ParityTally)
    for_parity: list[tuple[Batch, Outputs]] = field(default_factory=list)
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


def compare(spec: VerifySpec, tally: Tally, batch: Batch, outputs: Outputs) -> None:
    """Take in a batch with its outputs: against the graph and fp32, where `spec` has them, and the labels."""
    if not tally.shapes:
        tally.shapes = tuple(
            TensorSpec(name=f"output{i}", dtype=str(array.dtype), shape=array.shape) for i, array in enumerate(outputs)
        )
    _look(tally, batch, outputs)
    measured = cut(batch, outputs)
    if tally.samples < PARITY_SAMPLES:
        tally.for_parity.append((batch, measured))
    reference = spec.fp32(batch) if spec.fp32 else None
    if reference is not None:
        tally.reference.look(batch, reference)
        if same_shapes(tally, cut(batch, reference), measured, "fp32"):
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


def same_shapes(tally: Tally, expected: Outputs, measured: Outputs, of: str) -> bool:
    """Whether outputs can be compared with those of something else; notes it where not."""
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
