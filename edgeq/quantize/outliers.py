"""Calibration samples that stand out: those on which the float model's values are far larger than on the others.

One such sample stretches the ranges that all others are rounded in. This file needs torch to load.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError, first_line
from edgeq.job import Task
from edgeq.samples import Dataset, Sample, batches

_LEAST_SAMPLES = 8  # quartiles of fewer say little
_FENCE = 3.0  # interquartile ranges beyond the upper quartile: J. Tukey, "Exploratory Data Analysis" (1977), "far out"
_LEAST_FACTOR = 2.0  # what is less than a bit of the range is no loss, however alike the other samples are


def without_outliers(samples: Dataset, model: Any, specs: Sequence[TensorSpec], task: Task) -> Dataset | None:
    """Return the samples but for those that stand out; None where none does.

    A sample is measured by the operator whose largest magnitude exceeds most, as a factor, what it is on the median
    sample. On a logarithmic scale, those beyond Tukey's outer fence stand out; that is never more than a quarter.

    Args:
        samples: calibration data.
        model: the float model, a callable module.
        specs: its inputs.
        task: told of each sample.

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

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            found.extend(leaf.abs().max() for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf))
            return result

    try:
        with torch.no_grad(), Recorder():
            model(*tensors)
    except Exception as err:  # the user's forward may raise anything
        raise UsageError(f"the model fails on {sample.name}: {first_line(err)}", "mend or remove this sample") from err
    task.advance()
    return torch.stack([value.double() for value in found]).tolist() if found else []


def _is_float(leaf: Any) -> bool:
    return bool(torch.is_tensor(leaf) and leaf.is_floating_point() and leaf.numel() > 0)
