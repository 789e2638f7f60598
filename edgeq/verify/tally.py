"""What is gathered of outputs while the samples run, and what it comes to."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.artifacts import ClassDrop, Fidelity, OutputAgreement, TensorSpec
from edgeq.intervals import effective_count
from edgeq.samples import Batch, Sample, batch_size
from edgeq.verify.any_batch import Extremes
from edgeq.verify.flips import FlipTally
from edgeq.verify.metrics import Comparison, Outputs, class_drops, is_ranking, paired_drop_pp, top1
from edgeq.verify.parity import ParityTally
from edgeq.verify.rows import Variety, cut, of_sample, real_rows, row_keys, scored
from edgeq.verify.scoring import Mismatches, batch_scores, chosen_metric
from edgeq.verify.spec import VerifySpec

PARITY_SAMPLES = 8  # the converted graph runs far slower than the artifact
GOLDEN_SAMPLES = 4
MOST_CLASSES = 100  # of which the drop is kept


@dataclass(slots=True)
class Tally:
    """What is gathered while the samples run."""

    parity: ParityTally = field(default_factory=ParityTally)
    for_parity: list[tuple[Batch, Outputs]] = field(default_factory=list)
    fidelity: Comparison = field(default_factory=lambda: Comparison(by_channel=True))
    ranks: dict[int, Ranks] = field(default_factory=dict)
    keys: list[Hashable] = field(default_factory=list)
    row_keys: list[Hashable] = field(default_factory=list)
    row_labels: list[int] = field(default_factory=list)
    batches: int = 0
    extremes: Extremes = field(default_factory=Extremes)
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

    def class_drops(self) -> tuple[tuple[ClassDrop, ...], bool]:
        """Return the drop of each class, and whether labels said which sample is of which class.

        Without labels fp32's own answers do: a class that the artifact no longer names is lost all the same.
        """
        ranks = self.ranks.get(0)
        if ranks is None:
            return (), False
        by_labels = len(self.row_labels) == len(ranks.fp32)
        labels = self.row_labels if by_labels else ranks.fp32
        return class_drops(labels, ranks.fp32, ranks.measured, self.row_keys)[:MOST_CLASSES], by_labels


@dataclass(slots=True)
class Ranks:
    """The first class of each row of one output, by fp32 and by the artifact, and the rows in which it is tied."""

    fp32: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    tied: int = 0

    def add(self, reference: NDArray[Any], measured: NDArray[Any]) -> None:
        """Add the scores of some rows, [rows, classes] each; a row that is not finite agrees with nothing."""
        finite = np.isfinite(reference).all(axis=1) & np.isfinite(measured).all(axis=1)
        self.fp32 += reference.argmax(axis=1).tolist()
        self.measured += np.where(finite, measured.argmax(axis=1), -1).tolist()
        self.tied += int((_first_is_shared(measured) & ~_first_is_shared(reference)).sum())

    def agreement(self, output: int, keys: list[Hashable]) -> OutputAgreement:
        """Return how often both name the same class, beside how often they would by chance."""
        fp32, measured = np.asarray(self.fp32), np.asarray(self.measured)
        count = len(fp32)
        of_fp32, of_measured = Counter(self.fp32), Counter(self.measured)
        return OutputAgreement(
            output=output,
            agreeing=int((fp32 == measured).sum()),
            ranked=count,
            distinct=max(1, round(effective_count(keys))) if len(keys) == count else count,
            chance=sum(times * of_measured[label] for label, times in of_fp32.items()) / count**2,
        )


def _first_is_shared(scores: NDArray[Any]) -> NDArray[np.bool_]:
    shared: NDArray[np.bool_] = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return shared


@functools.cache
def spread(count: int, wanted: int) -> frozenset[int]:
    """Return `wanted` of `count` batches that are spread over all, the first among them.

    Each lies further into its part than the one before in its own, since data may repeat with a period: class by class
    in turn.
    """
    if wanted >= count:
        return frozenset(range(count))
    return frozenset(i * count // wanted + i * (count // wanted) // wanted for i in range(wanted))


def compare(spec: VerifySpec, tally: Tally, batch: Batch, outputs: Outputs) -> None:
    """Take in a batch with its outputs: against the graph and fp32, where `spec` has them, and the labels."""
    if not tally.shapes:
        tally.shapes = tuple(
            TensorSpec(name=f"output{i}", dtype=str(array.dtype), shape=array.shape) for i, array in enumerate(outputs)
        )
    _look(tally, batch, outputs)
    measured = cut(batch, outputs)
    rows = batch_size(spec.samples, spec.inputs) or 1
    if tally.batches in spread(-(-spec.samples.count // rows), -(-PARITY_SAMPLES // rows)):
        tally.for_parity.append((batch, measured))
    tally.batches += 1
    tally.extremes.look(batch.samples)
    tally.row_keys += row_keys(batch)
    reference = spec.fp32(batch) if spec.fp32 else None
    if reference is not None:
        tally.reference.look(batch, reference)
        if same_shapes(tally, cut(batch, reference), measured, "fp32"):
            tally.fidelity.add(cut(batch, reference), measured, rows=real_rows(batch))
            tally.flips.add(batch, cut(batch, reference), measured)
            for index, pair in enumerate(zip(cut(batch, reference), measured, strict=True)):
                if is_ranking(pair[0]) and len(pair[0]) == real_rows(batch):
                    tally.ranks.setdefault(index, Ranks()).add(*pair)
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
        labels = [int(np.asarray(label).item()) for _, label in scored(batch, measured, by_row=True)]
        tally.labels.update(labels)
        tally.row_labels += labels
        tally.keys += row_keys(batch)
    else:
        tally.keys += [sample.digest for sample in batch.samples]
    if reference is not None:
        fp32_scores = batch_scores(score, batch, reference)
        tally.fp32_scores += fp32_scores
        if score is not top1:
            tally.mismatches.add(score, batch, reference, fp32_scores, labelled=spec.samples.labelled)


def fidelity_of(spec: VerifySpec, tally: Tally) -> Fidelity:
    """Return what was taken in, against fp32."""
    sums = tally.fidelity
    has_fp32 = sums.elements > 0
    paired = len(tally.fp32_scores) == len(tally.scores) > 0
    pairs = dict(zip(tally.keys, zip(tally.fp32_scores, tally.scores, strict=True), strict=True)) if paired else {}
    classes, by_labels = tally.class_drops() if spec.is_evaluation else ((), False)
    ranks = tally.ranks.get(0)
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
        drop_pp=paired_drop_pp(tally.fp32_scores, tally.scores, tally.keys) if paired else None,
        chance_score=max(tally.labels.values()) / tally.labels.total() if tally.labels else None,
        mismatch_drop_pp=tally.mismatches.drop_pp(),
        distinct=len(set(tally.row_keys)),
        lost=sum(before > after for before, after in pairs.values()) if paired else None,
        won=sum(before < after for before, after in pairs.values()) if paired else None,
        groups=sums.groups(classes=bool(tally.labels)),
        agreements=tuple(found.agreement(i, tally.row_keys) for i, found in sorted(tally.ranks.items())),
        classes=classes,
        by_labels=by_labels,
        tied=ranks.tied / len(ranks.fp32) if ranks else None,
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
