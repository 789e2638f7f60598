from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.load.records import Reading, as_array, check_names, label_of, to_sample

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
    assert list(check_names(columns, [A, B], "here")) == ["a", "b"]
    assert list(check_names({"z": np.zeros(2)}, [A], "here")) == ["a"]


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
