from __future__ import annotations

import dataclasses

from edgeq.check.search import search_gates
from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Attempt, Scores, Search, Sensitivity
from edgeq.core.results.report import Gate

NEAR = Attempt(kept=("a",), size_bytes=10, scores=Scores(sqnr_db=20.0, agreement=0.99, drop_pp=0.7), meets=False)
FOUND = Search(
    limits=(("accuracy_drop", 0.5), ("sqnr", 15.0)),
    samples=100,
    ranking=(Sensitivity(layer="a", alone_db=10.0, but_one_db=None, weight_bytes=5),),
    attempts=(NEAR,),
    chosen=0,
)


def test_no_search_no_gate():
    assert search_gates(None, ()) == ()


def test_no_assignment_fails_with_the_accuracy_code_and_names_the_nearest():
    (gate,) = search_gates(FOUND, ())
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.ACCURACY)
    assert gate.limit == "accuracy_drop <= 0.50 pp, sqnr >= 15.00 dB"
    assert gate.measured == "0.70 pp, 20.00 dB"
    assert "nearest" in gate.detail


def test_an_assignment_that_keeps_the_limits_passes():
    (gate,) = search_gates(dataclasses.replace(FOUND, attempts=(dataclasses.replace(NEAR, meets=True),)), ())
    assert gate.passed
    assert "1 of 1 layers in float, over 100 search samples" in gate.detail


def _limit(name: str, outcome: str) -> Gate:
    return Gate(name=name, outcome=outcome, limit="", measured="", detail="", exit_code=ExitCode.ACCURACY)


def test_what_the_evaluation_data_prove_is_not_refused_for_the_few_samples_of_the_search():
    proven = (_limit("accuracy_drop", "ok"), _limit("sqnr", "ok"), _limit("size", "failed"))
    (gate,) = search_gates(FOUND, proven)
    assert gate.passed
    assert "meets them on the evaluation data" in gate.detail
    for limits in (proven[:1], (proven[0], _limit("sqnr", "unverified")), (proven[0], _limit("sqnr", "failed"))):
        (gate,) = search_gates(FOUND, limits)
        assert gate.outcome == "failed"
