"""Comparing outputs: NumPy only, in float64, one batch at a time so that large sets need no memory."""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.errors import UsageError
from edgeq.core.intervals import effective_count, matched_pairs, mean_difference_half_width, share, two_sided_z
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.measured import ClassDrop, GroupFidelity, Interval, Perplexity
from edgeq.core.samples import Batch, Dataset, Outputs, Sample, rows_of
from edgeq.verify.channels import OutputChannels
from edgeq.verify.detection import MeanAveragePrecision

Metric = Callable[[Outputs, Any], float]


@dataclass(slots=True)
class _Sums:
    """Running sums of one output."""

    reference_energy: float = 0.0
    error_energy: float = 0.0
    steps: float | None = None
    elements: int = 0
    differing: int = 0
    are_classes: bool = True

    @property
    def is_settled(self) -> bool:
        """Whether the output names classes, and too few others for an error to be proven: scores that nearly tie."""
        _, high = share(self.elements - self.differing, self.elements) if self.elements else (0.0, 1.0)
        return self.are_classes and high >= SAME_CLASSES

    @property
    def sqnr_db(self) -> float:
        if self.are_classes and self.differing:
            return 10 * math.log10(self.elements / self.differing)
        if not math.isfinite(self.reference_energy + self.error_energy):
            return math.nan
        if self.error_energy == 0:
            return math.inf
        return 10 * math.log10(self.reference_energy / self.error_energy) if self.reference_energy else -math.inf


@dataclass(slots=True)
class Comparison:
    """Running sums of a reference and measured outputs.

    SQNR = 10 log10(sum reference² / sum (reference - measured)²), of the worst output, so that a large output does not
    hide it. An infinity where the reference has the same one is equal to it, and adds nothing to the sums: models give
    -Inf to what a mask leaves out. Any other value that is not finite makes the ratio NaN.

    Attributes:
        by_channel: whether `groups` is asked for afterwards.
        over_axes: of each output, the axes whose size varies: their positions count as rows of their own.
        nominal: whether whole numbers below `FEW_CLASSES` name classes, which have no distances. The ratio of such an
            output is 10 log10(all / different ones), and counts only where nothing else differs, or where it is certain
            that fewer than `SAME_CLASSES` of them are equal.
    """

    by_channel: bool = False
    nominal: bool = False
    over_axes: tuple[tuple[int, ...], ...] = ()

    measured_energy: float = 0.0
    product: float = 0.0
    max_abs: float = 0.0
    elements: int = 0
    differing: int = 0
    error_sum: float = 0.0
    magnitude_sum: float = 0.0
    measured_magnitude_sum: float = 0.0
    agreeing: int = 0
    ranked: int = 0
    finite: bool = True
    outputs: list[_Sums] = field(default_factory=list)
    channels: list[OutputChannels] = field(default_factory=list)

    def add(
        self, reference: Outputs, measured: Outputs, steps: Sequence[float | None] = (), *, rows: int | None = None
    ) -> None:
        """Add the outputs of one or more samples.

        Args:
            reference: what is compared with.
            measured: of the same shapes.
            steps: the outputs' quantization steps, where known.
            rows: how many rows a ranking has; None for any number.
        """
        for index, (expected, came) in enumerate(zip(reference, measured, strict=True)):
            if index == len(self.outputs):
                self.outputs.append(_Sums())
                self.channels.append(OutputChannels())
            is_measure = expected.dtype.kind in "fb" or expected.dtype == np.uint8
            strange = unlike_infinities(came, expected)
            if self.by_channel and is_measure and expected.size:
                axes = self.over_axes[index] if index < len(self.over_axes) else ()
                if axes:
                    kept = [size for axis, size in enumerate(expected.shape) if axis and axis not in axes]
                    to_front = [np.moveaxis(side, axes, range(1, len(axes) + 1)) for side in (expected, came)]
                    sides = [side.reshape(-1, *(kept or [1])) for side in to_front]
                else:
                    # an output without the batch axis is one row, and [N] is [N, 1]
                    known = (None, len(expected)) if expected.ndim > 1 else expected.shape
                    shape = expected.shape if rows in known else (1, *expected.shape)
                    sides = [side.reshape(shape if len(shape) > 1 else (*shape, 1)) for side in (expected, came)]
                if not strange.any():
                    self.channels[index].add(*sides)
            sums = self.outputs[index]
            step = steps[index] if index < len(steps) else None
            left, right = expected.astype(np.float64), came.astype(np.float64)
            self.finite = self.finite and not strange.any()
            # infinities of both sides are equal; what else is not finite stays so, and fails
            both = np.isinf(left) & ~strange
            left[both] = right[both] = 0.0
            with np.errstate(all="ignore"):
                error = np.abs(left - right)
                sums.reference_energy += float((left**2).sum())
                sums.error_energy += float((error**2).sum())
                self.error_sum += float(error.sum())
                self.magnitude_sum += float(np.abs(left).sum())
                self.measured_magnitude_sum += float(np.abs(right).sum())
                self.measured_energy += float((right**2).sum())
                self.product += float((left * right).sum())
            largest = float(error.max(initial=0.0))
            self.max_abs = _larger(self.max_abs, largest)
            self.elements += error.size
            self.differing += int((error != 0).sum())
            if step:
                sums.steps = _larger(sums.steps or 0.0, largest / step)
            sums.elements += error.size
            sums.differing += int((error != 0).sum())
            sums.are_classes = sums.are_classes and self.nominal and are_classes(expected)
        if reference and not any(self.over_axes[:1]) and is_ranking(reference[0]) and rows in (None, len(reference[0])):
            usable = ~unlike_infinities(measured[0], reference[0]).any(axis=1)
            self.agreeing += int((usable & (reference[0].argmax(axis=1) == measured[0].argmax(axis=1))).sum())
            self.ranked += len(reference[0])

    @property
    def max_steps(self) -> float | None:
        """The largest difference in quantization steps; None unless every output is quantized, classes aside."""
        judged = [sums for sums in self.outputs if not sums.is_settled]
        if not judged or any(sums.steps is None for sums in judged):
            return None
        return float(np.max([sums.steps for sums in judged]))  # which keeps a NaN

    @property
    def near_ties(self) -> bool:
        """Whether all that differs are a few classes: scores that nearly tie go either way."""
        differing = [sums for sums in self.outputs if sums.differing]
        return bool(differing) and all(sums.is_settled for sums in differing)

    @property
    def sqnr_db(self) -> float:
        """Signal to error of the worst output in dB; infinite for equal outputs, NaN where one is not finite."""
        if not self.finite or not self.outputs:
            return math.nan
        return float(np.min(self._ratios_db()))

    def _ratios_db(self) -> list[float]:
        ties_count = self.near_ties
        return [math.inf if sums.is_settled and not ties_count else sums.sqnr_db for sums in self.outputs]

    @property
    def worst_output(self) -> int | None:
        """The index of the output with the lowest SQNR; None where all are equal or one is not finite."""
        if math.isnan(self.sqnr_db) or self.sqnr_db == math.inf:
            return None
        return int(np.argmin(self._ratios_db()))

    def groups(self, *, classes: Collection[int] = ()) -> tuple[GroupFidelity, ...]:
        """Return the sums by output and channels of unlike range.

        Args:
            classes: channels of the first output that labels name: scores of classes have one unit.
        """
        return tuple(
            group for i, sums in enumerate(self.channels) for group in sums.groups(i, classes=classes if i == 0 else ())
        )

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all reference and all measured outputs; NaN where one is all zero."""
        norm = math.sqrt(sum(sums.reference_energy for sums in self.outputs)) * math.sqrt(self.measured_energy)
        return self.product / norm if norm else math.nan

    @property
    def top1_agreement(self) -> float | None:
        """Share of samples with the same argmax; None where the first output is not [N, classes]."""
        return self.agreeing / self.ranked if self.ranked else None


def unlike_infinities(output: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Return which values of an output, or of its reference, are NaN or an infinity that the other one lacks.

    Args:
        output: of any dtype.
        reference: of the same shape; without one, every infinity counts.
    """
    strange: NDArray[np.bool_] = ~np.isfinite(output)
    if reference is not None:
        strange = (strange | ~np.isfinite(reference)) & (output != reference)
    return strange


def _larger(one: float, other: float) -> float:
    """Return the larger, and NaN where one is NaN: max() would drop it."""
    return float(np.maximum(one, other))


FEW_CLASSES = 32  # whole numbers below it are taken for classes; larger ones may be tokens, positions or pixels

SAME_CLASSES = 0.97  # between two runs that should be equal: scores that nearly tie go either way


def are_classes(output: NDArray[Any]) -> bool:
    """Whether all values of an output are whole numbers that may be classes."""
    return output.dtype.kind in "iu" and bool(((output >= 0) & (output < FEW_CLASSES)).all())


def is_ranking(output: NDArray[Any]) -> bool:
    """Whether an output looks like scores of classes: [N, classes] of floats."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def top1(outputs: Outputs, label: Any) -> float:
    """Score one sample: 1.0 where the first output's argmax is the label. `outputs` has no batch axis.

    Raises:
        UsageError: as `class_index`.
    """
    scores = outputs[0]
    index = class_index(label, scores.size)
    return float(not np.isnan(scores).any() and int(scores.argmax()) == index)


def class_index(label: Any, classes: int) -> int:
    """Return a label as the index of the output that stands for it.

    Raises:
        UsageError: the label is not a class of the output; counting it as wrong would hide it in both models' scores.
    """
    index = np.asarray(label)
    if index.size != 1 or index.dtype.kind not in "iuf" or not np.isfinite(index).all() or index.item() % 1:
        what = f"label {str(label)[:60]!r} is not a class index"
        raise UsageError(what, "give integers as labels, or a --metric for other labels")
    if not 0 <= int(index.item()) < classes:
        what = f"label {int(index.item())} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        raise UsageError(what, "fix the labels, or map class folders to outputs with --labels")
    return int(index.item())


def paired_drop_pp(
    fp32: Sequence[float], measured: Sequence[float], keys: Sequence[Hashable] | None = None
) -> Interval:
    """Return fp32 minus measured in percentage points with its paired 95% interval.

    For scores of 0 and 1 the interval is `matched_pairs`', for others `mean_difference_half_width`'s; both count
    repeated samples once, and neither is ever of length zero.

    Args:
        fp32: a score for each sample.
        measured: the same samples' scores.
        keys: what tells the samples apart; equal ones are repeats. None where all are distinct.

    Raises:
        ValueError: no samples, not as many of both, or a score that is not finite.
    """
    before, after = np.asarray(fp32, np.float64), np.asarray(measured, np.float64)
    if before.size == 0 or before.shape != after.shape or not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("expected equally many scores of both, at least one, and all finite")
    difference = before - after
    estimate = float(difference.mean())
    count = float(difference.size) if keys is None else effective_count(keys)
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        lost, won = float((difference > 0).mean()), float((difference < 0).mean())
        low, high = matched_pairs(lost * count, won * count, count)
    else:
        scores = np.concatenate((before, after))
        values = len(np.unique(np.round(before, _DIGITS)))
        span = 0.0 if values > _FEW and 2 * values >= count else float(np.ptp(scores)) or 1.0
        half = mean_difference_half_width(difference.tolist(), count, span)
        low, high = estimate - half, estimate + half
    return Interval(estimate=100 * estimate, low=100 * low, high=100 * high)


# --- Scores of a whole set: each sample adds a row of numbers, of which the score is made.


TOP1 = "top1"

_DIGITS = 6  # of a score

_FEW = 8  # scores of fewer values, such as those of five stars, may jump from one to the next

_RESAMPLES = 1000

_IGNORED = 255  # the label of pixels that no class counts, as torchvision's and VOC's sets have it


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetric:
    """A score that no mean over samples gives, such as F1.

    Attributes:
        row: makes numbers, as many for each sample, of its outputs and its label; or any number of such lines, as of
            the boxes of an image.
        score: makes a score from 0 to 1, higher is better, of the lines of all samples, [lines, numbers].
    """

    row: Callable[[Outputs, Any], Sequence[Any] | NDArray[np.float64]]
    score: Callable[[NDArray[np.float64]], float]

    def of(self, rows: Sequence[Any]) -> float:
        """Return the score of rows; NaN where they have none, such as an AUC of labels that are all alike."""
        return self.score(_lines(rows)[0])

    def drop_pp(self, fp32: Sequence[Any], measured: Sequence[Any], keys: Sequence[Hashable] | None) -> Interval:
        """Return fp32's score minus the other's in percentage points, with the 95% interval of a paired bootstrap.

        Samples are drawn with replacement, repeats of one together, and both scores are taken of the same draw (Efron
        and Tibshirani, An Introduction to the Bootstrap, 13.3). The interval is at least as long as that of equal
        scores of 0 and 1: samples that happen to score alike say little of the next one.
        """
        groups: dict[Hashable, list[int]] = {}
        for i, key in enumerate(range(len(fp32)) if keys is None else keys):
            groups.setdefault(key, []).append(i)
        sides = []  # the lines of each model, which of them each group gave, one group after another, and how many
        for rows in (fp32, measured):
            lines, of_sample = _lines(rows)
            of_group = [np.concatenate([of_sample[i] for i in group]) for group in groups.values()]
            sides.append((lines, np.concatenate(of_group), np.array([len(of) for of in of_group])))
        rng = np.random.default_rng(0)
        drops = []
        for _ in range(_RESAMPLES):
            drawn = rng.integers(0, len(groups), len(groups))
            before, after = (self.score(lines[of[_segments(counts, drawn)]]) for lines, of, counts in sides)
            drops.append(before - after)
        before, after = (self.score(lines) for lines, _, _ in sides)
        estimate = before - after
        low, high = np.nanquantile(drops, (0.025, 0.975)) if np.isfinite(drops).any() else (-1.0, 1.0)
        least = matched_pairs(0, 0, len(groups))[1]
        return Interval(
            estimate=100 * estimate,
            low=100 * max(-1.0, min(float(low), estimate - least)),
            high=100 * min(1.0, max(float(high), estimate + least)),
        )


def _segments(counts: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the drawn segments of an array, one segment after another.

    Args:
        counts: how many elements each segment has; together they are the array.
        drawn: which segments.
    """
    starts, taken = np.cumsum(counts) - counts, counts[drawn]
    ends = np.cumsum(taken)
    indices: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(starts[drawn] - (ends - taken), taken)
    return indices


def _lines(rows: Sequence[Any]) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Return the lines of all samples, [lines, numbers], and the indices of each sample's own."""
    arrays = [np.asarray(row, np.float64) for row in rows]
    width = max((array.shape[-1] for array in arrays if array.size), default=0)
    blocks = [array.reshape(-1, width) if array.size else np.zeros((0, width)) for array in arrays]
    ends = np.cumsum([len(block) for block in blocks])
    indices = [np.arange(end - len(block), end) for block, end in zip(blocks, ends, strict=True)]
    return np.concatenate(blocks) if blocks else np.zeros((0, width)), indices


def built_in_metric(text: str, evaluation: Dataset | None, threshold: float) -> tuple[Metric | SetMetric, str]:
    """Return a metric of `edgeq.core.marks.BUILT_IN_METRICS`, and its name for reports.

    Errors are taken from 1 as shares of the range of the labels, so that percentage points mean something.

    Args:
        text: the metric, with a threshold or without: `f1`, `accuracy@0.5`.
        evaluation: the samples, whose labels give that range.
        threshold: above which a score is an answer of yes, where `text` has none: 0.5 of a probability, 0 of a logit.

    Raises:
        UsageError: labels that the metric cannot take, or a threshold that is not a number.
    """
    name, mark, given = text.partition("@")
    try:
        threshold = float(given) if mark else threshold
    except ValueError as err:
        raise UsageError(f"--metric {text}: expected a number behind the @", f"write {name}@0.5") from err
    if name == "accuracy":
        return _accuracy(threshold), f"accuracy@{threshold:g}"
    if name in ("mae", "rmse"):
        labels = [np.asarray(sample.label, np.float64) for sample in evaluation or () if sample.label is not None]
        span = float(max(map(np.max, labels)) - min(map(np.min, labels))) if labels else 0.0
        if not span > 0:
            what = f"--metric {name} needs labels of more than one value in the evaluation data"
            raise UsageError(what, "give numbers as labels, y in an .npz file")
        return SetMetric(row=_squares, score=_error_score(name, span)), f"1-{name}/{span:.4g}"
    if name == "perplexity":
        return SetMetric(row=_likelihood, score=_inverse_perplexity), "1/perplexity"
    if name == "map":
        precision = MeanAveragePrecision()
        return SetMetric(row=precision.row, score=precision.score), name
    if name == "auc":
        return SetMetric(row=_auc_row, score=_auc), name
    count = SetMetric(row=_counts_row(name, threshold), score=_f1 if name == "f1" else _mean_iou)
    return count, f"{name}@{threshold:g}"


def _accuracy(threshold: float) -> Metric:
    def score(outputs: Outputs, label: Any) -> float:
        value, wanted = (np.asarray(one).reshape(-1) for one in (outputs[0], label))
        if value.size != 1 or wanted.size != 1 or wanted[0] not in (0, 1):
            what = f"--metric accuracy@ is for one output and labels of 0 and 1, got {value.size} outputs and {label!r}"
            raise UsageError(what, "give --metric f1 or auc for several, or labels of 0 and 1")
        return float(np.isfinite(value[0]) and (value[0] > threshold) == bool(wanted[0]))

    return score


def _squares(outputs: Outputs, label: Any) -> Sequence[float]:
    """Return the mean absolute and the mean squared error of a sample."""
    value, wanted = np.asarray(outputs[0], np.float64).reshape(-1), np.asarray(label, np.float64).reshape(-1)
    if value.shape != wanted.shape:
        what = f"the label has {wanted.size} values, the first output {value.size}"
        raise UsageError(what, "give one value for each, or --metric file.py:function")
    return float(np.abs(value - wanted).mean()), float(np.square(value - wanted).mean())


def _error_score(name: str, span: float) -> Callable[[NDArray[np.float64]], float]:
    def score(rows: NDArray[np.float64]) -> float:
        error = rows[:, 0].mean() if name == "mae" else math.sqrt(rows[:, 1].mean())
        return max(0.0, 1 - float(error) / span)

    return score


def _likelihood(outputs: Outputs, label: Any) -> Sequence[float]:
    """Return the sum of the log-likelihoods of the words that follow, in nats, and how many words count."""
    logits, words = np.asarray(outputs[0], np.float64), np.asarray(label).reshape(-1)
    if logits.ndim < 2 or logits[..., 0].size != words.size or words.dtype.kind not in "iu":
        what = f"the label has {words.size} values of {words.dtype}, the first output the shape {list(logits.shape)}"
        raise UsageError(what, "give the next word of each place as the label, for an output [places, words] of logits")
    logits, counted = logits.reshape(words.size, -1), words >= 0  # -100 marks what does not count
    if words.max(initial=0) >= logits.shape[1]:
        what = f"the label has the word {words.max()}, but the output tells {logits.shape[1]} words apart"
        raise UsageError(what, "give labels from 0 up to the number of words, and -100 for what does not count")
    top = logits.max(axis=1)
    log_sums = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    told = logits[np.arange(words.size), np.where(counted, words, 0)] - log_sums
    return float(told[counted].sum()), float(counted.sum())


def _inverse_perplexity(rows: NDArray[np.float64]) -> float:
    """Return exp(mean log-likelihood of a word), 1 divided by the perplexity: from 0 to 1, higher is better."""
    told, words = rows.sum(axis=0)
    return math.exp(told / words) if words else math.nan


def perplexity_rise(
    fp32: Sequence[Sequence[float]], measured: Sequence[Sequence[float]], keys: Sequence[Hashable]
) -> Perplexity:
    """Return both perplexities, and the rise with its paired 95% interval.

    Args:
        fp32: for each window of a text the log-likelihood of its tokens, in nats, and how many count.
        measured: the same windows'.
        keys: what tells the windows apart; equal ones are repeats.
    """
    before, after = np.asarray(fp32, np.float64), np.asarray(measured, np.float64)
    counted = before[:, 1].sum()
    if not counted:
        raise UsageError("no token of the evaluation data counts", "give labels other than -100")
    # a window's share of the mean: windows may differ in length
    differences = (before[:, 0] - after[:, 0]) * len(before) / counted
    half = mean_difference_half_width(differences.tolist(), effective_count(keys), 0.0)
    rise = float(differences.mean())
    low, middle, high = (100 * (math.exp(value) - 1) for value in (rise - half, rise, rise + half))
    return Perplexity(
        fp32=math.exp(-before[:, 0].sum() / counted),
        artifact=math.exp(-after[:, 0].sum() / counted),
        rise_pct=Interval(estimate=middle, low=low, high=high),
    )


def _one_hot(label: Any, classes: int) -> NDArray[np.float64]:
    """Return which of the classes a label names: an index, or a 0 or 1 for each."""
    wanted = np.asarray(label).reshape(-1)
    if wanted.size == classes and np.isin(wanted, (0, 1)).all():
        return wanted.astype(np.float64)
    return np.asarray(np.arange(classes) == class_index(label, classes), np.float64)


def _auc_row(outputs: Outputs, label: Any) -> Sequence[float]:
    values = np.asarray(outputs[0], np.float64).reshape(-1)
    is_single = np.asarray(label).size == 1 and values.size > 1
    if is_single and not (values.min() >= 0 and abs(values.sum() - 1) < 1e-3):
        values = np.exp(values - values.max())  # samples are compared, for which logits have no common zero
        values /= values.sum()
    return (*values.tolist(), *_one_hot(label, values.size).tolist())


def _auc(rows: NDArray[np.float64]) -> float:
    """Return the mean area under the ROC curves of the classes, each by the ranks of Mann and Whitney."""
    classes = rows.shape[1] // 2
    areas = []
    for values, wanted in zip(rows[:, :classes].T, rows[:, classes:].T, strict=True):
        positives = wanted.sum()
        if 0 < positives < len(wanted):
            _, places, times = np.unique(values, return_inverse=True, return_counts=True)
            ranks = (np.cumsum(times) - (times - 1) / 2)[places]
            pairs = positives * (len(wanted) - positives)
            areas.append((ranks[wanted == 1].sum() - positives * (positives + 1) / 2) / pairs)
    return float(np.mean(areas)) if areas else math.nan


def _counts_row(name: str, threshold: float) -> Callable[[Outputs, Any], Sequence[float]]:
    """Return what counts, for each class, the right answers, the wrong ones and those that were missed."""

    def row(outputs: Outputs, label: Any) -> Sequence[float]:
        scores = np.asarray(outputs[0])
        classes = scores.shape[0] if scores.ndim else 1
        if name == "f1":
            several = np.asarray(label).size == classes
            said = scores.reshape(-1) > threshold if several else np.arange(classes) == int(scores.argmax())
            wanted = _one_hot(label, classes) == 1
            return (*(said & wanted), *(said & ~wanted), *(~said & wanted))
        truth = np.asarray(label).reshape(-1)
        flat = scores.reshape(classes, -1)
        if flat.shape[1] != truth.size:
            what = f"the first output has {flat.shape[1]} pixels [classes, H, W], the label {truth.size}"
            raise UsageError(what, "give labels of the output's size, an index of a class for each pixel")
        guess = flat.argmax(axis=0) if classes > 1 else (flat[0] > threshold).astype(np.int64)
        kinds, seen = range(max(2, classes)), truth != _IGNORED
        hits = [float((seen & (guess == k) & (truth == k)).sum()) for k in kinds]
        wrong = [float((seen & (guess == k) & (truth != k)).sum()) for k in kinds]
        missed = [float((seen & (guess != k) & (truth == k)).sum()) for k in kinds]
        return (*hits, *wrong, *missed)

    return row


def _f1(rows: NDArray[np.float64]) -> float:
    """Return the mean F1 of the classes that occur: 2 hits / (2 hits + wrong + missed)."""
    hits, wrong, missed = rows.sum(axis=0).reshape(3, -1)
    found = hits + wrong + missed > 0
    return float(np.mean(2 * hits[found] / (2 * hits + wrong + missed)[found])) if found.any() else math.nan


def _mean_iou(rows: NDArray[np.float64]) -> float:
    """Return the mean over the classes that occur of hits / (hits + wrong + missed), over all pixels of the set."""
    hits, wrong, missed = rows.sum(axis=0).reshape(3, -1)
    union = hits + wrong + missed
    return float(np.mean(hits[union > 0] / union[union > 0])) if (union > 0).any() else math.nan


def mean_score(metric: Metric | SetMetric, scores: Sequence[Any]) -> float:
    """Return the score of a set from what each of its samples gave."""
    return metric.of(scores) if isinstance(metric, SetMetric) else float(np.mean(scores))


def metric_drop_pp(
    metric: Metric | SetMetric,
    fp32: Sequence[Any],
    measured: Sequence[Any],
    keys: Sequence[Hashable] | None = None,
    sequences: Sequence[str] = (),
) -> Interval:
    """Return the drop of a score with its 95% interval, from what each sample gave.

    Args:
        metric: gave the scores.
        fp32: a score, or a row of numbers, for each sample.
        measured: the same samples'.
        keys: as for `paired_drop_pp`.
        sequences: of steps, the sequence of each; () for other samples. Steps of one sequence depend on each other: a
            bootstrap draws whole sequences, and of plain scores each sequence's mean is one sample; the interval is
            never narrower than that of independent steps.
    """
    if isinstance(metric, SetMetric):
        return metric.drop_pp(fp32, measured, sequences or keys)
    alone = paired_drop_pp(fp32, measured, keys)
    if not sequences:
        return alone
    members: dict[str, list[int]] = {}
    for i, sequence in enumerate(sequences):
        members.setdefault(sequence, []).append(i)
    means = ([float(np.mean([side[i] for i in rows])) for rows in members.values()] for side in (fp32, measured))
    whole = paired_drop_pp(*means)
    return Interval(estimate=alone.estimate, low=min(alone.low, whole.low), high=max(alone.high, whole.high))


def sequences_of(samples: Iterable[Sample]) -> list[str]:
    """Return the sequence of each sample of a model with state; none for other models."""
    return [sample.sequence for sample in samples if sample.sequence]


def class_drops(
    labels: Sequence[int], before: Sequence[int], after: Sequence[int], keys: Sequence[Hashable]
) -> tuple[ClassDrop, ...]:
    """Return the drop of each class's share of right answers, those that are proven to lose most first.

    Repeats of a sample count once, and each interval is so wide that all of them hold together.

    Args:
        labels: the class of each row.
        before: the class that the reference names for it.
        after: the class that was measured.
        keys: what tells rows apart; equal ones are repeats.
    """
    of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        of_class.setdefault(label, []).append(i)
    z = two_sided_z(len(of_class))
    drops = []
    for label, rows in of_class.items():
        left, right = ([side[i] == label for i in rows] for side in (before, after))
        lost = sum(was and not now for was, now in zip(left, right, strict=True)) / len(rows)
        won = sum(now and not was for was, now in zip(left, right, strict=True)) / len(rows)
        own = [keys[i] for i in rows]
        count = effective_count(own)
        low, high = matched_pairs(lost * count, won * count, count, z)
        drops.append(
            ClassDrop(
                label=label,
                samples=len(rows),
                distinct=len(set(own)),
                fp32_right=sum(left),
                right=sum(right),
                drop_pp=Interval(estimate=100 * (lost - won), low=100 * low, high=100 * high),
            )
        )
    # what is proven first; of what is not, the most
    return tuple(sorted(drops, key=lambda one: (-max(one.drop_pp.low, 0.0), -one.drop_pp.estimate, one.label)))


def speedup(reference: Sequence[float], measured: Sequence[float]) -> Interval:
    """Return the speedup of `measured`: the median of the paired times' ratios, with its 95% interval.

    The interval is the sign test's, of order statistics (Conover, Practical Nonparametric Statistics, 3.2): it asks
    nothing of the times' distribution, which has a long tail, and holds at least 95% if the pairs are independent.

    Args:
        reference: times of at least six turns.
        measured: times of the same turns, in the same unit.

    Raises:
        ValueError: fewer turns, whose range itself holds less than 95%.
    """
    ratios = sorted(left / right for left, right in zip(reference, measured, strict=True))
    rank, below = -1, 1  # the chance of at most `rank + 1` ratios below the median, in 2 ** -count
    while 2 * below <= 0.05 * 2 ** len(ratios):
        rank += 1
        below += math.comb(len(ratios), rank + 1)
    if rank < 0:
        raise ValueError(f"an interval of 95% needs 6 turns, not {len(ratios)}")
    return Interval(estimate=statistics.median(ratios), low=ratios[rank], high=ratios[-1 - rank])


def percentile_ms(latencies: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile, which is always a measured time."""
    ordered = sorted(latencies)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# --- Which part of a batch's outputs belongs to which sample, and whether outputs follow their inputs.


def size_of(batch: Batch) -> int:
    """Return the length of the batch axis, padding included; 1 where the first input has no axes."""
    return rows_of([array.shape for array in batch.inputs]) or 1


def is_whole(batch: Batch) -> bool:
    """Whether the batch is one sample that has the full shape of the inputs."""
    sample = batch.samples[0]
    return batch.rows == 1 and all(a.shape == b.shape for a, b in zip(sample.inputs, batch.inputs, strict=True))


def real_rows(batch: Batch) -> int:
    """Return how many rows of the batch axis are not padding."""
    return size_of(batch) if is_whole(batch) else batch.rows


def cut(batch: Batch, outputs: Outputs) -> Outputs:
    """Take away what belongs to padding. An output without the batch axis is left whole."""
    size, rows = size_of(batch), real_rows(batch)
    return outputs if rows == size else tuple(out[:rows] if _has_axis(out, size) else out for out in outputs)


def of_sample(batch: Batch, outputs: Outputs, index: int) -> Outputs:
    """Return sample `index`'s outputs as a device gives them: all of them, or a row with a batch axis of one."""
    if is_whole(batch):
        return outputs
    size = size_of(batch)
    return tuple(out[index : index + 1] if _has_axis(out, size) else out for out in outputs)


def scored(batch: Batch, outputs: Outputs, *, by_row: bool) -> Iterator[tuple[Outputs, Any]]:
    """Yield outputs without the batch axis, and the label, for each sample.

    Args:
        batch: what was run.
        outputs: unchanged, padding included.
        by_row: a sample that is a whole batch of several rows has a label for each, and is scored row by row.

    Raises:
        UsageError: the numbers of labels and rows differ.
    """
    size = size_of(batch)
    if not is_whole(batch) or size == 1:
        for row, sample in enumerate(batch.samples):
            yield _row(outputs, row, size), sample.label
        return
    (sample,) = batch.samples
    if not by_row:
        yield outputs, sample.label
        return
    if np.shape(sample.label)[:1] != (size,):
        what = f"sample {sample.name} holds {size} rows, but its label is {str(sample.label)[:60]!r}"
        raise UsageError(what, "give a label for each row, or one row per sample")
    for row in range(size):
        yield _row(outputs, row, size), sample.label[row]


def _row(outputs: Outputs, row: int, size: int) -> Outputs:
    return tuple(out[row] if _has_axis(out, size) else out for out in outputs)


def _has_axis(output: NDArray[Any], size: int) -> bool:
    return output.ndim > 0 and output.shape[0] == size


# --- Which rows are repeats: exact copies, and copies with noise that no model can tell from them.


_COPY = 1e-4  # of what an array varies by: float32 resolves 1e-7 of a value, and 1e-6 of noise makes copies unlike

_LEAST_SPREAD = 0.1  # of a value: the spread of copies of a single sample is only their noise

_PROJECTIONS = 32  # their root mean square is within a quarter of the distance for 19 of 20 pairs

_SIEVE = 8  # of the projections: enough to tell most rows apart

_ROWS = 64  # that are looked at together: 50,000 rows that are all near take 26 MB

# steps of an 8-bit image, root mean square: two copies that are each one step off are 1.4 apart, and projections
# estimate that to an eighth
_PIXEL_COPY = 2.25

_OUTPUT_OF_PIXELS = 0.03  # of an output's root mean square: one step is that of a contrast of `_CONTRAST` or more

_CONTRAST = 8.0  # steps between neighbors, root mean square: of fewer, one step may be all that a sensor tells

_PARTS = 8  # of an image, each of which is held to the limit: what is small but bright is no noise

_BLOCK = 4096  # elements that share their signs up to one for the whole block, so that large inputs need few of them


@dataclass(slots=True)
class Repeats:
    """Tells the rows that ran from their repeats: equal bytes, or float inputs and outputs that are next to equal.

    A row repeats another one where its shapes and its inputs and outputs of whole numbers are the same, each float
    input is within `_COPY` of that input's spread over the rows, and each float output of fp32 within `_COPY` of that
    output's root mean square. Inputs alone would merge rows that one large column dominates, such as a time; outputs
    alone those whose scores saturate. The spread, not the magnitude, tells inputs apart that share a large mean, such
    as pressures. Rows without outputs are distinguished by their bytes.

    Two kinds of whole numbers need not be the same. 8-bit images, which differ from place to place by far more than a
    step, may be one step up or down in every part, and fp32's outputs then `_OUTPUT_OF_PIXELS` apart. And ids count
    only where the mask beside them is 1.

    Of each array a sketch of a few numbers is kept: seeded projections on signs, which keep distances (Achlioptas,
    Database-friendly Random Projections, 2003). Floats go in as asinh, linear below 1 and a logarithm above: noise does
    not grow by it, and one large column does not outweigh the others.
    """

    _digests: list[str] = field(default_factory=list)
    # by the numbers of float inputs and of parts of images, and the digest of what must be equal, then by the row's
    # digest: float32 [arrays, projections]
    _sketches: dict[tuple[int, int, str], dict[str, NDArray[np.float32]]] = field(default_factory=dict)

    def add(self, batch: Batch, outputs: Outputs | None) -> range:
        """Add the real rows of a batch and return their numbers.

        Args:
            batch: what ran.
            outputs: what fp32, or what stands for it, gave, padding included; None where it did not run.
        """
        size, rows, start = size_of(batch), real_rows(batch), len(self._digests)
        fed = list(_by_row(batch.inputs, size, rows))
        shared = b"".join(array.tobytes() for array in batch.inputs if size > 1 and not _has_axis(array, size))
        if rows == batch.rows:
            digests = [sample.digest for sample in batch.samples]
        else:
            digests = [_digest(shared, *(array[row].tobytes() for array in fed)) for row in range(rows)]
        self._digests += digests
        if outputs is None:
            return range(start, start + rows)
        given = list(_by_row(outputs, size, rows))
        floats = [array for array in fed if array.dtype.kind == "f" and array.size]
        results = [array for array in given if array.dtype.kind == "f" and array.size]
        sketches = [_sketch(np.arcsinh(array.astype(np.float64))) for array in (*floats, *results)]
        images = [array for array in fed if array.dtype == np.uint8 and array.size]
        axes = [array.shape for array in batch.inputs if array.dtype == np.uint8 and array.size]
        has_contrast = [_contrast(array, shape) >= _CONTRAST for array, shape in zip(images, axes, strict=False)]
        of_parts = [_sketch(part) for array in images for part in np.array_split(array, _PARTS, axis=1)]
        unmasked = _without_padding([array for array in fed if array.dtype.kind != "f"])
        whole = [*unmasked, *(array for array in given if array.dtype.kind != "f")]
        # a step stands at its place: what a sequence repeats within itself is part of it
        steps = [sample.step for sample in batch.samples]
        shapes = [array.shape[1:] for array in (*batch.inputs, *fed, *given)]
        for row, digest in enumerate(digests):
            is_image = bool(images) and len(axes) == len(images) and all(found[row] for found in has_contrast)
            facts = f"{steps[min(row, batch.rows - 1)]} {shapes}".encode()
            equal = [array for array in whole if not (is_image and any(array is image for image in images))]
            same = _digest(facts, shared, *(array[row].tobytes() for array in equal))
            of_row = [*sketches[: len(floats)], *(of_parts if is_image else ()), *sketches[len(floats) :]]
            if of_row:
                kind = len(floats), len(of_parts) if is_image else 0, same
                self._sketches.setdefault(kind, {}).setdefault(digest, np.stack([sketch[row] for sketch in of_row]))
        return range(start, start + rows)

    def keys(self) -> list[Hashable]:
        """Return for each row what tells it from the others: its digest, or that of the first row that it repeats."""
        first: dict[str, str] = {}
        for (floats, parts, _), sketches in self._sketches.items():
            digests = list(sketches)
            firsts = _first_alike(np.stack(list(sketches.values())).astype(np.float64), floats, parts)
            for digest, index in zip(digests, firsts, strict=True):
                first.setdefault(digest, digests[index])
        return [first.get(digest, digest) for digest in self._digests]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _by_row(arrays: Sequence[NDArray[Any]], size: int, rows: int) -> Iterator[NDArray[Any]]:
    """Yield what belongs to each row, [rows, elements]; of several rows, not what they share."""
    for array in arrays:
        if size == 1:
            yield array.reshape(1, -1)
        elif _has_axis(array, size):
            yield array[:rows].reshape(rows, -1)


def _contrast(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return by how much neighbors along the last axis but one differ in each row, root mean square, float64 [rows].

    That axis is of an image's rows or columns, of a window's times; columns of a table have none.

    Args:
        rows: [rows, elements].
        shape: of the input, batch axis included.
    """
    if len(shape) < 3 or shape[-2] < 2:
        return np.zeros(len(rows))
    steps = np.diff(rows.reshape(-1, *shape[-2:]).astype(np.float64), axis=1)
    found: NDArray[np.float64] = np.sqrt(np.square(steps).reshape(len(rows), -1).mean(axis=1))
    return found


def _without_padding(rows: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return inputs of whole numbers with zeros where a mask of the same shape ends a row.

    A mask begins with 1 and has only zeros behind its ones; token types of 0 and 1 begin with 0.

    Args:
        rows: each [rows, elements].
    """
    masks = [
        array
        for array in rows
        if array.size and (array[:, 0] == 1).all() and ((array == 0) | (array == 1)).all() and not _rises(array)
    ]
    return [
        np.where(masks[0], array, 0).astype(array.dtype)
        if masks and array.shape == masks[0].shape and array is not masks[0] and array.dtype != np.uint8
        else array
        for array in rows
    ]


def _rises(rows: NDArray[Any]) -> bool:
    return bool((rows[:, 1:] > rows[:, :-1]).any())


def _sketch(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return projections of [rows, elements], float32 [rows, projections], whose mean square is about the row's."""
    total = np.zeros((len(values), _PROJECTIONS))
    for block, start in enumerate(range(0, values.shape[1], _BLOCK)):
        part = values[:, start : start + _BLOCK].astype(np.float64)
        part = np.nan_to_num(part, copy=False, posinf=99.0, neginf=-99.0)  # asinh of the largest float32 is 89
        total += part @ _signs(0, _BLOCK)[: part.shape[1]] * _signs(1 + block, 1)
    return np.asarray(total / math.sqrt(max(values.shape[1], 1)), np.float32)


@functools.cache
def _signs(seed: int, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).choice([-1.0, 1.0], (count, _PROJECTIONS))


def _first_alike(sketches: NDArray[np.float64], floats: int, parts: int) -> list[int]:
    """Return for each row the first one that it repeats, or itself.

    Each row is compared with those that stand for others, never with one of the others: no chain drifts away.

    Args:
        sketches: [rows, arrays, projections].
        floats: how many of the arrays are float inputs. Of a row fainter than the spread its own magnitude counts.
        parts: how many after them are parts of images; the others are outputs.
    """
    norms = np.sqrt(np.square(sketches).mean(axis=2))
    spreads = np.sqrt(sketches.var(axis=0).mean(axis=1))
    limits = _COPY * np.clip(spreads, _LEAST_SPREAD * np.minimum(norms, 1.0), norms)
    limits[:, floats : floats + parts] = _PIXEL_COPY
    results = norms[:, floats + parts :]
    limits[:, floats + parts :] = (_OUTPUT_OF_PIXELS if parts else _COPY) * np.sqrt(np.square(results).mean(axis=0))
    # alike rows are near each other on a line and by a few projections, whose squares are at most the sum of all
    widest = limits.max(axis=0)
    scaled = (sketches - sketches.mean(axis=0))[:, :, :_SIEVE] / np.where(widest > 0, widest, 1.0)[:, None]
    line = scaled[:, :, 0].sum(axis=1)
    order = np.argsort(line, kind="stable")
    line, scaled = line[order], scaled[order].reshape(len(order), -1)
    squares = np.square(scaled).sum(axis=1)
    most = sketches.shape[1] * _PROJECTIONS + 1.0  # 1 is for rounding
    reach = sketches.shape[1] * math.sqrt(_PROJECTIONS)
    lows, highs = np.searchsorted(line, line - reach), np.searchsorted(line, line + reach, "right")

    def is_near(places: slice) -> tuple[slice, NDArray[np.bool_]]:
        """Return what the rows at some places may be near to, and which of that they are near to."""
        window = slice(lows[places][0], highs[places][-1])
        gaps = squares[places, None] + squares[window] - 2 * scaled[places] @ scaled[window].T
        return window, gaps <= most

    first = np.full(len(order), -1)
    for start in range(0, len(order), _ROWS):
        places = slice(start, start + _ROWS)
        alone = order[places][is_near(places)[1].sum(axis=1) == 1]
        first[alone] = alone
    for row, place in enumerate(np.argsort(order)):
        if first[row] < 0:
            window, near = is_near(slice(place, place + 1))
            others = order[window][near[0]]
            others = others[first[others] < 0]
            distances = np.sqrt(np.square(sketches[others] - sketches[row]).mean(axis=2))
            first[others[(distances <= limits[row]).all(axis=1)]] = row
    found: list[int] = first.tolist()
    return found


_MOST_SHAPES = 64  # whose first outputs are kept


@dataclass(slots=True)
class Variety:
    """Which outputs differed at all, between batches or between the rows of one."""

    first: dict[tuple[tuple[int, ...], ...], Outputs] = field(default_factory=dict)
    varied: list[bool] = field(default_factory=list)

    def look(self, batch: Batch, outputs: Outputs) -> None:
        """Compare with the first outputs for inputs of these shapes, and rows of different samples with each other."""
        shapes = tuple(array.shape for array in batch.inputs)
        if shapes not in self.first and len(self.first) < _MOST_SHAPES:
            self.first[shapes] = tuple(output.copy() for output in outputs)
        self.varied = self.varied or [False] * len(outputs)
        size, rows = size_of(batch), real_rows(batch)
        for index, (before, output) in enumerate(zip(self.first.get(shapes, outputs), outputs, strict=False)):
            between_rows = _has_axis(output, size) and any(not np.array_equal(output[0], row) for row in output[1:rows])
            self.varied[index] = self.varied[index] or between_rows or not np.array_equal(before, output)


def another_input(batch: Batch) -> tuple[NDArray[Any], ...] | None:
    """Return inputs that differ from the batch's: floats halved, others in reverse; None where that changes nothing."""
    changed = tuple(
        (array / 2).astype(array.dtype) if array.dtype.kind == "f" else array.reshape(-1)[::-1].reshape(array.shape)
        for array in batch.inputs
    )
    same = all(np.array_equal(a, b) for a, b in zip(changed, batch.inputs, strict=True))
    return None if same else changed
