"""The parity gate: one step, or what the graph's own reaction allows a deep model."""

from __future__ import annotations

import math

import pytest

from edgeq.check.artifact import parity_gate, sizes_gates, with_reuse
from edgeq.check.evaluate import size_warnings
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import BeyondRun, Parity, SizeRun, SizesReport, VerifyReport
from edgeq.core.results.report import Reuse
from edgeq.core.schemes import MIN_SQNR_DB_DEEP


def parity(*, steps: float | None = 17.0, sqnr_db: float = 22.7, reaction_db: float | None = 17.5) -> Parity:
    return Parity(samples=8, max_abs=0.1, max_steps=steps, sqnr_db=sqnr_db, differing=0.9, reaction_db=reaction_db)


def test_a_deep_model_passes_when_it_is_nearer_than_its_own_reaction():
    gate = parity_gate("static-int8", parity())
    assert gate.outcome == "ok"
    assert "14.5 dB" in gate.limit
    assert "17 steps" in gate.measured


def test_which_of_two_equal_amplifications_is_ahead_is_chance():
    assert parity_gate("static-int8", parity(sqnr_db=27.0, reaction_db=29.6)).outcome == "ok"


@pytest.mark.parametrize("sqnr_db", [14.4, 3.0, -2.0, math.nan])
def test_an_artifact_farther_than_the_reaction_fails(sqnr_db):
    gate = parity_gate("static-int8", parity(sqnr_db=sqnr_db))
    assert gate.outcome == "failed"
    assert gate.exit_code == ExitCode.VERIFICATION


def test_a_model_that_amplifies_everything_proves_nothing():
    chaotic = parity(sqnr_db=MIN_SQNR_DB_DEEP - 0.1, reaction_db=1.0)
    assert parity_gate("static-int8", chaotic).outcome == "failed"


def test_without_a_reaction_only_steps_count():
    assert parity_gate("static-int8", parity(reaction_db=None)).outcome == "failed"
    assert parity_gate("static-int8", parity(steps=1.0, reaction_db=None)).outcome == "ok"


def test_fp32_is_never_excused():
    assert parity_gate("fp32", parity(steps=None, sqnr_db=59.9, reaction_db=10.0)).outcome == "failed"


def test_int8_without_quantized_outputs_may_use_the_reaction_too():
    assert parity_gate("static-int8", parity(steps=None)).outcome == "ok"
    assert parity_gate("static-int8", parity(steps=None, reaction_db=26.0)).outcome == "failed"


@pytest.mark.parametrize(
    ("steps", "told"),
    [(1.0, "it is 1 step, which passes: omit --reuse-qparams-from"), (3.0, "it is 3 steps, which fails too")],
)
def test_a_parity_that_fails_with_a_shipped_models_ranges_says_what_new_ones_give(steps: float, told: str) -> None:
    def seen(steps: float) -> Parity:
        return Parity(samples=8, max_abs=0.1, max_steps=steps, sqnr_db=31.3, differing=0.5)

    reuse = Reuse(
        shipped="a" * 64,
        tensors=3,
        fresh=(),
        patch_bytes=1,
        patch_bytes_without=2,
        fidelity_without=None,
        parity_without=seen(steps),
    )
    gate = with_reuse(parity_gate("static-int8", seen(4.0)), "static-int8", reuse)
    assert gate.outcome == "failed"
    assert f"with all ranges new {told}" in gate.detail
    passed = parity_gate("static-int8", seen(1.0))
    assert with_reuse(passed, "static-int8", reuse) == passed


def sizes(*runs: SizeRun, beyond: tuple[BeyondRun, ...] = ()) -> VerifyReport:
    return VerifyReport(host="x", outputs=(), findings=(), sizes=SizesReport(runs=runs, beyond=beyond))


def at(size: int, *, sqnr_db: float = 90.0, problem: str = "") -> SizeRun:
    found = parity(steps=None, sqnr_db=sqnr_db, reaction_db=None)
    return SizeRun(sizes=(("seq", size),), samples=4, parity=found, sqnr_db=60.0, problem=problem)


def test_one_size_that_is_wrong_fails_the_others() -> None:
    (good,) = sizes_gates("fp32", sizes(at(128), at(8)))
    assert (good.outcome, good.measured) == ("ok", "2 sizes as stated")
    for wrong in (at(8, sqnr_db=59.9), at(8, sqnr_db=math.nan), at(8, problem="it fails")):
        (gate,) = sizes_gates("fp32", sizes(at(128), wrong))
        assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.VERIFICATION)
        assert gate.detail.startswith("at seq=8, ")
    assert sizes_gates("fp32", VerifyReport(host="x", outputs=(), findings=())) == ()


def test_what_happens_beyond_the_range_fails_nothing_and_is_said() -> None:
    beyond = BeyondRun(sizes=(("seq", 129),), outcome="other")
    (gate,) = sizes_gates("fp32", sizes(at(128), beyond=(beyond,)))
    assert gate.outcome == "ok"
    assert "seq=129 runs and gives wrong outputs" in gate.detail
    assert size_warnings(sizes(at(128), beyond=(beyond,)))[0].endswith("check sizes in the app")
    assert size_warnings(sizes(at(128))) == ()
