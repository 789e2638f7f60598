"""The gate of models with state, on measured figures: what fails, what passes, and what nobody can tell."""

from __future__ import annotations

import dataclasses
import math

import pytest

from edgeq.check.drift import growth_of, state_gates
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import DriftReport, OutputDrift

from .gate_builders import verified

STEADY = OutputDrift(
    output=0,
    is_state=False,
    sqnr_db=(32.0, 31.5, 31.5, 31.4),
    start_effect_db=20.0,
    effect_db=20.0,
    motion=1.01,
    offset=0.001,
    untracked=0.01,
    reach=1.0,
    fp32_reach=1.0,
)
STATE = dataclasses.replace(STEADY, output=1, is_state=True)
GROWN = dataclasses.replace(STEADY, sqnr_db=(40.0, 30.0, 25.0, 22.0), motion=1.0, offset=3.0, reaction_db=55.0)


def judged(*outputs, options=None, **report):
    drift = DriftReport(steps=1000, inputs=250, outputs=outputs, **report)
    checked = dataclasses.replace(verified(), drift=drift)
    (gate,) = state_gates(checked, options or GateOptions(), has_state=True)
    assert gate.exit_code == (ExitCode.VERIFICATION if gate.outcome == "unverified" else ExitCode.ACCURACY)
    return gate.outcome, gate.detail


def test_a_model_without_state_has_no_such_gate():
    assert state_gates(verified(), GateOptions(), has_state=False) == ()


def test_a_steady_error_passes_and_is_shown():
    outcome, detail = judged(STEADY, STATE)
    assert outcome == "ok"
    assert "output0: SQNR 32.0, 31.5, 31.5, 31.4 dB by quarter; state output1" in detail


def test_an_error_that_grows_all_the_time_fails():
    outcome, detail = judged(GROWN, STATE)
    assert outcome == "failed"
    assert "the error of output0 grows all the time: SQNR 40.0, 30.0, 25.0, 22.0 dB" in detail
    assert "--keep-fp32" in detail


@pytest.mark.parametrize(
    "sqnr_db",
    [
        (30.0, 25.0, 24.0, 22.0),  # at the bound
        (30.0, 25.0, 27.0, 20.0),  # not in each quarter
        (150.0, 120.0, 90.0, 60.0),  # far below the signal
        (math.inf, math.inf, 90.0, 80.0),
        (40.0, 20.0, 30.0, 40.0),  # falls
    ],
)
def test_errors_that_vary_or_are_tiny_pass(sqnr_db):
    assert judged(dataclasses.replace(GROWN, sqnr_db=sqnr_db))[0] == "ok"


@pytest.mark.parametrize("sqnr_db", [(30.0, 25.0, 24.0, 21.99), (80.0, 70.0, 65.0, 59.9)])
def test_just_beyond_the_bound_it_fails(sqnr_db):
    assert judged(dataclasses.replace(GROWN, sqnr_db=sqnr_db))[0] == "failed"


def test_a_limit_on_drift_takes_the_place_of_the_bound_and_of_nothing_else():
    options = GateOptions(limits=(("drift", 9.0),))
    assert judged(GROWN, options=options)[0] == "ok"
    assert judged(dataclasses.replace(GROWN, start_effect_db=0.2), options=options)[0] == "failed"
    assert judged(problem="it gives NaN or Inf in output0 at step 900, unlike fp32", options=options)[0] == "failed"


def test_an_artifact_that_does_not_use_its_state_fails_though_nothing_grows():
    outcome, detail = judged(dataclasses.replace(STEADY, sqnr_db=(5.0,) * 4, start_effect_db=0.0, reaction_db=5.0))
    assert outcome == "failed"
    assert "the artifact does not use the state" in detail
    assert judged(dataclasses.replace(STEADY, start_effect_db=1.0))[0] == "ok"
    assert judged(dataclasses.replace(STEADY, start_effect_db=None))[0] == "ok"


def test_a_state_that_stays_where_it_is_fails():
    frozen = dataclasses.replace(STATE, motion=0.001, offset=0.0, untracked=1.0, sqnr_db=(12.0,) * 4)
    assert "state output1 stays where it is" in judged(STEADY, frozen)[1]
    assert judged(STEADY, dataclasses.replace(frozen, motion=None, untracked=None))[0] == "ok"  # nor moves fp32's
    assert judged(STEADY, dataclasses.replace(frozen, sqnr_db=(31.0,) * 4))[0] == "ok"


def test_an_output_that_moves_on_its_own_fails():
    other = dataclasses.replace(STEADY, motion=1.3, untracked=0.8, sqnr_db=(12.0,) * 4)
    assert "output0 does not move as fp32's" in judged(other)[1]
    assert judged(dataclasses.replace(other, untracked=0.79))[0] == "ok"
    assert judged(dataclasses.replace(other, sqnr_db=(30.0,) * 4))[0] == "ok"
    assert "nothing is left of output0" in judged(dataclasses.replace(STEADY, sqnr_db=(0.9,) * 4, untracked=None))[1]


def test_a_state_that_leaves_its_range_fails():
    clipped = dataclasses.replace(
        STATE, reach=26.7, fp32_reach=285.0, sqnr_db=(6.8, 3.3, 2.0, 1.4), motion=0.2, untracked=0.7
    )
    outcome, detail = judged(STEADY, dataclasses.replace(clipped, offset=60.0, reaction_db=52.0))
    assert outcome == "failed"
    assert "leaves the range that it was calibrated for (it ends at 26.7, where fp32 reaches 285)" in detail
    rare_peaks = dataclasses.replace(clipped, sqnr_db=(20.0,) * 4)
    assert judged(STEADY, rare_peaks)[0] == "ok"


def test_a_chaotic_model_and_a_lost_phase_are_unverified():
    far = dataclasses.replace(STEADY, sqnr_db=(9.0, 4.0, 2.0, 0.5), effect_db=0.4, motion=0.5)
    outcome, detail = judged(dataclasses.replace(far, reaction_db=1.0))
    assert outcome == "unverified"
    assert "fp32 itself ends at 1.0 dB after one rounding of its state" in detail
    assert judged(dataclasses.replace(far, reaction_db=3.6))[0] == "failed"
    # a state that only remembers one rounding excuses nothing
    assert judged(dataclasses.replace(GROWN, sqnr_db=(45.0, 40.0, 35.0, 30.0), reaction_db=32.0))[0] == "failed"
    turned = dataclasses.replace(far, reaction_db=50.0, motion=0.97, offset=0.02, untracked=1.9)
    outcome, detail = judged(turned)
    assert outcome == "unverified"
    assert "only the phase may have moved" in detail
    assert judged(dataclasses.replace(turned, offset=0.5))[0] == "failed"
    assert judged(dataclasses.replace(turned, motion=0.7))[0] == "failed"
    # an error of the mean, which is small yet, winds up
    small = dataclasses.replace(GROWN, sqnr_db=(33.4, 25.0, 20.6, 17.7), motion=1.0, offset=0.016, untracked=0.001)
    assert judged(small)[0] == "failed"
    # an excuse for one output excuses no other
    assert judged(turned, dataclasses.replace(STATE, motion=0.0, sqnr_db=(9.0,) * 4))[0] == "failed"


def test_what_fp32_does_not_tell_is_unverified():
    assert judged(unsure="fp32 itself gives NaN or Inf in output0 at step 12") == (
        "unverified",
        "fp32 itself gives NaN or Inf in output0 at step 12",
    )
    (gate,) = state_gates(verified(), GateOptions(), has_state=True)
    assert gate.outcome == "unverified"


def test_the_check_can_be_turned_off_but_for_what_is_not_finite():
    options = GateOptions(limits=(("sqnr", 0.0),))
    assert judged(GROWN, dataclasses.replace(STATE, motion=0.0, sqnr_db=(9.0,) * 4), options=options)[0] == "ok"
    assert judged(problem="it gives NaN or Inf in output0 at step 9, unlike fp32", options=options)[0] == "failed"


def test_the_growth_for_a_limit():
    def of(*outputs, limit=3.0):
        return growth_of(DriftReport(steps=1000, inputs=9, outputs=outputs), limit)

    assert growth_of(None, 3.0)[0] is None
    assert of(GROWN, STATE)[0] == pytest.approx(8.0)
    assert of(dataclasses.replace(GROWN, sqnr_db=(150.0, 140.0, 90.0, 60.0)))[0] == 0.0
    # noise around the right mean is no lost phase where it does not grow
    assert of(dataclasses.replace(STEADY, offset=0.0, untracked=0.001))[0] == pytest.approx(0.1)
    chaotic = dataclasses.replace(GROWN, reaction_db=19.0)
    assert "one rounding" in of(chaotic)[1]
    assert of(chaotic)[0] is None
    assert of(chaotic, limit=8.5)[0] == pytest.approx(8.0)
