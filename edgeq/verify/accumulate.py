"""Statistics of outputs that accumulate while the samples run, and their results."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.intervals import effective_count
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.measured import ClassDrop, Fidelity, Flip, FlipPair, Flips, Interval, OutputAgreement, Parity
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, Outputs, Sample, batch_size
from edgeq.verify.channels import lost_channels
from edgeq.verify.metrics import (
    FEW_CLASSES,
    Comparison,
    Metric,
    Repeats,
    SetMetric,
    Variety,
    are_classes,
    class_drops,
    cut,
    is_ranking,
    mean_score,
    metric_drop_pp,
    of_sample,
    perplexity_rise,
    real_rows,
    scored,
    sequences_of,
    top1,
    unlike_infinities,
)
from edgeq.verify.spec import Forward, VerifySpec


@dataclass(slots=True)
class Extremes:
    """The samples with the smallest and the largest input: a range shared by both loses the former."""

    quietest: tuple[float, Sample] | None = None
    loudest: tuple[float, Sample] | None = None

    def look(self, samples: Sequence[Sample]) -> None:
        """Add samples, by the root mean square of their float inputs."""
        for sample in samples:
            floats = [array for array in sample.inputs if array.dtype.kind == "f" and array.size]
            power = sum(float(np.square(array, dtype=np.float64).mean()) for array in floats)
            if not np.isfinite(power):
                continue
            if self.quietest is None or power < self.quietest[0]:
                self.quietest = power, sample
            if self.loudest is None or power > self.loudest[0]:
                self.loudest = power, sample

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The two samples, if they differ."""
        found = [pair[1] for pair in (self.quietest, self.loudest) if pair is not None]
        return tuple({sample.digest: sample for sample in found}.values())


# --- Lowering parity: the artifact against the converted graph, and how much that graph amplifies rounding.


@dataclass(slots=True)
class ParityTally:
    """Sums that accumulate while the samples run."""

    sums: Comparison = field(default_factory=lambda: Comparison(by_channel=True, nominal=True))
    steps: tuple[float | None, ...] = ()
    batches: list[tuple[Batch, Outputs]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many samples were compared."""
        return sum(batch.rows for batch, _ in self.batches)

    def add(self, batch: Batch, expected: Outputs, measured: Outputs, steps: tuple[float | None, ...]) -> None:
        """Add one batch's outputs, without padding."""
        self.sums.add(expected, measured, steps)
        self.steps = steps
        self.batches.append((batch, expected))

    def result(self, graph: Forward) -> Parity:
        """Return the parity numbers; a difference beyond one step is compared with the graph's own reaction."""
        sums = self.sums
        within_a_step = sums.max_steps is not None and sums.max_steps <= 1.0
        return Parity(
            samples=self.samples,
            max_abs=sums.max_abs,
            max_steps=sums.max_steps,
            sqnr_db=sums.sqnr_db,
            differing=sums.differing / sums.elements if sums.elements else 0.0,
            near_ties=sums.near_ties,
            mean_abs=sums.error_sum / sums.elements if sums.elements else None,
            mean_magnitude=sums.magnitude_sum / sums.elements if sums.elements else None,
            lost=lost_channels(sums.groups(), self.steps),
            reaction_db=None if within_a_step or not sums.differing else self._reaction_db(graph),
        )

    def _reaction_db(self, graph: Forward) -> float | None:
        """Return the graph's SQNR against itself with every float or pixel input one int8 step up or down, seeded.

        Kernels round at ties differently in every layer, and a deep model amplifies that as it amplifies noise at its
        input. An artifact nearer to its graph than this has lost nothing that the input's own step does not lose.
        """
        rng = np.random.default_rng(0)
        sums = Comparison()
        for batch, expected in self.batches:
            if not any(_can_move(array) for array in batch.inputs):
                return None
            nudged = dataclasses.replace(batch, inputs=tuple(_nudged(array, rng) for array in batch.inputs))
            sums.add(expected, cut(batch, graph(nudged)))
        return None if math.isnan(sums.sqnr_db) else sums.sqnr_db


def _can_move(array: NDArray[Any]) -> bool:
    return array.size > 0 and (array.dtype.kind == "f" or array.dtype == np.uint8)


def _nudged(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move every element of a float array by 1/255 of its range, up or down, and pixels by one."""
    if not _can_move(array):
        return array
    if array.dtype == np.uint8:
        moved = array.astype(np.int16) + rng.choice(np.array([-1, 1], np.int16), array.shape)
        return np.asarray(np.clip(moved, array.min(), array.max()), np.uint8)
    step = float(array.max() - array.min()) / 255
    return np.asarray(array + rng.choice([-step, step], array.shape), array.dtype)


# --- Which score a sample gets, and how a batch is scored.


_MOST = 128


def chosen_metric(metric: Metric | SetMetric | None, outputs: Outputs, *, labelled: bool) -> Metric | SetMetric | None:
    """Return the user's metric, top-1 for labelled samples and outputs that rank classes, or None."""
    if metric is None and labelled and is_ranking(outputs[0]):
        return top1
    return metric


def batch_scores(score: Metric | SetMetric, batch: Batch, outputs: Outputs) -> list[Any]:
    """Return the score of each sample of a batch, or the row that it adds to a score of the whole set.

    Raises:
        UsageError: the metric gave a value that is not finite, or the labels do not fit.
    """
    return [_sample_score(score, *pair) for pair in scored(batch, outputs, by_row=score is top1)]


def _sample_score(score: Metric | SetMetric, outputs: Outputs, label: Any) -> Any:
    return score.row(outputs, label) if isinstance(score, SetMetric) else _finite(score(outputs, label))


@dataclass(slots=True)
class Mismatches:
    """Scores of outputs with another sample's label, next to those with their own label.

    A user's metric may be a loss, or not depend on the labels at all; both would pass for a score. A trained model
    scores better with the right labels than with others, which tells the direction. A score without labels must fall
    when noise as strong as the outputs is added to them.

    Attributes:
        labels: the last two different labels; samples may be sorted by class.
    """

    own: list[Any] = field(default_factory=list)
    other: list[Any] = field(default_factory=list)
    labels: tuple[Any, ...] = ()
    metric: Metric | SetMetric | None = None

    def add(
        self,
        score: Metric | SetMetric,
        batch: Batch,
        outputs: Outputs,
        scores: Sequence[Any],
        *,
        labelled: bool = True,
    ) -> None:
        """Add the samples of a batch, `labelled` as their data set is; at most `_MOST` are looked at."""
        self.metric = score
        pairs = scored(batch, outputs, by_row=False)
        for (row, label), own in zip(pairs, scores, strict=True):
            if len(self.own) >= _MOST:
                return
            if label is None and not labelled:
                with contextlib.suppress(EdgeqError):  # noise may be more than it takes
                    self.other.append(_sample_score(score, tuple(_noised(array) for array in row), None))
                    self.own.append(own)
                continue
            others = [known for known in self.labels if not _equal(known, label)]
            if others:
                with contextlib.suppress(EdgeqError):  # a pair that no sample is like may be more than it takes
                    self.other.append(_sample_score(score, row, others[-1]))
                    self.own.append(own)
            if label is not None:
                self.labels = (*others[-1:], label)

    def drop_pp(self) -> Interval | None:
        """Return the paired drop; None without samples."""
        return metric_drop_pp(self.metric, self.own, self.other) if self.own and self.metric else None


def _noised(array: NDArray[Any]) -> NDArray[Any]:
    """Return a float output with seeded noise of its own root mean square; others are returned shuffled."""
    rng = np.random.default_rng(0)
    if array.dtype.kind != "f":
        return np.asarray(rng.permutation(array.reshape(-1)).reshape(array.shape), array.dtype)
    strength = float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0
    return np.asarray(array + rng.normal(0.0, strength or 1.0, array.shape), array.dtype)


def _equal(one: Any, other: Any) -> bool:
    with contextlib.suppress(ValueError, TypeError):  # labels of the user's own kind need not compare
        return type(one) is type(other) and bool(np.array_equal(one, other))
    return False


def _finite(value: float) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise UsageError(f"the metric returned {value} for a sample", "return a finite score; higher must be better")
    return value


# --- Gathers the predictions that changed: counts of all, thumbnails of a few, so that memory stays bounded.


MAX_EXAMPLES = 24

MAX_PAIRS = 40

_SIDE_PX = 64

_MAX_LABEL = 2**31

_MAX_NAME = 80


@dataclass(slots=True)
class FlipTally:
    """The changes so far."""

    ranked: int = 0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: list[Flip] = field(default_factory=list)

    def add(self, batch: Batch, reference: Outputs, measured: Outputs) -> None:
        """Compare the classes of a batch's rows; outputs that do not rank classes, or are not finite, are skipped.

        Args:
            batch: what was run; a sample that is a whole batch stands for all of its rows.
            reference: fp32's outputs, padding cut away.
            measured: the artifact's, of the same shapes.
        """
        if not reference or not is_ranking(reference[0]) or len(reference[0]) < batch.rows:
            return
        usable = ~unlike_infinities(measured[0], reference[0]).any(axis=1)
        before, after = reference[0].argmax(axis=1), measured[0].argmax(axis=1)
        self.ranked += int(usable.sum())
        for row in np.flatnonzero(usable & (before != after)):
            pair = int(before[row]), int(after[row])
            self.pairs[pair] += 1
            if len(self.examples) < MAX_EXAMPLES:
                sample = batch.samples[min(int(row), batch.rows - 1)]
                scores = [tuple(float(out[0][row, index]) for index in pair) for out in (reference, measured)]
                self.examples.append(_flip(sample, pair, scores, row=int(row) if batch.rows == 1 else 0))

    def result(self) -> Flips | None:
        """Return the changes; None where no output ranks classes."""
        if not self.ranked:
            return None
        ordered = sorted(self.pairs.items(), key=lambda item: (-item[1], item[0]))
        return Flips(
            total=self.pairs.total(),
            ranked=self.ranked,
            pairs=tuple(FlipPair(fp32=a, artifact=b, count=count) for (a, b), count in ordered[:MAX_PAIRS]),
            examples=tuple(self.examples),
        )


def _flip(sample: Sample, pair: tuple[int, int], scores: Sequence[tuple[float, ...]], *, row: int) -> Flip:
    return Flip(
        sample=sample.name[-_MAX_NAME:],
        label=_label(sample.label, row),
        fp32=pair[0],
        artifact=pair[1],
        thumbnail=thumbnail(sample.raw[0]) if sample.raw and row == 0 else "",
        fp32_scores=scores[0],
        artifact_scores=scores[1],
    )


def _label(label: Any, row: int) -> int | None:
    """Return a class index; labels of user's own metrics may be anything."""
    values = np.asarray(label).reshape(-1) if label is not None else np.empty(0)
    if row >= values.size or values.dtype.kind not in "iuf" or not 0 <= values[row] < _MAX_LABEL:
        return None
    return int(values[row]) if int(values[row]) == values[row] else None


def thumbnail(raw: NDArray[Any]) -> str:
    """Return an image of at most 64 x 64 pixels as WebP in base64; "" where `raw` is not an image.

    Args:
        raw: uint8 [H, W] or [H, W, C] with one or three channels, as an app has it before preprocessing.
    """
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or 0 in raw.shape:
        return ""
    pixels = raw[:, :, 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        return ""
    from PIL import Image

    image = Image.fromarray(pixels)
    is_small = max(image.size) <= _SIDE_PX
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    sink = io.BytesIO()
    # a few pixels blown up in the page must stay themselves
    image.convert("RGB").save(sink, "WEBP", lossless=is_small, quality=80)
    return base64.b64encode(sink.getvalue()).decode()


PARITY_SAMPLES = 8  # the converted graph runs far slower than the artifact

GOLDEN_SAMPLES = 4

MOST_CLASSES = 100  # of which the drop is kept


@dataclass(slots=True)
class Tally:
    """Sums that accumulate while the samples run.

    Attributes:
        words: of a language model the most likely next token, at each place.
        scored: of each score the rows that it is of, by their numbers in `repeats`.
    """

    parity: ParityTally = field(default_factory=ParityTally)
    for_parity: list[tuple[Batch, Outputs]] = field(default_factory=list)
    fidelity: Comparison = field(default_factory=lambda: Comparison(by_channel=True, nominal=True))
    ranks: dict[int, Ranks] = field(default_factory=dict)
    words: Ranks = field(default_factory=lambda: Ranks())
    indices: dict[int, Indices] = field(default_factory=dict)
    scored: list[range] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    repeats: Repeats = field(default_factory=Repeats)
    row_labels: list[int] = field(default_factory=list)
    batches: int = 0
    extremes: Extremes = field(default_factory=Extremes)
    metric: Metric | SetMetric | None = None
    fp32_scores: list[Any] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
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

    def class_drops(self, row_keys: Sequence[Hashable]) -> tuple[tuple[ClassDrop, ...], bool]:
        """Return the drop of each class, and whether the classes come from labels.

        Without labels, fp32's predictions are the classes: a class that the artifact no longer predicts is still lost.
        """
        ranks = self.ranks.get(0)
        if ranks is None:
            return (), False
        by_labels = len(self.row_labels) == len(ranks.fp32)
        labels, measured = (self.row_labels, ranks.measured) if by_labels else (ranks.fp32, ranks.settled)
        return class_drops(labels, ranks.fp32, measured, row_keys)[:MOST_CLASSES], by_labels


@dataclass(slots=True)
class Ranks:
    """The top-1 class of each row of one output, by fp32 and by the artifact, and the rows with a tie.

    Attributes:
        settled: the artifact's, or fp32's where its scores of both are next to the end of a fixed range, as those of a
            sigmoid or tanh that saturates are: which of several certain answers is the first says nothing.
        tied: rows in which the artifact alone has a tie.
    """

    fp32: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    tied: int = 0

    def add(self, reference: NDArray[Any], measured: NDArray[Any]) -> None:
        """Add the scores of some rows, [rows, classes] each; one with a NaN, or its own Inf, never agrees."""
        usable = ~unlike_infinities(measured, reference).any(axis=1)
        first = reference.argmax(axis=1)
        named = np.where(usable, measured.argmax(axis=1), -1)
        self.fp32 += first.tolist()
        self.measured += named.tolist()
        self.settled += np.where(usable & _is_saturated(reference, named), first, named).tolist()
        self.tied += int((_first_is_shared(measured) & ~_first_is_shared(reference)).sum())

    def agreement(self, output: int, keys: list[Hashable]) -> OutputAgreement:
        """Return how often both have the same top-1 class, and how often they would by chance."""
        fp32, measured = np.asarray(self.fp32), np.asarray(self.settled)
        count = len(fp32)
        of_fp32, of_measured = Counter(self.fp32), Counter(self.settled)
        return OutputAgreement(
            output=output,
            agreeing=int((fp32 == measured).sum()),
            ranked=count,
            distinct=max(1, round(effective_count(keys))) if len(keys) == count else count,
            chance=sum(times * of_measured[label] for label, times in of_fp32.items()) / count**2,
        )


@dataclass(slots=True)
class Indices:
    """How often an output of class indices, [rows, …] of whole numbers, names which class where fp32 names which.

    Attributes:
        pairs: int64 [classes, classes], by fp32's class and the artifact's.
        are_classes: whether all values of fp32 were those of a few classes.
    """

    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros((FEW_CLASSES + 1, FEW_CLASSES + 1), np.int64))
    are_classes: bool = True

    def add(self, reference: NDArray[Any], measured: NDArray[Any]) -> None:
        """Add the values of some rows, of any shape."""
        self.are_classes = self.are_classes and (reference.dtype.kind == "b" or are_classes(reference))
        if self.are_classes:
            other = np.where((measured >= 0) & (measured < FEW_CLASSES), measured, FEW_CLASSES).astype(np.int64)
            codes = reference.astype(np.int64) * (FEW_CLASSES + 1) + other
            self.pairs += np.bincount(codes.reshape(-1), minlength=self.pairs.size).reshape(self.pairs.shape)

    def agreement(self, output: int, keys: list[Hashable]) -> OutputAgreement:
        """Return how often both name the same class, beside how often they would by chance."""
        count = int(self.pairs.sum())
        return OutputAgreement(
            output=output,
            agreeing=int(np.trace(self.pairs)),
            ranked=count,
            distinct=max(1, round(effective_count(keys))),
            chance=float(self.pairs.sum(axis=1) @ self.pairs.sum(axis=0)) / count**2,
        )


def _is_saturated(scores: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a row's score of its class lies within half an int8 step of 1, in scores of 0 to 1 or of -1 to 1."""
    low, high = scores.min(axis=1), scores.max(axis=1)
    half_a_step = np.where(low < 0, 2.0, 1.0) / 510
    chosen = np.take_along_axis(scores, np.maximum(classes, 0)[:, None], axis=1)[:, 0]
    saturated: NDArray[np.bool_] = (low >= -1) & (high <= 1) & (chosen >= 1 - half_a_step)
    return saturated


def _first_is_shared(scores: NDArray[Any]) -> NDArray[np.bool_]:
    shared: NDArray[np.bool_] = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return shared


@functools.cache
def spread(count: int, wanted: int) -> frozenset[int]:
    """Return the indices of `wanted` of `count` batches, spread over all of them; 0 is one.

    Data may repeat with a period, such as one sample of each class in turn. So the distance between indices is not
    constant: each index lies further into its part than the index before. If all would be multiples of one number,
    every third one is moved back by one.
    """
    if wanted >= count:
        return frozenset(range(count))
    found = [i * count // wanted + i * (count // wanted) // wanted for i in range(wanted)]
    if math.gcd(*found) > 1:
        found = [index - (i % 3 == 1) for i, index in enumerate(found)]
    return frozenset(found)


def compare(spec: VerifySpec, tally: Tally, batch: Batch, fed: Batch, outputs: Outputs) -> None:
    """Add a batch with its outputs: compare with the graph and fp32, where `spec` has them, and with the labels.

    Args:
        spec: what to compare with.
        tally: what the batch is added to.
        batch: for fp32; a state in it is the one that fp32 has reached.
        fed: what ran, and what the graph is given; a state in it is the one that the artifact has reached.
        outputs: what it gave.
    """
    if not tally.shapes:
        names = spec.output_names or tuple(f"output{i}" for i in range(len(outputs)))
        tally.shapes = tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=array.shape)
            for name, array in zip(names, outputs, strict=True)
        )
    states = {one.fed_from for one in spec.inputs}
    measured = cut(batch, outputs)
    rows = batch_size(spec.samples, spec.inputs) or 1
    if tally.batches in spread(-(-spec.samples.count // rows), -(-PARITY_SAMPLES // rows)):
        tally.for_parity.append((fed, measured))
    tally.batches += 1
    tally.extremes.look(batch.samples)
    reference = spec.fp32(batch) if spec.fp32 else None
    _look(tally, batch, outputs, reference)
    rows_added = tally.repeats.add(batch, reference)
    if reference is not None:
        tally.reference.look(batch, reference)
        if same_shapes(tally, cut(batch, reference), measured, "fp32"):
            tally.fidelity.add(cut(batch, reference), measured, rows=real_rows(batch))
            if spec.language is not None:
                tally.words.add(*(array.reshape(-1, array.shape[-1]) for array in (reference[0], measured[0])))
            over_axes = tally.fidelity.over_axes
            if not any(over_axes[:1]):
                tally.flips.add(batch, cut(batch, reference), measured)
            for index, pair in enumerate(zip(cut(batch, reference), measured, strict=True)):
                # positions along a size that varies are no classes
                if (
                    index not in states
                    and is_ranking(pair[0])
                    and len(pair[0]) == real_rows(batch)
                    and not any(over_axes[index : index + 1])
                ):
                    tally.ranks.setdefault(index, Ranks()).add(*pair)
                if pair[0].dtype.kind in "iub" and pair[0].ndim and len(pair[0]) == real_rows(batch):
                    tally.indices.setdefault(index, Indices()).add(*pair)
    _score(spec, tally, batch, rows_added, reference, outputs)
    if spec.observe is not None:
        spec.observe(fed, outputs, reference)
    tally.samples += batch.rows
    known = tally.golden[0][0].inputs if tally.golden else batch.samples[0].inputs  # they are stacked
    same = [one.shape for one in known] == [one.shape for one in batch.samples[0].inputs]
    if same and len(tally.golden) < GOLDEN_SAMPLES:
        tally.golden.append((fed.samples[0], of_sample(fed, outputs, 0)))


def expect_outputs(tally: Tally, outputs: tuple[TensorSpec, ...]) -> None:
    """State the outputs whose sizes vary, before any is added."""
    tally.shapes = outputs
    over_axes = tuple(tuple(one.axis for one in spec.varying if one.axis) for spec in outputs)
    tally.fidelity.over_axes = tally.parity.sums.over_axes = over_axes


def _look(tally: Tally, batch: Batch, outputs: Outputs, reference: Outputs | None) -> None:
    """Note outputs that are wrong whatever the limits."""
    found = infinity_findings(outputs, reference, "fp32")
    if found and reference is not None and not all(np.isfinite(array).all() for array in reference):
        found.append(
            "the fp32 model's own output holds NaN or Inf: let forward return finite numbers, such as "
            "masked_fill(mask, -1e4)"
        )
    tally.findings |= dict.fromkeys(found)
    tally.measured.look(batch, outputs)
    if len(tally.digests) < 2:
        tally.digests.update(sample.digest for sample in batch.samples)


def infinity_findings(outputs: Outputs, reference: Outputs | None, of: str) -> list[str]:
    """Name outputs with NaN, or with Inf where the reference has not the same, and outputs that lack its Inf.

    A model may give -Inf to what a mask leaves out: an artifact that gives it at the same places has lost nothing.

    Args:
        outputs: to judge.
        reference: what they are compared with; None where there is nothing, and every Inf is named.
        of: what gave the reference.
    """
    if reference is not None and [array.shape for array in reference] != [array.shape for array in outputs]:
        reference = None
    found = []
    for index, array in enumerate(outputs):
        expected = None if reference is None else reference[index]
        strange = unlike_infinities(array, expected)
        if (strange & ~np.isfinite(array)).any():
            also = f", unlike that of {of}" if expected is not None and np.isfinite(expected[strange]).any() else ""
            found.append(f"output{index} holds NaN or Inf{also}")
        elif strange.any():
            found.append(f"output{index} is finite where that of {of} holds NaN or Inf")
    return found


def same_shapes(tally: Tally, expected: Outputs, measured: Outputs, of: str) -> bool:
    """Whether outputs can be compared with those of something else; notes it where not."""
    left, right = ([array.shape for array in side] for side in (expected, measured))
    if left == right:
        return True
    tally.findings[f"outputs have the shapes {right}, but those of {of} have {left}"] = None
    return False


def _score(
    spec: VerifySpec, tally: Tally, batch: Batch, rows_added: range, reference: Outputs | None, measured: Outputs
) -> None:
    score = chosen_metric(spec.metric, measured, labelled=spec.samples.labelled) if spec.is_evaluation else None
    if score is None:
        return
    tally.metric = score
    tally.scores += batch_scores(score, batch, measured)
    tally.sequences += sequences_of(batch.samples)
    each = score is top1 or len(rows_added) == batch.rows
    tally.scored += [range(row, row + 1) for row in rows_added] if each else [rows_added]
    if score is top1:
        labels = [int(np.asarray(label).item()) for _, label in scored(batch, measured, by_row=True)]
        tally.labels.update(labels)
        tally.row_labels += labels
    if reference is not None:
        fp32_scores = batch_scores(score, batch, reference)
        tally.fp32_scores += fp32_scores
        if score is not top1 and spec.language is None:  # whose labels are the text's own tokens
            tally.mismatches.add(score, batch, reference, fp32_scores, labelled=spec.samples.labelled)


def fidelity_of(spec: VerifySpec, tally: Tally) -> Fidelity:
    """Return the accumulated comparison with fp32."""
    sums = tally.fidelity
    has_fp32 = sums.elements > 0
    score = tally.metric or top1
    paired = len(tally.fp32_scores) == len(tally.scores) > 0
    of_samples = paired and not isinstance(score, SetMetric) and not tally.sequences
    row_keys = tally.repeats.keys()
    keys = [tuple(row_keys[rows.start : rows.stop]) for rows in tally.scored]
    pairs = dict(zip(keys, zip(tally.fp32_scores, tally.scores, strict=True), strict=True)) if paired else {}
    classes, by_labels = tally.class_drops(row_keys) if spec.is_evaluation else ((), False)
    ranks = tally.ranks.get(0)
    agreements = tuple(found.agreement(i, row_keys) for i, found in sorted(tally.ranks.items()))
    agreement = sums.top1_agreement
    if tally.words.fp32:
        agreements = (tally.words.agreement(0, []),)
        agreement = agreements[0].agreeing / agreements[0].ranked
    return Fidelity(
        samples=tally.samples,
        inputs="evaluation" if spec.is_evaluation else "random",
        sqnr_db=sums.sqnr_db if has_fp32 else None,
        cosine=sums.cosine if has_fp32 else None,
        max_abs=sums.max_abs if has_fp32 else None,
        top1_agreement=agreement,
        metric=spec.metric_name if tally.scores else None,
        fp32_score=mean_score(score, tally.fp32_scores) if tally.fp32_scores else None,
        score=mean_score(score, tally.scores) if tally.scores else None,
        drop_pp=metric_drop_pp(score, tally.fp32_scores, tally.scores, keys, tally.sequences) if paired else None,
        chance_score=max(tally.labels.values()) / tally.labels.total() if tally.labels else None,
        mismatch_drop_pp=tally.mismatches.drop_pp(),
        distinct=len(set(row_keys)),
        lost=sum(before > after for before, after in pairs.values()) if of_samples else None,
        won=sum(before < after for before, after in pairs.values()) if of_samples else None,
        groups=sums.groups(classes=tally.labels),
        agreements=agreements,
        indices=tuple(
            found.agreement(i, row_keys)
            for i, found in sorted(tally.indices.items())
            if found.are_classes and found.pairs.any()
        ),
        classes=classes,
        by_labels=by_labels,
        tied=ranks.tied / len(ranks.fp32) if ranks else None,
        worst_output=sums.worst_output if has_fp32 else None,
        perplexity=perplexity_rise(tally.fp32_scores, tally.scores, keys) if paired and spec.language else None,
    )


def findings_of(tally: Tally) -> tuple[str, ...]:
    """Return the faults of the outputs that do not depend on limits."""
    findings = list(tally.findings)
    if not findings:
        findings += _constants(tally)
    return tuple(findings)


def _constants(tally: Tally) -> list[str]:
    """Name outputs that do not follow the input. One of several may be constant by design, if fp32's is too."""
    varied = tally.measured.varied
    if not any(varied):
        return ["the output is constant: it is the same for every input"]
    pairs = zip(varied, tally.reference.varied, strict=False)
    return [f"output{i} is constant, unlike that of fp32" for i, (m, r) in enumerate(pairs) if r and not m]
