"""Sizes that vary: the artifact is run at the ends of the range, in the middle, and just outside of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import forward, loaded, sample
from torch import nn
from verify_cases import float_case

from edgeq.check.artifact import sizes_gates
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.samples import Dataset
from edgeq.verify.host import HostRuntime

TIME = VaryingSize(axis=2, name="time", least=8, most=64)
AUDIO = TensorSpec(name="x", dtype="float32", shape=(1, 1, 64), varying=(TIME,))


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class OnlyWhereLong(Filter):
    """Does what a filter does at the largest size alone."""

    def forward(self, x):
        return self.conv(x) * (x.shape[2] / 64) ** 2


class Deaf(Filter):
    def forward(self, x):
        return torch.zeros_like(self.conv(x))


class Framed(Filter):
    """Takes no size above the range."""

    def __init__(self):
        super().__init__()
        self.window = nn.Parameter(torch.linspace(0.5, 1, 64))

    def forward(self, x):
        return self.conv(x) * self.window[: x.shape[2]]


class Averaged(nn.Module):
    def forward(self, x, mask):
        return (x * mask).sum(1) / mask.sum(1)


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


def clips(*lengths):
    arrays = [np.random.default_rng(i).standard_normal((1, size)).astype(np.float32) for i, size in enumerate(lengths)]
    return Dataset(origin="clips", count=len(arrays), read=lambda i: sample(arrays[i], name=f"clip {i}"))


def outcome(report):
    (gate,) = sizes_gates("fp32", report)
    return gate.outcome, gate.detail


def test_data_of_one_length_are_run_at_all_sizes(runtime):
    report, golden = float_case(runtime, Framed, (AUDIO,), clips(20, 20, 20))
    runs = {run.text: run for run in report.sizes.runs}
    assert list(runs) == ["time=64", "time=8", "time=36"]
    assert all(run.parity.samples == 3 and run.parity.sqnr_db > 100 and run.sqnr_db > 100 for run in runs.values())
    assert [run.text for run in report.sizes.beyond] == ["time=65 is refused by the runtime", "time=7 runs too"]
    assert outcome(report) == (
        "ok",
        "at time=64; at time=8; at time=36; time=65 is refused by the runtime; time=7 runs too",
    )
    (output,) = report.outputs
    assert (output.shape, output.varying) == ((1, 4, 64), (TIME,))
    # an app's self-test, and the times of a device, are of the largest size
    assert golden.inputs[0].shape == (3, 1, 1, 64)
    assert golden.outputs[0].shape == (3, 4, 64)


def test_an_artifact_that_is_right_at_the_largest_size_alone_fails(runtime):
    right = forward(loaded(Filter, AUDIO).model)
    report, _ = float_case(runtime, OnlyWhereLong, (AUDIO,), clips(64, 64), fp32=Filter, graph=right)
    assert report.parity.sqnr_db > 100  # of the data, which have that size
    state, detail = outcome(report)
    assert state == "failed"
    assert "at time=8, " in detail
    assert "at time=36, " in detail
    assert "time=64" not in detail


def test_one_that_answers_beyond_its_range_with_something_else_is_said(runtime):
    report, _ = float_case(runtime, Filter, (AUDIO,), clips(64, 20), fp32=Framed)
    assert report.sizes.beyond[0].text == "time=65 runs and gives wrong outputs"


def test_samples_of_unlike_lengths_do_not_hide_a_constant_output(runtime):
    report, _ = float_case(runtime, Deaf, (AUDIO,), clips(20, 30, 40, 50))
    assert report.findings == ("the output is constant: it is the same for every input",)


def test_a_mask_that_would_leave_nothing_is_cut_from_its_end(runtime):
    size = VaryingSize(axis=1, name="seq", least=4, most=32)
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, 32), varying=(size,)) for name in ("x", "mask"))
    pairs = [(np.arange(16, dtype=np.float32) + i, (np.arange(16) >= 10).astype(np.float32)) for i in range(3)]
    data = Dataset(origin="padded in front", count=3, read=lambda i: sample(*pairs[i], name=f"s{i}"))
    report, _ = float_case(runtime, Averaged, specs, data)
    assert outcome(report)[0] == "ok"
    assert [run.problem for run in report.sizes.runs] == ["", "", ""]
