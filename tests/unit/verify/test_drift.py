"""Models with state over 1,000 steps in a real runtime: steady, wound up, deaf, still, chaotic, swinging."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import forward, loaded, sample
from torch import nn
from verify_cases import float_case

from edgeq.check.drift import state_gates
from edgeq.core.config import GateOptions
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, unrolled
from edgeq.verify.host import HostRuntime

X = TensorSpec(name="x", dtype="float32", shape=(1, 4))
STATE = TensorSpec(name="s", dtype="float32", shape=(1, 4), fed_from=1)


class Filter(nn.Module):
    """A state that forgets: y and s = keep s + x + bias."""

    keep, bias, scale = 0.9, 0.0, 1.0

    def forward(self, x, s):
        s = self.keep * s + x * self.scale + self.bias
        return torch.tanh(s), s + 0


class Rounded(Filter):
    """The same, rounded to steps of a hundredth, as quantization does."""

    def forward(self, x, s):
        _, s = super().forward(x, s)
        s = torch.round(s * 100) / 100
        return torch.tanh(s), s


class Sum(Filter):
    keep = 1.0


class Biased(Sum):
    """A sum to which a little is added at each step: its error grows for ever."""

    bias = 0.0002


class Deaf(Filter):
    """Ignores its state, but returns one."""

    def forward(self, x, s):
        return super().forward(x, torch.zeros_like(s))


class Level(Filter):
    """Moves around 10."""

    bias = 1.0


class Still(Level):
    """Gets to 10 as it does, and stays there."""

    scale = 0.0


class Bursting(Filter):
    """Is infinite once a counter of steps in its state is through."""

    keep, last = 1.0, 900.0

    def forward(self, x, s):
        s = s + 1 + 0 * x
        return torch.where(
            s > self.last, torch.log(self.last - torch.maximum(s, s * 0 + self.last)), torch.sin(s + x)
        ), s


class Counting(Bursting):
    last = 9e9


class Stateless(Filter):
    keep = 0.0


class Chaos(Filter):
    """The logistic map; its input is as good as nothing."""

    factor = 3.9

    def forward(self, x, s):
        s = torch.clamp(s, 0.01, 0.99)
        s = self.factor * s * (1 - s) + 1e-4 * x
        return s * 2 - 1, s


class OtherChaos(Chaos):
    factor = 3.90001


class Swing(nn.Module):
    """A rotation that keeps its radius."""

    turn = 0.3

    def forward(self, x, s):
        a, b = s[:, :2] + 0.5, s[:, 2:]
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        a, b = a * cos - b * sin, a * sin + b * cos
        radius = torch.sqrt(a * a + b * b) + 1e-6
        s = torch.cat([a / radius - 0.5, b / radius], 1)
        return torch.cat([a, b], 1) / torch.cat([radius, radius], 1) + 0.01 * x, s


class FasterSwing(Swing):
    turn = 0.302


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


def sequences(*lengths):
    def read(i):
        rng = np.random.default_rng(i)
        x = rng.standard_normal((lengths[i], 1, 4)).astype(np.float32)
        x -= x.mean(0)  # so that a sum does not grow by itself
        return sample(x, np.zeros((1, 4), np.float32), name=f"q{i}")

    return Dataset(origin="drawn", count=len(lengths), read=read)


def verified(runtime, artifact, fp32, *lengths, **changes):
    specs = (X, STATE)
    steps = unrolled(sequences(*(lengths or (30, 20))), specs, forward(loaded(fp32, *specs).model))
    return float_case(runtime, artifact, specs, steps, fp32=fp32, **changes)


def outcome(report):
    (gate,) = state_gates(report, GateOptions(), has_state=True)
    return gate.outcome, gate.detail


def test_rounding_that_a_state_forgets_passes(runtime):
    report, golden = verified(runtime, Rounded, Filter)
    assert outcome(report)[0] == "ok"
    assert report.drift.inputs == 50
    state = report.drift.outputs[1]
    assert state.is_state
    assert 40 < state.sqnr_db[-1] < 60
    assert abs(state.growth_db) < 1
    # over the sequences, both sides ran with their own state: rounding adds up to 1 / (1 - 0.9²) of one step's
    assert 38 < report.fidelity.sqnr_db < 55
    # golden samples are the first steps, each with the state that the artifact itself had
    assert len(golden.inputs[0]) == 4
    np.testing.assert_array_equal(golden.inputs[1][1:].reshape(3, 4), golden.outputs[1][:3].reshape(3, 4))


def test_golden_samples_are_of_one_sequence(runtime):
    _, golden = verified(runtime, Filter, Filter, 2, 30)
    assert len(golden.inputs[0]) == 2


def test_an_equal_sum_passes_however_large_it_gets(runtime):
    assert outcome(verified(runtime, Sum, Sum)[0])[0] == "ok"


@pytest.mark.parametrize(
    ("artifact", "fp32", "expected", "text"),
    [
        (Biased, Sum, "failed", "the error of state output1 grows all the time"),
        (Deaf, Filter, "failed", "the artifact does not use the state"),
        (Still, Level, "failed", "state output1 stays where it is"),
        (Bursting, Counting, "failed", "it gives NaN or Inf in output0 at step 901, unlike fp32"),
        (Counting, Bursting, "unverified", "fp32 itself gives NaN or Inf in output0 at step 901"),
        (Stateless, Stateless, "unverified", "fp32 gives the same outputs without its state"),
        (OtherChaos, Chaos, "unverified", "after one rounding of its state"),
        (FasterSwing, Swing, "unverified", "only the phase may have moved"),
    ],
)
def test_what_goes_wrong_late_is_named(runtime, artifact, fp32, expected, text):
    state, detail = outcome(verified(runtime, artifact, fp32)[0])
    assert (state, text in detail) == (expected, True), detail


def test_parity_gives_the_graph_the_state_that_the_artifact_had(runtime):
    right = forward(loaded(Rounded, X, STATE).model)
    report, _ = verified(runtime, Rounded, Filter, graph=right)
    assert report.parity.sqnr_db > 100
    report, _ = verified(runtime, Rounded, Filter, graph=forward(loaded(Filter, X, STATE).model))
    assert report.parity.sqnr_db < 60


def test_without_fp32_nothing_is_judged(runtime):
    report, _ = verified(runtime, Filter, Filter)
    assert report.drift is not None
    steps = unrolled(sequences(5), (X, STATE), None)
    _, golden = float_case(runtime, Filter, (X, STATE), steps, fp32=Filter)
    assert len(golden.inputs[0]) == 4
    assert (
        state_gates(dataclasses.replace(report, drift=None), GateOptions(), has_state=True)[0].outcome == "unverified"
    )
