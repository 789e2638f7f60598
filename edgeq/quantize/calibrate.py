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
        UsageError: a sample that does not fit, or that the model fails on (named), or no samples at all.
    """
    import torch

    if dataset.count == 0:
        raise UsageError("int8 ranges must come from samples, and there are none", "give --calibration-data")
    with torch.no_grad():
        for batch in batches(dataset, specs):
            # copied, since a model may work in place on what it is given
            tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
            try:
                prepared(*tensors)
            except Exception as err:  # the user's forward may raise anything
                what = f"calibration fails on {batch.samples[0].name}: {first_line(err)}"
                raise UsageError(what, "mend or remove this sample") from err
            task.advance(batch.rows)
