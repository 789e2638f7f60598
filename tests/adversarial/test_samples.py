"""Evaluation data that hides a loss: repeats, rare classes, a handful, agreement by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.check.limits import accuracy_warnings, why_worthless
from edgeq.core.config import GateOptions
from edgeq.verify.accumulate import PARITY_SAMPLES, spread

from .judged import floor, limit, report_of


def one_hot(labels, classes, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(labels), classes))
    return (4 * np.eye(classes)[labels] + noise).astype(np.float32)


@settings(max_examples=15)
@given(st.integers(8, 40), st.integers(1, 30))
def test_repeats_prove_no_more_than_the_samples(distinct, times):
    labels = np.tile(np.arange(distinct) % 2, times)
    scores = np.tile(one_hot(np.arange(distinct) % 2, 2), (times, 1))
    keys = list(range(distinct)) * times
    gate = limit("accuracy_drop", 0.5, [scores], [scores], labels=labels, keys=keys)
    assert gate.outcome == "unverified"
    assert f"{distinct} distinct samples cannot prove a drop within" in gate.detail
    assert "needs about 390 distinct samples" in gate.detail


def test_enough_samples_prove_it():
    labels = np.arange(400) % 4
    scores = one_hot(labels, 4)
    assert limit("accuracy_drop", 0.5, [scores], [scores], labels=labels).outcome == "ok"


@settings(max_examples=15)
@given(st.integers(5, 40), st.integers(200, 800), st.booleans())
def test_a_class_that_is_no_longer_named_fails_whatever_its_share(rare, common, labelled):
    labels = np.array([1] * rare + [0] * common)
    reference = one_hot(labels, 2)
    measured = one_hot(np.zeros_like(labels), 2)
    gates = floor([reference], [measured], labels=labels if labelled else None)
    assert gates["class_drop"].outcome == "failed"
    assert gates["class_drop"].exit_code == 5
    assert f"class 1: 0 right of {rare} samples" in gates["class_drop"].detail


@pytest.mark.parametrize(
    ("rare", "outcome"), [(1, "ok"), (2, "ok"), (3, "unverified"), (4, "unverified"), (6, "failed")]
)
def test_of_a_few_samples_of_a_class_only_so_much_is_proven(rare, outcome):
    labels = np.array([1] * rare + [0] * 200)
    gates = floor([one_hot(labels, 2)], [one_hot(np.zeros_like(labels), 2)], labels=labels)
    assert gates["class_drop"].outcome == outcome
    assert gates["fidelity"].outcome == "ok"


@settings(max_examples=15)
@given(st.integers(3, 20), st.integers(0, 99))
def test_no_class_of_an_equal_artifact_collapses(classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, 300, p=rng.dirichlet(np.full(classes, 0.5)))
    scores = one_hot(labels, classes, seed)
    gates = floor([scores], [scores], labels=labels)
    assert {gate.outcome for gate in gates.values()} == {"ok"}


@settings(max_examples=15)
@given(st.integers(2, 10), st.integers(0, 99))
def test_agreement_by_chance_is_never_ok(classes, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, classes, (2, 400))
    gate = floor([one_hot(left, classes)], [one_hot(right, classes)])["fidelity"]
    assert gate.outcome == "failed"
    assert "have fp32's top-1 class" in gate.detail


@settings(max_examples=15)
@given(st.integers(0, 99), st.booleans())
def test_which_of_several_certain_answers_is_the_first_says_nothing(seed, signed):
    rng = np.random.default_rng(seed)
    wide = rng.normal(0, 6, (200, 40)) + np.linspace(0, 2, 40)
    values = (np.tanh(wide) if signed else 1 / (1 + np.exp(-wide))).astype(np.float32)
    rounded = (np.round(values * 127) / 127).astype(np.float32)
    assert (values.argmax(1) == rounded.argmax(1)).mean() < 0.3  # the rounded ones are 1.0 in several classes
    assert floor([values], [rounded])["fidelity"].outcome == "ok"
    # with labels the order decides on right and wrong
    labels = values.argmax(1)
    assert {gate.outcome for gate in floor([values], [rounded], labels=labels).values()} != {"ok"}
    # and scores that are certain of nothing have a first class, however close they are
    close = (0.5 + values / 1000).astype(np.float32)
    flat = (np.round(close * 127) / 127 + rng.permutation(40) / 1e5).astype(np.float32)
    assert floor([close], [flat])["fidelity"].outcome == "failed"


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_a_good_artifact_that_flips_a_tenth_is_above_the_floor(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 300)
    other = np.where(rng.random(300) < 0.1, rng.integers(0, 5, 300), labels)
    assert floor([one_hot(labels, 5)], [one_hot(other, 5)], labels=labels)["fidelity"].outcome == "ok"


def test_a_drop_of_twenty_points_is_never_ok():
    labels = np.arange(400) % 4
    other = np.where(np.arange(400) < 100, (labels + 1) % 4, labels)
    scores, wrong = one_hot(labels, 4), one_hot(other, 4)
    gates = floor([scores], [wrong], labels=labels)
    assert gates["fidelity"].outcome == "failed"
    assert "top1 falls by 25.0 pp" in gates["fidelity"].detail
    assert floor([scores], [wrong], labels=labels, limits=[("accuracy_drop", 30.0)])["fidelity"].outcome == "ok"


@pytest.mark.parametrize(
    ("metric", "proven"),
    [
        (lambda outputs, _: float(outputs[0].max() > 3), False),  # noise leaves it, or raises it
        (lambda _outputs, _label: 0.5, False),
        (lambda outputs, _: float(np.exp(-np.abs(outputs[0] - np.round(outputs[0] / 4) * 4).mean())), True),
        (lambda outputs, _: float(1 - np.exp(-np.abs(outputs[0] - np.round(outputs[0] / 4) * 4).mean())), False),
    ],
)
def test_a_metric_without_labels_must_fall_with_noise(metric, proven):
    scores = one_hot(np.arange(100) % 4, 4)
    report = report_of([scores], [scores], metric=metric)
    assert (why_worthless(report.fidelity) == "") == proven


@pytest.mark.parametrize("tied", [0, 4, 8, 100])
def test_a_first_class_that_is_shared_in_the_artifact_alone_is_told(tied):
    scores = one_hot(np.arange(100) % 4, 4)
    measured = scores.copy()
    measured[:tied, 3] = measured[:tied].max(axis=1)
    told = accuracy_warnings("static-int8", report_of([scores], [measured]), GateOptions())
    assert any("two classes tie for the top score" in line for line in told) == (tied > 5)
    both = accuracy_warnings("static-int8", report_of([measured], [measured]), GateOptions())
    assert not any("tie for the top score" in line for line in both)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 10])
def test_parity_sees_samples_of_all_parts_and_of_every_period(period):
    """Data is sorted by class, or has one class after the other in turn; the first eight samples are of one kind."""
    for count in range(PARITY_SAMPLES, 2000):
        seen = sorted(spread(count, PARITY_SAMPLES))
        gaps = [after - before for before, after in zip(seen, [*seen[1:], count], strict=True)]
        assert len(seen) == PARITY_SAMPLES
        assert max(gaps) <= count / 4
        assert len({i % period for i in seen}) > 1, (count, seen)
