"""Which part of a batch's outputs belongs to which sample, and whether outputs follow their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.samples import Batch
from edgeq.verify.metrics import Outputs


def size_of(batch: Batch) -> int:
    """Return the length of the batch axis, padding included; 1 where the first input has no axes."""
    shape = batch.inputs[0].shape
    return int(shape[0]) if shape else 1


def is_whole(batch: Batch) -> bool:
    """Whether the batch is one sample that has the full shape of the inputs."""
    sample = batch.samples[0]
    return batch.rows == 1 and all(a.shape == b.shape for a, b in zip(sample.inputs, batch.inputs, strict=True))


def real_rows(batch: Batch) -> int:
    """Return how many rows of the batch axis are no padding."""
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
        outputs: as they came, padding included.
        by_row: a sample that is a whole batch of several rows has a label for each, and is scored row by row.

    Raises:
        UsageError: it has not as many labels as rows.
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
        what = f"sample {sample.name} holds {size} rows, but its labels are {str(sample.label)[:60]!r}"
        raise UsageError(what, "give a label for each row, or one row as a sample")
    for row in range(size):
        yield _row(outputs, row, size), sample.label[row]


def row_keys(batch: Batch) -> list[Hashable]:
    """Return what tells each real row of a batch from the others: the sample's digest, or the row's own."""
    if not is_whole(batch) or size_of(batch) == 1:
        return [sample.digest for sample in batch.samples]
    size, fed = size_of(batch), [array for array in batch.inputs if array.ndim and len(array) == size_of(batch)]
    return [hashlib.sha256(b"".join(array[row].tobytes() for array in fed)).hexdigest() for row in range(size)]


def _row(outputs: Outputs, row: int, size: int) -> Outputs:
    return tuple(out[row] if _has_axis(out, size) else out for out in outputs)


def _has_axis(output: NDArray[Any], size: int) -> bool:
    return output.ndim > 0 and output.shape[0] == size


@dataclass(slots=True)
class Variety:
    """Which outputs differed at all, between batches or between the rows of one."""

    first: Outputs | None = None
    varied: list[bool] = field(default_factory=list)

    def look(self, batch: Batch, outputs: Outputs) -> None:
        """Compare with the first outputs, and rows of different samples with each other."""
        if self.first is None:
            self.first = tuple(output.copy() for output in outputs)
            self.varied = [False] * len(outputs)
        size, rows = size_of(batch), real_rows(batch)
        for index, (before, output) in enumerate(zip(self.first, outputs, strict=False)):
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
