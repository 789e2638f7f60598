"""When a graph is lost for certain, from what a few samples of it show."""

from __future__ import annotations

import dataclasses

import pytest

from edgeq.check.fidelity import certain_loss, looks_lost
from edgeq.core.config import GateOptions
from edgeq.core.results.measured import GraphOnly, GroupFidelity, OutputAgreement, VerifyReport

from .gate_builders import fidelity

NO_FLOOR = GateOptions(limits=(("sqnr", 0.0),))


def seen(*, sqnr_db=20.0, agreeing=64, constant=False, inputs="evaluation", findings=(), samples=64):
    """Return what 64 samples of ten classes show."""
    group = GroupFidelity(
        output=0,
        axis=1,
        channels=tuple(range(10)),
        count=10,
        of=10,
        sqnr_db=sqnr_db,
        change_sqnr_db=0.0 if constant else sqnr_db,
        spread_sqnr_db=0.0 if constant else sqnr_db,
        error_rms=1.0,
        error_max=3.0,
        shares=False,
        unlike=False,
        constant=constant,
    )
    found = dataclasses.replace(
        fidelity(),
        samples=samples,
        distinct=samples,
        inputs=inputs,
        sqnr_db=sqnr_db,
        groups=(group,),
        agreements=(OutputAgreement(output=0, agreeing=agreeing, ranked=samples, distinct=samples, chance=0.1),),
    )
    only = GraphOnly(why="", fidelity=found, findings=findings)
    return VerifyReport(host="nothing", outputs=(), findings=(), graph_only=only)


@pytest.mark.parametrize(
    ("what", "best_db", "expected"),
    [
        ({"constant": True, "agreeing": 7}, 5.0, "output 0 is constant, unlike fp32's"),
        ({"sqnr_db": -6.0, "agreeing": 7}, -2.0, "output 0 is more error than signal on each of them"),
        ({"sqnr_db": -6.0, "inputs": "random"}, -2.0, "output 0 is more error than signal on each of them"),
        ({"agreeing": 7}, 25.0, "output 0: 7 of 64 samples have fp32's class; chance alone gives 10.0%"),
    ],
)
def test_what_no_other_sample_can_save(what, best_db, expected):
    assert looks_lost(seen(**what), (best_db,), GateOptions())
    assert certain_loss("static-int8", seen(**what), (best_db,), GateOptions()) == expected
    assert certain_loss("static-int8", seen(**what), (best_db,), NO_FLOOR) == ""
    assert not looks_lost(seen(**what), (best_db,), NO_FLOOR)


@pytest.mark.parametrize(
    ("what", "best_db"),
    [
        ({}, 25.0),
        ({"sqnr_db": -6.0}, 12.0),  # one sample is kept: it may be louder than all that are lost
        ({"agreeing": 17}, 25.0),  # the floor fails, but not by 4 standard deviations
        ({"agreeing": 1, "samples": 4}, 25.0),  # too few samples
        ({"agreeing": 7, "inputs": "random"}, 25.0),  # which random inputs do not show
        ({"constant": True, "inputs": "random"}, 25.0),
        ({"constant": True, "samples": 4, "agreeing": 4}, 25.0),
    ],
)
def test_what_the_gates_might_pass_goes_on(what, best_db):
    assert certain_loss("static-int8", seen(**what), (best_db,), GateOptions()) == ""


@pytest.mark.parametrize(
    ("what", "best_db"),
    [
        ({"samples": 4, "agreeing": 4}, 25.0),
        ({"sqnr_db": -6.0, "samples": 4, "agreeing": 4}, 12.0),  # one that is kept stays kept
        ({"samples": 4, "agreeing": 0, "inputs": "random"}, 12.0),  # a class of random inputs proves nothing
        ({"samples": 4, "agreeing": 0, "constant": True, "inputs": "random"}, 12.0),
    ],
)
def test_a_few_samples_on_which_more_could_prove_no_loss(what, best_db):
    assert not looks_lost(seen(**what), (best_db,), GateOptions())
