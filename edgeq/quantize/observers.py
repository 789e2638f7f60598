"""Observers of activations, by the names that people write."""

from __future__ import annotations

import functools
import math
from typing import Any

from edgeq.errors import EnvironmentProblem
from edgeq.scheme import ObserverName

# share of the observed values that the percentile range keeps; TensorRT's and ONNX Runtime's usual choice
PERCENTILE = 0.9999
_SEARCH = "_non_linear_param_search"
_STEPS, _CANDIDATES = 256, 128  # of int8, and the ranges that entropy calibration tries
_LEAST_SHARE = 1e-4


def activation_observer(name: ObserverName, base: Any, minmax: Any) -> Any:
    """Return the observer class for activations.

    Args:
        name: what the user chose.
        base: HistogramObserver of the library that prepares the graph (torch.ao for FX, torchao for PT2E).
        minmax: its MinMaxObserver.

    Raises:
        EnvironmentProblem: another torch, whose histogram cannot be cut.
    """
    if name == "percentile":
        return _percentile(base)
    if name == "entropy":
        return _entropy(base)
    return {"histogram": base, "minmax": minmax}[name]


@functools.cache  # one class, so that ranges once observed fit another graph of the same observer
def _percentile(base: Any) -> Any:
    """Return a histogram observer that cuts both tails instead of searching for the least error."""
    import torch

    _check(base)

    class PercentileObserver(base):  # type: ignore[misc]  # the base is only known at run time
        """Keeps the central `PERCENTILE` of the observed values."""

        def _non_linear_param_search(self) -> tuple[Any, Any]:
            total = torch.cumsum(self.histogram.double(), dim=0)
            tail = (1 - PERCENTILE) / 2 * total[-1]
            low = int(torch.searchsorted(total, tail))
            high = int(torch.searchsorted(total, total[-1] - tail))
            width = (self.max_val - self.min_val) / self.bins
            return self.min_val + width * low, self.min_val + width * (min(high, self.bins - 1) + 1)

    return PercentileObserver


@functools.cache
def _entropy(base: Any) -> Any:
    """Return a histogram observer that keeps the range whose int8 form tells least less than the histogram itself."""

    _check(base)

    class EntropyObserver(base):  # type: ignore[misc]  # the base is only known at run time
        """Keeps the range of least Kullback-Leibler divergence."""

        def _non_linear_param_search(self) -> tuple[Any, Any]:
            width = (self.max_val - self.min_val) / self.bins
            low, high = least_divergence(self.histogram.double(), self.min_val.item(), width.item())
            return self.min_val + width * low, self.min_val + width * high

    return EntropyObserver


def least_divergence(histogram: Any, start: float, width: float) -> tuple[int, int]:
    """Return the bins [low, high) of the range about zero to keep, by entropy calibration.

    Of each candidate range -T to T, what lies outside is moved to its ends (P); its own counts are averaged over the
    256 steps of int8, zero where P is (Q); the range with the least KL(P || Q) is kept (S. Migacz, "8-bit Inference
    with TensorRT", GTC 2017, there over 128 steps of the magnitudes). Zeros, which every range has a step for, count
    as much as their neighbours: after a ReLU they would be the only thing that a wide range blurs.

    Args:
        histogram: counts, float64 [bins].
        start: the left edge of the first bin.
        width: of a bin.
    """
    bins = len(histogram)
    if width <= 0 or not float(histogram.sum()):
        return 0, bins
    zero = min(max(round(-start / width), 0), bins)
    histogram = _without_zeros(histogram, zero)
    reach = max(zero, bins - zero)
    best, chosen = math.inf, (0, bins)
    for step in range(_CANDIDATES):
        most = math.ceil(reach * (step + 1) / _CANDIDATES)
        low, high = max(0, zero - most), min(bins, zero + most)
        divergence = _divergence(histogram, low, high) if high - low >= _STEPS or (low, high) == (0, bins) else math.inf
        if divergence < best:
            best, chosen = divergence, (low, high)
    return chosen


def _without_zeros(histogram: Any, zero: int) -> Any:
    """Return the histogram with no more about the edge `zero` than beside it."""
    first, last = max(0, zero - 2), min(len(histogram), zero + 2)
    beside = [float(histogram[i]) for i in (first - 1, last) if 0 <= i < len(histogram)]
    levelled = histogram.clone()
    levelled[first:last] = levelled[first:last].clamp(max=max(beside, default=0.0))
    return levelled


def _divergence(histogram: Any, low: int, high: int) -> float:
    """Return KL(P || Q) in nats of the bins [low, high) against their int8 form."""
    import torch

    inside = histogram[low:high]
    clipped = inside.clone()
    clipped[0] += histogram[:low].sum()
    clipped[-1] += histogram[high:].sum()
    group = torch.arange(high - low) * _STEPS // (high - low)
    filled = clipped > 0
    sums = torch.zeros(_STEPS, dtype=torch.float64).index_add_(0, group, inside)
    counts = torch.zeros(_STEPS, dtype=torch.float64).index_add_(0, group, filled.double())
    spread = torch.where(filled, (sums / counts.clamp(min=1))[group], 0.0)
    # where only what was moved lies, Q would be zero, and no such range be kept
    spread = torch.where(filled & (spread == 0), _LEAST_SHARE * inside.sum(), spread)
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float((p[filled] * (p[filled] / q[filled]).log()).sum())


def _check(base: Any) -> None:
    if not hasattr(base, _SEARCH):
        what = f"{base.__module__}.{base.__name__} has no {_SEARCH}, which the observer replaces"
        raise EnvironmentProblem(what, "use --observer histogram or minmax, or the torch that edgeq pins")
