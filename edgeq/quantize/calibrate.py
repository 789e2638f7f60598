"""Calibration: run the prepared graph over the samples, so that its observers see the ranges."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeq.core.config import Task
from edgeq.core.errors import EnvironmentProblem, UsageError, first_line
from edgeq.core.lazy import np
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, Sample, batches
from edgeq.core.schemes import ObserverName
from edgeq.core.system import Uncompiled


def calibrate(prepared: Any, dataset: Dataset, specs: Sequence[TensorSpec], task: Task) -> None:
    """Feed all of `dataset` to `prepared`, in batches of the exported shape.

    Raises:
        UsageError: a sample that does not fit, or that the model fails on (named), or no samples at all.
    """
    import torch

    if dataset.count == 0:
        raise UsageError("int8 ranges need calibration samples, but there are none", "give --calibration-data")
    with torch.no_grad():
        for batch in batches(dataset, specs):
            # copied, since a model may work in place on what it is given
            tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
            try:
                prepared(*tensors)
            except Exception as err:  # the user's forward may raise anything
                what = f"calibration fails on {batch.samples[0].name}: {first_line(err)}"
                raise UsageError(*_blame(what, prepared, tensors)) from err
            task.advance(batch.rows)


def _blame(what: str, prepared: Any, tensors: Sequence[Any]) -> tuple[str, str]:
    """Return message and fix of a failed calibration: the sample's own fault, or the model's.

    Buffers may well hold Inf, as a mask does; of the weights only parameters tell.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        return f"{what} (the sample holds NaN or Inf)", "fix or remove this sample"
    if broken := [name for name, part in prepared.named_parameters() if not bool(part.isfinite().all())]:
        what = f"{what}: the model's weights hold NaN or Inf: {', '.join(broken[:3])}"
        return what, "give weights without NaN or Inf"
    if "not finite" in what:  # torch.histc, as the histogram observer calls it
        fix = "run the fp32 model on this sample, and fix the layer that divides by zero or overflows"
        return f"{what}: the sample is finite, so the model itself computes NaN or Inf", fix
    return what, "fix or remove this sample"


# --- Observers of activations, by the names that people write.


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
    return minmax if name == "minmax" else _histogram(base)


@functools.cache
def _histogram(base: Any) -> Any:
    """Return the histogram observer with a search that finds the same range 14 times faster.

    The library's search (torch 2.15, torchao 0.18) narrows the range by 1e-5 of the values at a time, up to 100,000
    times, and compares tensors of one element at each step: 109 ms on average of 120 histograms, and 7.8 ms here.
    """
    import numpy as np
    import torch

    _check(base)

    class HistogramObserver(base):  # type: ignore[misc]  # the base is only known at run time
        """Keeps the range of least quantization error."""

        def _non_linear_param_search(self) -> tuple[Any, Any]:
            if self.histogram.dtype != torch.float32:
                return super()._non_linear_param_search()  # type: ignore[no-any-return]
            sums = torch.cumsum(self.histogram, dim=0).tolist()
            total = torch.sum(self.histogram).item()
            stepsize, alpha, beta = 1e-5, 0.0, 1.0
            start, end = 0, self.bins - 1
            least = math.inf
            while alpha < beta:
                next_alpha, next_beta = alpha + stepsize, beta - stepsize
                # as a comparison of a float32 tensor with a number of Python's does
                low, high = float(np.float32(next_alpha * total)), float(np.float32(next_beta * total))
                left, right = start, end
                while left < end and sums[left] < low:
                    left += 1
                while right > start and sums[right] > high:
                    right -= 1
                next_start, next_end = start, end
                if left - start > end - right:
                    next_start, alpha = left, next_alpha
                else:
                    next_end, beta = right, next_beta
                if (next_start, next_end) == (start, end):
                    continue
                error = self._compute_quantization_error(next_start, next_end)
                if error > least:
                    break
                least, start, end = error, next_start, next_end
            width = (self.max_val - self.min_val) / self.bins
            return self.min_val + width * start, self.min_val + width * (end + 1)

    return HistogramObserver


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
    # the histogram with no more about the edge `zero` than beside it
    first, last = max(0, zero - 2), min(len(histogram), zero + 2)
    beside = [float(histogram[i]) for i in (first - 1, last) if 0 <= i < len(histogram)]
    levelled = histogram.clone()
    levelled[first:last] = levelled[first:last].clamp(max=max(beside, default=0.0))
    histogram = levelled
    reach = max(zero, bins - zero)
    best, chosen = math.inf, (0, bins)
    for step in range(_CANDIDATES):
        most = math.ceil(reach * (step + 1) / _CANDIDATES)
        low, high = max(0, zero - most), min(bins, zero + most)
        divergence = _divergence(histogram, low, high) if high - low >= _STEPS or (low, high) == (0, bins) else math.inf
        if divergence < best:
            best, chosen = divergence, (low, high)
    return chosen


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
        what = f"{base.__module__}.{base.__name__} has no {_SEARCH}, which edgeq's observer overrides"
        raise EnvironmentProblem(what, "use --observer minmax, or the torch version that edgeq pins")


# --- Ranges that were observed once, for every graph that leaves other layers of the same model in float.


IsObserver = Callable[[Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverCache:
    """Calibrated observers, by the name of the node that each observes.

    Attributes:
        shared: as the graph has them; a pool's input and output share one.
        alone: of those that are shared, what each node would have by itself: a pool's output has a smaller range.
        sharing: the names of the nodes that share a node's observer, its own among them.
    """

    shared: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, frozenset[str]] = field(default_factory=dict)


@contextlib.contextmanager
def observed(prepared: Any, is_observer: IsObserver) -> Iterator[ObserverCache]:
    """Yield the ranges of a prepared torch.fx.GraphModule, which is calibrated meanwhile."""
    places = _places(prepared, is_observer)
    sharing = _sharing(prepared, places)
    shared = {name: getattr(prepared, target) for name, target in places.items()}
    alone = {name: copy.deepcopy(shared[name]) for name, others in sharing.items() if len(others) > 1}
    for name, own in alone.items():
        setattr(prepared, places[name], _Both(shared[name], own))
    yield ObserverCache(shared=shared, alone=alone, sharing=sharing)
    for name in alone:
        setattr(prepared, places[name], shared[name])


def lend(prepared: Any, known: ObserverCache, is_observer: IsObserver) -> bool:
    """Replace a graph's observers by copies of calibrated ones of the same model, prepared with other layers in float.

    The float values that an observer sees do not depend on what is quantized, and so neither do its ranges.

    Returns:
        Whether all were known; if not, nothing was changed, and the graph needs calibration.
    """
    places = _places(prepared, is_observer)
    found = {}
    for name, others in _sharing(prepared, places).items():
        source = known.shared if others == known.sharing.get(name) else known.alone if len(others) == 1 else {}
        found[name] = source.get(name)
        if found[name] is None or not _alike(getattr(prepared, places[name]), found[name]):
            return False
    copies: dict[int, Any] = {}
    for name, theirs in found.items():
        setattr(prepared, places[name], copies.setdefault(id(theirs), copy.deepcopy(theirs)))
    return True


class _Both(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Lets two observers see a value."""

    def __init__(self, shared: nn.Module, own: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = shared, own

    def forward(self, values: Any) -> Any:
        self.own(values)
        return self.shared(values)


def _places(prepared: Any, is_observer: IsObserver) -> dict[str, str]:
    """Return the module name of the observer of each node that has one."""
    return {
        str(node.args[0].name): str(node.target)
        for node in prepared.graph.nodes
        if node.op == "call_module" and node.args and is_observer(prepared._modules.get(str(node.target)))
    }


def _sharing(prepared: Any, places: dict[str, str]) -> dict[str, frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, target in places.items():
        names.setdefault(id(getattr(prepared, target)), set()).add(name)
    return {name: frozenset(names[id(getattr(prepared, target))]) for name, target in places.items()}


def _alike(mine: Any, theirs: Any) -> bool:
    fields = ("dtype", "qscheme", "quant_min", "quant_max")
    return type(mine) is type(theirs) and all(getattr(mine, key) == getattr(theirs, key) for key in fields)


# --- Calibration samples that stand out: those on which the float model's values are far larger than on the others.


_LEAST_SAMPLES = 8  # quartiles of fewer say little

_FENCE = 3.0  # interquartile ranges beyond the upper quartile: J. Tukey, "Exploratory Data Analysis" (1977), "far out"

_LEAST_FACTOR = 2.0  # what is less than a bit of the range is no loss, however alike the other samples are


def without_outliers(samples: Dataset, model: Any, specs: Sequence[TensorSpec], task: Task) -> Dataset | None:
    """Return the samples without outliers; None if there are none.

    A sample is measured by the operator whose largest magnitude exceeds most, as a factor, what it is on the median
    sample. On a logarithmic scale, those beyond Tukey's outer fence stand out; that is never more than a quarter.

    Args:
        samples: calibration data.
        model: the float model, a callable module.
        specs: its inputs.
        task: advanced by each sample.

    Raises:
        UsageError: a sample that does not fit, or that the model fails on (named).
    """
    if samples.count < _LEAST_SAMPLES:
        return None
    factors = _log_factors([_magnitudes(sample, model, specs, task) for sample in samples])
    lower, upper = np.quantile(factors, (0.25, 0.75))
    fence = max(upper + _FENCE * (upper - lower), np.median(factors) + math.log(_LEAST_FACTOR))
    rows = np.flatnonzero(factors <= fence).tolist()
    if len(rows) == samples.count:
        return None
    return dataclasses.replace(samples, count=len(rows), read=lambda i: samples.read(rows[i]))


def _log_factors(magnitudes: Sequence[Sequence[float]]) -> Any:
    """Return for each sample the logarithm of its largest factor over the median sample, float64 [samples]."""
    # a model that branches has other operators for other samples: those that all begin with can be compared
    table = np.array([row[: min(map(len, magnitudes))] for row in magnitudes])
    middle = np.median(table, axis=0)
    usable = np.isfinite(table).all(axis=0) & (middle > 0)
    if not usable.any():
        return np.zeros(len(table))
    return np.log((table[:, usable] / middle[usable]).max(axis=1).clip(min=np.finfo(np.float32).tiny))


def _magnitudes(sample: Sample, model: Any, specs: Sequence[TensorSpec], task: Task) -> list[float]:
    """Return the largest magnitude of what each operator gives for a sample, in the order of execution."""
    alone = Dataset(origin=sample.name, count=1, read=lambda _: sample)
    (batch,) = batches(alone, specs)
    tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
    found: list[torch.Tensor] = [tensor.abs().max() for tensor in tensors if _is_float(tensor)]

    class Recorder(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            found.extend(leaf.abs().max() for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf))
            return result

    try:
        with torch.no_grad(), Recorder():
            model(*tensors)
    except Exception as err:  # the user's forward may raise anything
        raise UsageError(f"the model fails on {sample.name}: {first_line(err)}", "fix or remove this sample") from err
    task.advance()
    return torch.stack([value.double() for value in found]).tolist() if found else []


def _is_float(leaf: Any) -> bool:
    return bool(torch.is_tensor(leaf) and leaf.is_floating_point() and leaf.numel() > 0)
