from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgeq.check.limits import accuracy_warnings, limit_gate, why_worthless
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import GraphOnly

from .gate_builders import fidelity, interval, verified
from .test_limits import measured


def scored(fp32, score, chance=None, samples=180):
    report = fidelity(drop=interval(100 * (fp32 - score), -0.1, 0.1))
    return replace(report, samples=samples, metric="top1", fp32_score=fp32, score=score, chance_score=chance)


@pytest.mark.parametrize(
    ("fp32", "chance", "samples", "worthless"),
    [
        (1 / 3, 1 / 3, 180, True),  # a factory that forgot its weights answers one class
        (0.37, 1 / 3, 180, True),
        (0.42, 1 / 3, 180, False),
        (0.30, 1 / 3, 180, True),
        (1.0, 1.0, 50, True),  # all of one class: a dead model scores as much
        (1.0, 0.25, 4, False),
        (0.7, 0.001, 1000, False),
    ],
)
def test_a_drop_against_chance_is_not_measured(fp32, chance, samples, worthless):
    report = verified(fidelity=scored(fp32, fp32, chance, samples))
    gate = limit_gate("accuracy_drop", 1.0, measured(report))
    assert gate.outcome == ("unverified" if worthless else "ok")
    if worthless:
        assert gate.exit_code == ExitCode.VERIFICATION
        assert "no better than always predicting the most common label" in gate.detail


@pytest.mark.parametrize(("fp32", "score"), [(-4e-16, -2e-5), (31.2, 30.1), (0.9, 1.5)])
def test_a_score_that_is_no_share_has_no_percentage_points(fp32, score):
    gate = limit_gate("accuracy_drop", 1.0, measured(verified(fidelity=replace(scored(fp32, score), metric="psnr"))))
    assert gate.outcome == "unverified"
    assert "from 0 to 1, but psnr gave" in gate.detail


def test_a_share_of_the_users_own_counts():
    assert why_worthless(scored(0.0, 0.0)) == ""
    assert why_worthless(scored(1.0, 0.0)) == ""


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-60.0, -0.1, "error scores fp32 higher with the labels of other samples"),
        (-60.0, 0.1, "error scores fp32 no better with the right labels"),
        (0.0, 0.0, "error scores fp32 no better with the right labels"),
        (math.nan, math.nan, "error scores fp32 no better with the right labels"),
        (0.1, 60.0, ""),
    ],
)
def test_a_loss_and_what_no_label_changes_do_not_pass_for_a_score(low, high, told):
    shuffled = interval((low + high) / 2, low, high)
    report = verified(fidelity=replace(scored(0.1, 0.2), metric="error", mismatch_drop_pp=shuffled))
    gate = limit_gate("accuracy_drop", 50.0, measured(report))
    assert gate.outcome == ("unverified" if told else "ok")
    assert told in gate.detail
    said = accuracy_warnings("static-int8", report, GateOptions())
    assert any(text.startswith("error scores fp32") for text in said) == bool(told)


def test_without_a_limit_it_is_a_warning():
    unlimited, limited = GateOptions(), GateOptions(limits=(("accuracy_drop", 1.0),))
    at_chance = verified(fidelity=scored(0.5, 0.5, 0.5))
    assert [text[:12] for text in accuracy_warnings("static-int8", at_chance, unlimited)] == [
        "fp32 itself ",
        "accuracy was",
    ]
    assert len(accuracy_warnings("fp32", at_chance, unlimited)) == 1
    assert accuracy_warnings("static-int8", at_chance, limited) == ()
    (unlabelled,) = accuracy_warnings("static-int8", verified(), unlimited)
    assert "labelled --eval-data and --limit" in unlabelled


def test_outputs_far_from_fp32s_are_told_where_no_limit_judged_them():
    far = verified(fidelity=replace(fidelity(), sqnr_db=1.6))
    assert "far from fp32's: 1.6 dB over 32 random inputs" in accuracy_warnings("static-int8", far, GateOptions())[0]
    near = verified(fidelity=replace(fidelity(), sqnr_db=10.0))
    assert "far" not in accuracy_warnings("static-int8", near, GateOptions())[0]
    (told,) = accuracy_warnings("static-int8", far, GateOptions(limits=(("accuracy_drop", 1.0),)))
    assert "far from fp32's" in told


@pytest.mark.parametrize(
    ("scheme", "decibel", "told"), [("fp16", 20.0, True), ("fp16", 30.0, False), ("bf16", 20.0, False)]
)
def test_a_half_precision_graph_far_from_fp32_is_told_although_nothing_here_runs_its_artifact(scheme, decibel, told):
    graph = GraphOnly(why="Core ML runs on Apple's systems", fidelity=replace(fidelity(), sqnr_db=decibel), findings=())
    for report in (replace(verified(), fidelity=None, graph_only=graph), verified(fidelity=graph.fidelity)):
        said = accuracy_warnings(scheme, report, GateOptions())
        assert any("far from fp32's: 20.0 dB" in text for text in said) == told


def test_a_pretrained_model_has_no_fp32_to_be_held_to():
    alone = verified(fidelity=replace(fidelity(), sqnr_db=None))
    (said,) = accuracy_warnings("pretrained", alone, GateOptions())
    assert "already quantized" in said


def test_of_a_score_of_the_whole_set_the_samples_that_would_do_follow_from_its_interval():
    of_set = replace(scored(0.9, 0.874, samples=64), distinct=64, lost=None, won=None, drop_pp=interval(2.6, -0.4, 5.6))
    gate = limit_gate("accuracy_drop", 5.0, measured(verified(fidelity=of_set)))
    assert gate.outcome == "failed"
    assert "needs about 100 distinct samples" in gate.detail, "64 * (3 / 2.4)²"
