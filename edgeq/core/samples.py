"""Samples: what calibration and evaluation data are made of, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.core.arrays import NDArray, np
from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec

Outputs = tuple["NDArray[Any]", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample, ready for the model.

    Attributes:
        inputs: an array for each model input, in order; shaped like one row of the input, or like all of it.
        raw: the arrays before preprocessing, as an app has them (uint8 [H, W, C] for an image).
        label: a class index, or a value of any type for the user's metric; None if there is none.
        name: where it comes from (a file, or an index), for messages.
        digest: SHA-256 of the raw arrays, to find repeats and samples that two sets share.
    """

    inputs: tuple[NDArray[Any], ...]
    raw: tuple[NDArray[Any], ...]
    label: Any
    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A sequence of samples that are read when asked for, so that large sets need no memory.

    Attributes:
        origin: what the user named, for messages.
        count: how many samples there are.
        read: returns sample i, 0 <= i < count.
        class_names: class folders by output index, or () if there are none.
        labelled: whether samples carry a label.
    """

    origin: str
    count: int
    read: Callable[[int], Sample]
    class_names: tuple[str, ...] = ()
    labelled: bool = False

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(self.count))


def _read_none(i: int) -> Sample:
    raise IndexError(i)


NO_SAMPLES = Dataset(origin="none", count=0, read=_read_none)


def remembered(dataset: Dataset, budget_bytes: int) -> Dataset:
    """Return the samples with a cache of up to `budget_bytes`, since several steps read all of them."""
    kept: dict[int, Sample] = {}
    left = budget_bytes

    def read(i: int) -> Sample:
        nonlocal left
        if i not in kept:
            sample = dataset.read(i)
            size = sum(array.nbytes for array in (*sample.inputs, *sample.raw))
            if size > left:
                return sample
            left -= size
            kept[i] = sample
        return kept[i]

    return replace(dataset, read=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Model inputs of the exported shape; `rows` of them are real, the rest repeat the last sample."""

    inputs: tuple[NDArray[Any], ...]
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        """How many samples the batch holds."""
        return len(self.samples)


def batches(dataset: Dataset, specs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """Yield batches of the exported shape; where sizes vary, samples of equal sizes that follow each other make one.

    Raises:
        UsageError: a sample whose shape or dtype does not fit, with its name.
    """
    size = batch_size(dataset, specs)
    pending: list[Sample] = []
    for sample in dataset:
        if len(sample.inputs) != len(specs):
            came = f"{len(sample.inputs)} arrays"
            raise UsageError(f"sample {sample.name}: the model has {len(specs)} inputs, got {came}", "fix the data")
        for array, spec in zip(sample.inputs, specs, strict=True):
            left_out = 0 if size else None
            if not spec.takes(array.shape, without=left_out) or str(array.dtype) != spec.dtype:
                expected, came = spec.shape_text(without=left_out), f"{array.dtype} {list(array.shape)}"
                what = f"sample {sample.name}: input {spec.name!r} expects {spec.dtype} {expected}, got {came}"
                raise UsageError(what, "fix the data, or match it with --preprocess or --input")
        if pending and [one.shape for one in pending[0].inputs] != [one.shape for one in sample.inputs]:
            yield _stack(pending, size)
            pending = []
        pending.append(sample)
        if len(pending) == (size or 1):
            yield _stack(pending, size)
            pending = []
    if pending:
        yield _stack(pending, size)


def batch_size(dataset: Dataset, specs: Sequence[TensorSpec]) -> int:
    """Return how many samples make a batch; 0 where a sample already has the full shape of the inputs."""
    if dataset.count == 0:
        return 0
    first = dataset.read(0)
    if all(spec.takes(array.shape) for array, spec in zip(first.inputs, specs, strict=False)):
        return 0
    return rows_of([spec.shape for spec in specs]) or 0


def rows_of(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the length of the batch axis of inputs; None where the first one has no axes.

    It is the first axis, or the second one of some of them: recurrent states are [layers, batch, features]. Where no
    length suits all inputs, it is that of the first one.
    """
    axes = [shape[:2] for shape in shapes if shape]
    if not shapes or not shapes[0]:
        return None
    return next((first[0] for first in axes if all(first[0] in one for one in axes)), shapes[0][0])


def _stack(samples: list[Sample], size: int) -> Batch:
    if size == 0:
        return Batch(inputs=samples[0].inputs, samples=tuple(samples))
    filled = samples + [samples[-1]] * (size - len(samples))
    columns = zip(*(sample.inputs for sample in filled), strict=True)
    return Batch(inputs=tuple(np.stack(column) for column in columns), samples=tuple(samples))


def evenly(samples: Dataset, most: int) -> Dataset:
    """Return at most `most` samples, from all parts of the set."""
    count = min(most, samples.count)
    rows = [i * samples.count // count for i in range(count)]
    return replace(samples, count=count, read=lambda i: samples.read(rows[i]))
