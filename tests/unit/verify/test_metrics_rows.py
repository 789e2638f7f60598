from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import dataset, sample

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, batches
from edgeq.verify.metrics import Variety, another_input, cut, is_whole, of_sample, real_rows, scored

FOUR = (TensorSpec(name="x", dtype="float32", shape=(4, 3)),)


def batch_of(*rows, size=4):
    """A batch of `size` rows whose last sample is repeated."""
    samples = tuple(sample(np.float32(row), label=index) for index, row in enumerate(rows))
    filled = [*rows, *[rows[-1]] * (size - len(rows))]
    return Batch(inputs=(np.float32(filled),), samples=samples)


def whole(*rows, label=None):
    return Batch(inputs=(np.float32(rows),), samples=(sample(np.float32(rows), label=label),))


@given(st.integers(1, 13))
def test_padding_never_counts(count):
    seen = []
    for batch in batches(dataset(FOUR, count, whole=False), FOUR):
        outputs = (batch.inputs[0] * 2,)
        seen += list(cut(batch, outputs)[0])
        assert real_rows(batch) == len(cut(batch, outputs)[0]) == batch.rows
    expected = [item.inputs[0] * 2 for item in dataset(FOUR, count, whole=False)]
    assert np.array_equal(seen, expected)


def test_a_whole_sample_is_left_whole():
    batch = whole([1, 2], [3, 4])
    assert is_whole(batch)
    assert cut(batch, (np.ones((2, 5)),))[0].shape == (2, 5)
    assert of_sample(batch, (np.ones((2, 5)),), 0)[0].shape == (2, 5)


@pytest.mark.parametrize("shape", [(), (100, 4), (3,)])
def test_outputs_without_the_batch_axis_are_never_cut(shape):
    output = np.ones(shape)
    for batch in (batch_of([1, 2]), batch_of([1, 2], size=1), whole([1, 2])):
        assert cut(batch, (output,))[0].shape == shape
        assert of_sample(batch, (output,), 0)[0].shape == shape
        ((outputs, _),) = scored(batch, (output,), by_row=False)
        assert outputs[0].shape == shape


def test_each_sample_gets_its_row_and_its_label():
    outputs = (np.arange(8).reshape(4, 2), np.array(7.0))
    pairs = list(scored(batch_of([1, 2], [3, 4], [5, 6]), outputs, by_row=True))
    assert [pair[1] for pair in pairs] == [0, 1, 2]
    assert [pair[0][0].tolist() for pair in pairs] == [[0, 1], [2, 3], [4, 5]]
    assert [float(pair[0][1]) for pair in pairs] == [7, 7, 7]
    assert of_sample(batch_of([1, 2], [3, 4]), outputs, 1)[0].tolist() == [[2, 3]]


def test_rows_of_a_whole_sample_are_scored_with_their_own_labels():
    outputs = (np.arange(4).reshape(2, 2),)
    batch = whole([1, 2], [3, 4], label=np.array([1, 0]))
    assert [(pair[0][0].tolist(), int(pair[1])) for pair in scored(batch, outputs, by_row=True)] == [
        ([0, 1], 1),
        ([2, 3], 0),
    ]
    ((kept, label),) = scored(batch, outputs, by_row=False)
    assert kept[0].shape == (2, 2)
    assert label.tolist() == [1, 0]
    with pytest.raises(UsageError, match="holds 2 rows, but its label is '3'"):
        list(scored(whole([1, 2], [3, 4], label=3), outputs, by_row=True))


def variety(*pairs):
    found = Variety()
    for batch, *outputs in pairs:
        found.look(batch, tuple(np.float32(output) for output in outputs))
    return found.varied


def test_one_constant_output_is_told_from_one_that_varies():
    pairs = [(whole([1, 2]), [[1, 0]], [[5, 5]]), (whole([3, 4]), [[1, 0]], [[5, 6]])]
    assert variety(*pairs) == [False, True]


def test_positions_within_an_output_are_no_variety():
    # a dead detector gives the same hundred boxes for every image, each unlike the next
    boxes = np.arange(400).reshape(100, 4)
    assert variety((whole([1, 2]), boxes), (whole([3, 4]), boxes)) == [False]


def test_rows_of_one_batch_are_variety_but_padding_is_not():
    rows = np.float32([[1], [2], [2], [2]])
    assert variety((batch_of([1, 2], [3, 4]), rows)) == [True]
    assert variety((batch_of([1, 2]), rows)) == [False]
    assert variety((whole([1, 2], [3, 4]), rows[:2])) == [True]


def test_another_input_differs_or_is_none():
    (changed,) = another_input(whole([2, 4]))
    assert changed.tolist() == [[1, 2]]
    assert changed.dtype == np.float32
    tokens = Batch(inputs=(np.array([[1, 2]]),), samples=(sample(np.array([[1, 2]])),))
    assert another_input(tokens)[0].tolist() == [[2, 1]]
    assert another_input(whole([0, 0])) is None
