from __future__ import annotations

import dataclasses
import math

import pytest

from edgeq.check.search import training_gates, training_warnings
from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Tuning

GOOD = Tuning(
    loss="kl",
    weights="last",
    epochs=8,
    learning_rate=0.002,
    batch=32,
    samples=100,
    held_out=10,
    start_loss=0.2,
    end_loss=0.1,
    trained_loss=0.1,
    end_agreement=1.0,
)


def test_no_training_no_gate():
    assert training_gates(None) == ()
    assert training_warnings(None) == ()


def test_a_finished_training_passes():
    (gate,) = training_gates(GOOD)
    assert gate.passed
    assert training_warnings(GOOD) == ()


def test_a_diverged_training_fails_with_the_accuracy_code():
    (gate,) = training_gates(dataclasses.replace(GOOD, epochs=2, diverged_in=3))
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.ACCURACY)
    assert "epoch 3" in gate.measured
    assert "epoch 2" in gate.detail
    (gate,) = training_gates(dataclasses.replace(GOOD, epochs=0, weights="start", diverged_in=1))
    assert "before the training" in gate.detail


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_users_loop_that_ended_without_a_loss_fails(loss):
    (gate,) = training_gates(dataclasses.replace(GOOD, weights="user", end_loss=loss, trained_loss=loss))
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.ACCURACY)
    assert f"a held-out loss of {loss}" in gate.measured


def test_a_training_that_ran_away_with_a_finite_loss_fails_too():
    ran_away = dataclasses.replace(GOOD, weights="start", start_loss=0.02, end_loss=0.02, trained_loss=2.4)
    (gate,) = training_gates(ran_away)
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.ACCURACY)
    assert "2.4" in gate.measured
    assert "before the training" in gate.detail
    assert training_warnings(ran_away) == ()
    # where the static model is as good as equal to the teacher, ten times its loss is nothing
    (gate,) = training_gates(dataclasses.replace(ran_away, start_loss=1e-6, trained_loss=9e-3))
    assert gate.passed


def test_a_training_that_did_not_help_is_told_of():
    (warning,) = training_warnings(dataclasses.replace(GOOD, weights="start"))
    assert "static-int8" in warning
