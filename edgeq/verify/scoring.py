"""Which score a sample gets, and how a batch is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgeq.errors import UsageError
from edgeq.samples import Batch
from edgeq.verify.metrics import Outputs, is_ranking, top1
from edgeq.verify.rows import scored

Metric = Callable[[Outputs, Any], float]


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


def _finite(value: float) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise UsageError(f"the metric returned {value} for a sample", "return a finite score, higher is better")
    return value
