from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgeq.verify import wire

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4)))
MESSAGES = st.dictionaries(st.text().filter(lambda key: key != "arrays"), st.integers() | st.text() | st.none())


@given(MESSAGES, st.lists(ARRAYS, max_size=4))
def test_what_is_sent_is_received(message, given_arrays):
    stream = io.BytesIO()
    wire.send(stream, message, given_arrays)
    wire.send(stream, {"next": 1})
    stream.seek(0)
    received, came = wire.receive(stream)
    assert received == message
    assert len(came) == len(given_arrays)
    for array, copy in zip(given_arrays, came, strict=True):
        assert (copy.dtype, copy.shape) == (array.dtype, array.shape)
        assert copy.tobytes() == array.tobytes()
    assert wire.receive(stream) == ({"next": 1}, ())


def test_a_transposed_array_keeps_its_values():
    stream = io.BytesIO()
    array = np.arange(6).reshape(2, 3).T
    wire.send(stream, {}, [array])
    stream.seek(0)
    assert np.array_equal(wire.receive(stream)[1][0], array)


@given(st.integers(0, 60))
def test_a_frame_that_ends_early_is_an_end_not_a_message(size):
    stream = io.BytesIO()
    wire.send(stream, {"op": "run"}, [np.zeros(3, np.float32)])
    whole = stream.getvalue()
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(whole[: min(size, len(whole) - 1)]))


def test_a_monstrous_length_is_refused_before_memory_is_asked_for():
    with pytest.raises(ValueError, match="header of"):
        wire.receive(io.BytesIO(b"\xff" * 16))
