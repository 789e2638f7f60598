from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.samples import Dataset, Sample, batch_size, batches


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape)


def dataset(count: int, shape: Sequence[int], dtype: str = "float32", inputs: int = 1) -> Dataset:
    def read(i: int) -> Sample:
        array = np.full(shape, i, dtype)
        return Sample(inputs=(array,) * inputs, raw=(array,), label=i, name=f"sample{i}", digest=str(i))

    return Dataset(origin="test", count=count, read=read, labelled=True)


def test_rows_are_stacked_and_the_rest_repeats_the_last() -> None:
    found = list(batches(dataset(5, (2,)), [spec(3, 2)]))
    assert [batch.rows for batch in found] == [3, 2]
    assert [batch.inputs[0].shape for batch in found] == [(3, 2), (3, 2)]
    np.testing.assert_array_equal(found[1].inputs[0][:, 0], [3, 4, 4])
    assert [sample.label for batch in found for sample in batch.samples] == [0, 1, 2, 3, 4]


@given(count=st.integers(0, 20), size=st.integers(1, 6))
def test_every_sample_comes_once_and_in_order(count: int, size: int) -> None:
    found = list(batches(dataset(count, (2,)), [spec(size, 2)]))
    assert [sample.label for batch in found for sample in batch.samples] == list(range(count))
    assert all(batch.inputs[0].shape == (size, 2) for batch in found)
    rows = [row for batch in found for row in batch.inputs[0][: batch.rows, 0]]
    assert rows == list(range(count))


def test_a_sample_of_the_whole_shape_is_a_batch() -> None:
    data = dataset(3, (4, 2))
    assert batch_size(data, [spec(4, 2)]) == 0
    found = list(batches(data, [spec(4, 2)]))
    assert [batch.rows for batch in found] == [1, 1, 1]
    np.testing.assert_array_equal(found[2].inputs[0], np.full((4, 2), 2))


def test_several_inputs_keep_their_order() -> None:
    def read(i: int) -> Sample:
        arrays = (np.full((2,), i, np.float32), np.full((3,), -i, np.int64))
        return Sample(inputs=arrays, raw=arrays, label=None, name=str(i), digest=str(i))

    specs = [spec(2, 2), TensorSpec(name="t", dtype="int64", shape=(2, 3))]
    (batch,) = batches(Dataset(origin="test", count=2, read=read), specs)
    np.testing.assert_array_equal(batch.inputs[0], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(batch.inputs[1], [[0, 0, 0], [-1, -1, -1]])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (dataset(1, (3,)), r"sample sample0: input 'x' expects float32 \[2\], got float32 \[3\]"),
        (dataset(1, (2,), dtype="float64"), r"got float64 \[2\]"),
        (dataset(1, (4, 2), dtype="int64"), r"expects float32 \[4, 2\], got int64 \[4, 2\]"),
        (dataset(1, (2,), inputs=2), "the model has 1 inputs, got 2 arrays"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(data: Dataset, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        list(batches(data, [spec(4, 2)]))


def test_samples_are_read_only_when_asked_for() -> None:
    read: list[int] = []
    data = dataset(100, (2,))
    lazy = Dataset(origin="test", count=100, read=lambda i: (read.append(i), data.read(i))[1])
    next(batches(lazy, [spec(2, 2)]))
    assert read == [0, 0, 1]  # the first one also says how large a batch is


def test_samples_of_equal_sizes_that_follow_each_other_make_a_batch() -> None:
    lengths = [5, 5, 5, 9, 5, 9, 9]
    arrays = [np.full((length,), i, np.float32) for i, length in enumerate(lengths)]

    def read(i: int) -> Sample:
        return Sample(inputs=(arrays[i],), raw=(arrays[i],), label=i, name=f"sample{i}", digest=str(i))

    data = Dataset(origin="test", count=len(lengths), read=read, labelled=True)
    varying = VaryingSize(axis=1, name="seq", least=5, most=9)
    one = TensorSpec(name="x", dtype="float32", shape=(2, 9), varying=(varying,))
    found = list(batches(data, [one]))
    assert [[sample.label for sample in batch.samples] for batch in found] == [[0, 1], [2], [3], [4], [5, 6]]
    assert [batch.inputs[0].shape for batch in found] == [(2, 5), (2, 5), (2, 9), (2, 5), (2, 9)]
    shorter = dataclasses.replace(one, varying=(dataclasses.replace(varying, least=6),))
    with pytest.raises(UsageError, match=r"sample sample0: input 'x' expects float32 \[6\.\.9\], got float32 \[5\]"):
        list(batches(data, [shorter]))
