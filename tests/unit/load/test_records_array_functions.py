"""What a function of the user's may return as data."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.errors import UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.load.dataset import open_function
from edgeq.load.records import Reading, Wanted

VECTOR = TensorSpec(name="x", dtype="float32", shape=(2, 4))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 5), high=9.0)
PRELUDE = """
import numpy as np
x = np.arange(24, dtype=np.float32).reshape(6, 4)
tokens = np.arange(30).reshape(6, 5)
class Tensor:
    dtype = "torch.float32"
    def detach(self): return self
    def cpu(self): return self
    def numpy(self): return x
class Lazy:
    def __len__(self): return 1000
    def __getitem__(self, i): return {"x": x[i % 6] + i, "y": i}
class Bad:
    def __len__(self): return 6
    def __getitem__(self, i): raise OSError("disk gone")
def many():
    while True:
        yield {"x": x[0], "y": 1}
def breaks():
    yield {"x": x[0]}
    raise ValueError("no more")
"""


def wanted(*specs, limit=None, seed=0):
    return Wanted(reading=Reading(specs=specs, preprocess=None), limit=limit, seed=seed)


@pytest.fixture
def returning(script):
    """Write a data function with this body."""

    def write(expression):
        return script(f"{PRELUDE}\ndef data():\n    return {expression}\n") + ":data"

    return write


@pytest.mark.parametrize(
    ("expression", "count", "labelled"),
    [
        ("{'x': x, 'y': list(range(6))}", 6, True),
        ("{'x': Tensor()}", 6, False),
        ("(x, [0, 1, 2, 3, 4, 5])", 6, True),
        ("({'x': x}, np.arange(6))", 6, True),
        ("x", 6, False),
        ("Tensor()", 6, False),
        ("[{'x': row} for row in x]", 6, False),
        ("[{'x': row.tolist(), 'y': {'boxes': []}} for row in x.astype(np.float64)]", 6, True),
        ("({'x': row, 'y': i} for i, row in enumerate(x))", 6, True),
        ("[(row, i) for i, row in enumerate(x)]", 6, True),
        ("[({'x': row}, i) for i, row in enumerate(x)]", 6, True),
        ("([row] for row in x)", 6, False),
        ("list(x)", 6, False),
    ],
)
def test_what_a_function_may_return(returning, expression, count, labelled):
    data = open_function(returning(expression), wanted(VECTOR))
    assert (data.count, data.labelled) == (count, labelled)
    for i, sample in enumerate(data):
        np.testing.assert_array_equal(sample.inputs[0], np.arange(4, dtype=np.float32) + 4 * i)
    assert len({sample.name for sample in data}) == count


def test_several_inputs_from_a_function(returning):
    data = open_function(returning("{'tokens': tokens, 'x': x}"), wanted(VECTOR, TOKENS))
    assert [array.shape for array in data.read(0).inputs] == [(4,), (5,)]


def test_what_has_an_index_is_read_lazily(returning):
    data = open_function(returning("Lazy()"), wanted(VECTOR, limit=5, seed=1))
    assert data.count == 5
    labels = [sample.label for sample in data]
    assert labels == sorted(labels)
    assert labels[-1] > 5


def test_an_endless_iterator_is_read_up_to_the_limit(returning):
    assert open_function(returning("many()"), wanted(VECTOR, limit=5)).count == 5


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("3", "cannot use the int"),
        ("None", "cannot use the NoneType"),
        ("'x.npz'", "cannot use the str"),
        ("[]", "at least 1 sample"),
        ("['a', 'b']", "expected the arrays of a sample, got str"),
        ("[(x[0], x[1], 3, 4)]", "expected 1 input (x) in each item of the data, got 4"),
        ("{'x': [[1.0, 2.0], [3.0]]}", "expected an array, got list"),
        ("{'x': np.array([{}, None])}", "expected numbers, got dtype object"),
        ("1 / 0", "raised ZeroDivisionError at user.py"),
        ("Bad()", "raised OSError at user.py"),
        ("breaks()", "raised ValueError at user.py"),
        ("[{'x': x[0]}, {'z': x[0], 'w': x[0]}]", "inputs x; got z, w"),
        ("[{'x': x[0], 'y': 1}, {'x': x[0]}]", "a label for every sample or for none"),
        ("[{'x': x[0]}, {'x': x[0], 'y': 1}]", "a label for every sample or for none"),
    ],
)
def test_says_what_a_function_did_wrong(returning, expression, reason):
    with pytest.raises(UsageError) as caught:
        list(open_function(returning(expression), wanted(VECTOR)))
    assert reason in caught.value.what
    assert "user.py" in caught.value.what


def test_a_data_function_takes_no_arguments(script):
    with pytest.raises(UsageError, match=r"the signature data\(\), got data\(n\)"):
        open_function(script("def data(n): ...\n") + ":data", wanted(VECTOR))
