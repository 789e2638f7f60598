"""Whether a metric's higher scores are the better ones, seen from how fp32 scores against the wrong labels."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.errors import UsageError
from edgeq.core.samples import Batch, Sample
from edgeq.verify.accumulate import Mismatches, batch_scores

TRUTH = np.random.default_rng(0).random(40)


def error(outputs, label):
    return float(np.clip(abs(outputs[0][0] - label), 0, 1))


def gain(outputs, label):
    return 1 - error(outputs, label)


def labels_as(labels):
    return [0.0 if label is None else float(label) for label in labels]


def mismatches(score, labels=TRUTH, outputs=TRUTH, rows=4) -> Mismatches:
    found = Mismatches()
    for start in range(0, len(labels), rows):
        part = range(start, min(start + rows, len(labels)))
        values = np.array([[outputs[i] + 0.01] for i in part], np.float32)
        values = np.concatenate([values, np.zeros((rows - len(values), 1), np.float32)])
        samples = tuple(Sample(inputs=(values[0],), raw=(), label=labels[i], name="", digest="") for i in part)
        batch = Batch(inputs=(values,), samples=samples)
        found.add(score, batch, (values,), batch_scores(score, batch, (values,)))
    return found


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_an_error_grows_with_other_samples_labels_and_a_gain_shrinks(rows):
    wrong, right = (mismatches(score, rows=rows).drop_pp() for score in (error, gain))
    assert len(mismatches(error, rows=rows).own) == 39
    assert wrong.high < 0
    assert right.low > 0
    assert wrong.estimate == pytest.approx(-right.estimate)


def test_outputs_that_have_nothing_to_do_with_their_labels_prove_nothing():
    drop = mismatches(error, outputs=np.random.default_rng(1).random(40)).drop_pp()
    assert drop.low < 0 < drop.high


@pytest.mark.parametrize("labels", [[0] * 20 + [1] * 20, [0, 1] * 20, [None] * 10 + [0] * 15 + [1] * 15])
def test_samples_that_come_class_by_class_meet_the_other_class_too(labels):
    found = mismatches(
        lambda outputs, label: float(round(float(outputs[0][0])) == label), labels, outputs=labels_as(labels)
    )
    assert len(found.own) >= 15
    assert found.drop_pp().estimate == 100
    assert found.drop_pp().low > 0


def test_scores_that_no_label_changes_prove_nothing():
    drop = mismatches(lambda *_: 0.5).drop_pp()
    assert drop.estimate == 0
    assert drop.low < 0 < drop.high


@pytest.mark.parametrize("label", [3, np.zeros((2, 2)), {"box": np.zeros((2, 4))}])
def test_equal_labels_are_no_other_ones(label):
    found = mismatches(lambda *_: 0.5, labels=[label] * 8)
    assert found.drop_pp() is None or isinstance(label, dict)


def test_a_metric_that_refuses_another_samples_label_is_left_alone():
    def picky(outputs, label):
        if abs(outputs[0][0] - label) > 0.02:
            raise UsageError("not this one", "")
        return 1.0

    assert mismatches(picky, labels=range(40), outputs=range(40)).drop_pp() is None
