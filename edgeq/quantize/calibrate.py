"""Calibration: run the prepared graph over the samples, so that its observers see the ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError, first_line
from edgeq.job import Task
from edgeq.samples import Dataset, batches


def calibrate(prepared: Any, dataset: Dataset, specs: Sequence[TensorSpec], task: Task) -> None:
    """Feed all of `dataset` to `prepared`, in batches of the exported shape.

    Raises:
        UsageError: a sample that does not fit, or that the model fails on (named).
    """
    import torch

    with torch.no_grad():
        for batch in batches(dataset, specs):
            tensors = tuple(torch.from_numpy(array) for array in batch.inputs)
            try:
                prepared(*tensors)
            except (RuntimeError, IndexError, ValueError) as err:
                what = f"calibration fails on {batch.samples[0].name}: {first_line(err)}"
                raise UsageError(what, "mend or remove this sample") from err
            task.advance(batch.rows)
