from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.samples import Dataset, batches
from edgeq.load.records import Reading, as_array, check_names, label_of, to_sample
from edgeq.verify.metrics import cut, size_of

A = TensorSpec(name="a", dtype="float32", shape=(1, 2))
B = TensorSpec(name="b", dtype="int64", shape=(1, 2))


class Tensor:
    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        if self.value is None:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.value


def test_tensors_and_lists_become_arrays():
    assert as_array(Tensor(np.ones(3)), "here").tolist() == [1, 1, 1]
    assert as_array([[1, 2]], "here").shape == (1, 2)


@pytest.mark.parametrize("value", [Tensor(None), [[1], [2, 3]], [object()], {"a": 1}, np.array([None])])
def test_what_is_no_array_is_named(value):
    with pytest.raises(UsageError, match="here: expected"):
        as_array(value, "here")


def test_arrays_come_in_the_order_of_the_inputs():
    columns = {"b": np.zeros(2), "a": np.ones(2)}
    assert list(check_names(columns, Reading(specs=(A, B), preprocess=None), "here")) == ["a", "b"]
    assert list(check_names({"z": np.zeros(2)}, Reading(specs=(A,), preprocess=None), "here")) == ["a"]


def test_labels_become_plain_values():
    assert type(label_of(np.int64(3))) is int
    assert type(label_of(Tensor(np.array(2.5)))) is float
    assert label_of(np.str_("cat")) == "cat"
    assert label_of(np.array([1, 2])).tolist() == [1, 2]
    assert label_of({"boxes": []}) == {"boxes": []}


def test_float64_that_overflows_becomes_inf_for_the_lint_to_find():
    sample = to_sample({"a": np.array([1e300, 0])}, None, "s", Reading(specs=(A,), preprocess=None))
    assert np.isinf(sample.inputs[0][0])
    assert sample.raw[0].dtype == np.float32


X = TensorSpec(name="x", dtype="float32", shape=(1, 4))
STATE = TensorSpec(name="state", dtype="float32", shape=(2, 1, 3))


@pytest.mark.parametrize("x", [(4,), (1, 4)])
@pytest.mark.parametrize("state", [(2, 3), (2, 1, 3)])
@pytest.mark.parametrize("specs", [(X, STATE), (STATE, X)])
def test_a_state_whose_second_axis_is_the_batch_is_fed_whole(x, state, specs):
    record = {"x": np.ones(x, np.float32), "state": np.arange(6, dtype=np.float32).reshape(state)}
    sample = to_sample(record, 1, "s", Reading(specs=specs, preprocess=None))
    assert [array.shape for array in sample.inputs] == [spec.shape for spec in specs]
    data = Dataset(origin="data", count=2, read=lambda _: sample, labelled=True)
    found = list(batches(data, specs))
    assert [[array.shape for array in batch.inputs] for batch in found] == [[spec.shape for spec in specs]] * 2
    assert size_of(found[0]) == 1
    outputs = (np.zeros((1, 5), np.float32), np.zeros((2, 1, 3), np.float32))
    assert [out.shape for out in cut(found[0], outputs)] == [(1, 5), (2, 1, 3)]


def test_a_row_of_a_batch_of_one_stays_a_row():
    sample = to_sample({"x": np.ones(4, np.float32)}, None, "s", Reading(specs=(X,), preprocess=None))
    assert sample.inputs[0].shape == (4,)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (1, 2, 3), (6,)])
def test_other_shapes_of_a_state_are_refused(shape):
    record = {"x": np.ones(4, np.float32), "state": np.zeros(shape, np.float32)}
    with pytest.raises(UsageError, match="input 'state' expects"):
        to_sample(record, None, "s", Reading(specs=(X, STATE), preprocess=None))


def test_samples_of_any_size_in_the_range_are_rows_or_whole():
    seq = VaryingSize(axis=1, name="seq", least=2, most=4)
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, 4), varying=(seq,))
    state = TensorSpec(name="state", dtype="float32", shape=(2, 1, 3))
    reading = Reading(specs=(tokens, state), preprocess=None)

    def read(*shapes):
        arrays = [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, reading.specs, strict=True)]
        return [
            array.shape
            for array in to_sample(dict(zip(("tokens", "state"), arrays, strict=True)), None, "s7", reading).inputs
        ]

    # a state's batch axis is its second one: the sample becomes whole
    assert read((3,), (2, 3)) == read((1, 3), (2, 1, 3)) == [(1, 3), (2, 1, 3)]
    with pytest.raises(UsageError, match=r"s7: input 'tokens' expects \[2\.\.4\] per sample, got \[5\]"):
        read((5,), (2, 3))
