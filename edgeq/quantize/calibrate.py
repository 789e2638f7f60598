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
                raise UsageError(*_blame(what, prepared, tensors)) from err
            task.advance(batch.rows)


def _blame(what: str, prepared: Any, tensors: Sequence[Any]) -> tuple[str, str]:
    """Return message and fix of a failed calibration: the sample's own fault, or the model's.

    Buffers may well hold Inf, as a mask does; of the weights only parameters tell.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        return f"{what} (the sample holds NaN or Inf)", "mend or remove this sample"
    if broken := [name for name, part in prepared.named_parameters() if not bool(part.isfinite().all())]:
        what = f"{what}: the model's weights hold NaN or Inf: {', '.join(broken[:3])}"
        return what, "give the weights of a sound model"
    if "not finite" in what:  # torch.histc, as the histogram observer calls it
        fix = "run the fp32 model on this sample, and mend the layer that divides by zero or overflows"
        return f"{what}: the sample is finite, so the model itself computes NaN or Inf", fix
    return what, "mend or remove this sample"
