"""Which sizes are tried of those that vary, and what varies of the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.samples import beyond_sizes, drawn_sizes, fixed_at, tried_sizes, varying_outputs

SEQ = VaryingSize(axis=1, name="seq", least=8, most=128)
TIME = VaryingSize(axis=0, name="time", least=20, most=100, step=20)
SPECS = (
    TensorSpec(name="tokens", dtype="int64", shape=(1, 128), varying=(SEQ,)),
    TensorSpec(name="audio", dtype="float32", shape=(100, 2), varying=(TIME,)),
    TensorSpec(name="state", dtype="float32", shape=(1, 4)),
)


def test_each_size_is_tried_at_its_ends_and_in_the_middle_and_beyond():
    assert tried_sizes(SPECS[:1]) == ({"seq": 128}, {"seq": 8}, {"seq": 68})
    assert tried_sizes(SPECS) == (
        {"seq": 128, "time": 100},
        {"seq": 8, "time": 20},
        {"seq": 68, "time": 60},
        {"seq": 8, "time": 100},
        {"seq": 128, "time": 20},
    )
    # nothing would be left of a time below 20
    assert beyond_sizes(SPECS) == ({"seq": 129, "time": 100}, {"seq": 128, "time": 120}, {"seq": 7, "time": 20})
    assert tried_sizes(SPECS[2:]) == beyond_sizes(SPECS[2:]) == ()


def test_drawn_sizes_keep_to_range_and_step():
    drawn = [drawn_sizes(SPECS, i, np.random.default_rng(i)) for i in range(50)]
    assert drawn[:5] == list(tried_sizes(SPECS))
    assert all(8 <= one["seq"] <= 128 and one["time"] in range(20, 101, 20) for one in drawn)


def test_inputs_of_given_sizes_vary_no_more():
    fixed = fixed_at(SPECS, {"seq": 8, "time": 40})
    assert [spec.shape for spec in fixed] == [(1, 8), (40, 2), (1, 4)]
    assert not any(spec.varying for spec in fixed)


@pytest.mark.parametrize(
    ("shape", "without", "fits"),
    [((1, 8), None, True), ((1, 129), None, False), ((2, 8), None, False), ((8,), 0, True), ((7,), 0, False)],
)
def test_a_shape_fits_within_the_range(shape, without, fits):
    assert SPECS[0].takes(shape, without=without) is fits


def test_a_shape_fits_by_steps():
    assert [size for size in range(15, 125) if SPECS[1].takes((size, 2))] == [20, 40, 60, 80, 100]


def test_outputs_that_follow_an_input_have_its_name():
    tried = tried_sizes(SPECS[:1])
    shapes = [[(1, one["seq"], 4), (1, 4), (1, one["seq"] // 2)] for one in tried]
    tagged, pooled, halved = varying_outputs(tried, shapes)
    assert tagged == (SEQ,)
    assert pooled == ()
    assert halved == (VaryingSize(axis=1, name="output2_1", least=4, most=64),)
