"""Which score a sample gets, and how a batch is scored."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.artifacts import Interval
from edgeq.errors import EdgeqError, UsageError
from edgeq.samples import Batch
from edgeq.verify.metrics import Outputs, is_ranking, paired_drop_pp, top1
from edgeq.verify.rows import scored

Metric = Callable[[Outputs, Any], float]
_MOST = 128


def chosen_metric(metric: Metric | None, outputs: Outputs, *, labelled: bool) -> Metric | None:
    """Return the user's metric, top-1 for labelled samples and outputs that rank classes, or None."""
    if metric is None and labelled and is_ranking(outputs[0]):
        return top1
    return metric


def batch_scores(score: Metric, batch: Batch, outputs: Outputs) -> list[float]:
    """Return the score of each sample of a batch.

    Raises:
        UsageError: the metric gave a value that is not finite, or the labels do not fit.
    """
    return [_finite(score(*pair)) for pair in scored(batch, outputs, by_row=score is top1)]


@dataclass(slots=True)
class Mismatches:
    """Scores of outputs against the last label that was another one, beside those against their own.

    A metric is the user's: a loss passes for a score, and a larger one for a gain, and what no label changes for
    either, unless it is seen which way is better. A model that learned anything scores better on its own labels. A
    score without labels must fall when noise as strong as the outputs is added to them.

    Attributes:
        labels: the last two that were not the same; samples may come class by class.
    """

    own: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)
    labels: tuple[Any, ...] = ()

    def add(
        self, score: Metric, batch: Batch, outputs: Outputs, scores: Sequence[float], *, labelled: bool = True
    ) -> None:
        """Add the samples of a batch, `labelled` as their data set is; at most `_MOST` are looked at."""
        pairs = scored(batch, outputs, by_row=False)
        for (row, label), own in zip(pairs, scores, strict=True):
            if len(self.own) >= _MOST:
                return
            if label is None and not labelled:
                with contextlib.suppress(EdgeqError):  # noise may be more than it takes
                    self.other.append(_finite(score(tuple(_noised(array) for array in row), None)))
                    self.own.append(own)
                continue
            others = [known for known in self.labels if not _equal(known, label)]
            if others:
                with contextlib.suppress(EdgeqError):  # a pair that no sample is like may be more than it takes
                    self.other.append(_finite(score(row, others[-1])))
                    self.own.append(own)
            if label is not None:
                self.labels = (*others[-1:], label)

    def drop_pp(self) -> Interval | None:
        """Return the paired drop; None without samples."""
        return paired_drop_pp(self.own, self.other) if self.own else None


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
        raise UsageError(f"the metric returned {value} for a sample", "return a finite score, higher is better")
    return value
