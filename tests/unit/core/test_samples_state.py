"""Steps of sequences: which state each has, and what is fed back."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.errors import VerificationError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, Sample, batches, run_in_order, unrolled

SPECS = (
    TensorSpec(name="x", dtype="float32", shape=(1, 1)),
    TensorSpec(name="s", dtype="float32", shape=(1, 1), fed_from=1),
)


def summed(batch):
    x, state = batch.inputs
    return x * 10, state + x


def sequences(*lengths, start=0.0):
    def read(i):
        arrays = (np.arange(1, lengths[i] + 1, dtype=np.float32).reshape(-1, 1, 1), np.full((1, 1), start, np.float32))
        return Sample(inputs=arrays, raw=arrays, label=tuple(range(lengths[i])), name=f"q{i}", digest=f"{i:02x}" * 32)

    return Dataset(origin="counted", count=len(lengths), read=read, labelled=True)


def test_each_step_has_the_state_that_the_float_model_reached():
    steps = unrolled(sequences(3, 2), SPECS, summed)
    assert [float(one.inputs[1][0, 0]) for one in steps] == [0, 1, 3, 0, 1]
    assert [one.label for one in steps] == [0, 1, 2, 0, 1]
    assert [one.name for one in steps][-1] == "q1 step 1"
    assert len({one.digest for one in steps}) == 5
    assert len({one.source for one in steps}) == 2
    assert all(bytes.fromhex(one.digest) for one in steps)
    assert float(steps.read(4).inputs[1][0, 0]) == 1  # in any order
    with pytest.raises(IndexError):
        steps.read(5)


def test_a_sequence_starts_from_the_state_that_the_data_give():
    assert [float(one.inputs[1][0, 0]) for one in unrolled(sequences(3, start=5.0), SPECS, summed)] == [5, 6, 8]
    # without a float model, the later states are not known
    assert [float(one.inputs[1][0, 0]) for one in unrolled(sequences(3, start=5.0), SPECS, None)] == [5, 5, 5]


def test_what_runs_gets_its_own_state_within_a_sequence_only():
    steps = unrolled(sequences(3, 2), SPECS, summed)
    seen = [
        (float(batch.inputs[1][0, 0]), float(fed.inputs[1][0, 0]))
        for batch, fed, _ in run_in_order(batches(steps, SPECS), SPECS, lambda one: (one.inputs[0], one.inputs[1] + 7))
    ]
    assert seen == [(0, 0), (1, 7), (3, 14), (0, 0), (1, 7)]


def test_steps_that_do_not_follow_each_other_keep_their_own_state():
    steps = unrolled(sequences(4), SPECS, summed)
    every_other = Dataset(origin="some", count=2, read=lambda i: steps.read(2 * i))
    runs = run_in_order(batches(every_other, SPECS), SPECS, lambda one: (one.inputs[0], one.inputs[1] + 7))
    assert [float(fed.inputs[1][0, 0]) for _, fed, _ in runs] == [0, 3]


def test_a_state_of_another_dtype_is_refused():
    steps = unrolled(sequences(2), SPECS, summed)
    runs = run_in_order(batches(steps, SPECS), SPECS, lambda one: (one.inputs[0], one.inputs[1].astype(np.float16)))
    with pytest.raises(
        VerificationError, match=r"output 1 is float16 \[1, 1\], but the input .* takes float32 \[1, 1\]"
    ):
        list(runs)
