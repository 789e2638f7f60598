"""Outputs whose parts have unlike ranges: what is lost must be named, and what int8 rounds must pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.check.artifact import parity_gate
from edgeq.check.limits import accuracy_warnings
from edgeq.core.config import GateOptions
from edgeq.core.results.measured import Parity
from edgeq.verify.channels import lost_channels
from edgeq.verify.metrics import Comparison

from .judged import floor, limit, report_of, rounded


def boxes_and_scores(count, anchors, scale, seed, *, channels_last):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, scale, (count, anchors, 4))
    scores = rng.uniform(0, 1, (count, anchors, 1))
    joined = np.concatenate((boxes, scores), 2).astype(np.float32)
    return joined if channels_last else joined.transpose(0, 2, 1).copy()


@settings(max_examples=15)
@given(st.floats(20, 1e5), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_scores_that_boxes_drown_are_named(scale, anchors, channels_last, seed):
    reference = boxes_and_scores(16, anchors, scale, seed, channels_last=channels_last)
    measured = reference.copy()
    measured[(..., 4) if channels_last else (slice(None), 4)] = 0.0
    gates = floor([reference], [measured])
    assert gates["fidelity"].outcome == "failed"
    assert gates["fidelity"].exit_code == 5
    assert "output 0, channel 4: constant, unlike fp32's" in gates["fidelity"].detail
    gate = limit("sqnr", 30.0, [reference], [measured])
    assert gate.outcome == "failed"
    assert "output 0, channel 4" in gate.detail


@settings(max_examples=15)
@given(st.floats(1, 8), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_ranges_that_one_scale_holds_pass(scale, anchors, channels_last, seed):
    reference = boxes_and_scores(16, anchors, scale, seed, channels_last=channels_last)
    assert floor([reference], [rounded(reference)])["fidelity"].outcome == "ok"


@settings(max_examples=15)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12), st.integers(0, 99))
def test_one_lost_channel_of_any_scales_is_found(exponents, seed):
    """A chain of scales with no gap between neighbours hides the smallest as well as a gap does."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** np.array(exponents)
    reference = (rng.normal(size=(24, 6, len(scales))) * scales).astype(np.float32)
    measured = reference.copy()
    lost = int(scales.argmin())
    measured[..., lost] = 0.0
    gate = floor([reference], [measured])["fidelity"]
    assert gate.outcome == "failed"
    assert f"channel {lost}" in gate.detail
    own_scales = np.stack([rounded(reference[..., i]) for i in range(len(scales))], axis=-1)
    assert floor([reference], [own_scales])["fidelity"].outcome == "ok"


@settings(max_examples=15)
@given(st.integers(40, 200), st.floats(100, 1e4), st.integers(0, 9))
def test_a_tenth_of_many_channels_is_a_group(channels, scale, seed):
    rng = np.random.default_rng(seed)
    small = max(2, channels // 5)
    reference = rng.normal(size=(12, channels, 5)).astype(np.float32)
    reference[:, small:] *= scale
    measured = reference.copy()
    measured[:, :small] = 0.0
    assert floor([reference], [measured])["fidelity"].outcome == "failed"


def test_a_dead_feature_among_many_is_no_lost_channel():
    rng = np.random.default_rng(0)
    reference = np.maximum(rng.normal(size=(12, 64, 4, 4)), 0).astype(np.float32)
    reference[:, 5] *= 1e-3
    assert floor([reference], [rounded(reference)])["fidelity"].outcome == "ok"


@settings(max_examples=15)
@given(st.integers(33, 60), st.booleans(), st.integers(0, 99))
def test_the_one_score_of_poses_with_many_coordinates_is_found(channels, channels_last, seed):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0, 640, (12, 80, channels))
    reference[..., 4] /= 640
    reference = reference.astype(np.float32)
    measured = rounded(reference)
    if not channels_last:
        reference, measured = (side.transpose(0, 2, 1).copy() for side in (reference, measured))
    gate = floor([reference], [measured])["fidelity"]
    assert gate.outcome == "failed"
    assert "output 0, channel 4: constant, unlike fp32's" in gate.detail
    own = reference + rng.normal(0, 0.002, reference.shape).astype(np.float32)
    assert floor([reference], [own])["fidelity"].outcome == "ok"


def sparse(count, anchors, events, seed, peak=0.9):
    """Return boxes in pixels and scores near 0 but for a few objects in each sample, as a real detector gives."""
    rng = np.random.default_rng(seed)
    boxes, scores = rng.uniform(0, 640, (count, anchors, 4)), rng.uniform(0, 0.002, (count, anchors, 1))
    for row in scores:
        row[rng.choice(anchors, events, replace=False)] = peak
    return boxes.astype(np.float32), scores.astype(np.float32)


@settings(max_examples=10)
@given(st.integers(64, 3000), st.integers(1, 3), st.sampled_from(["zero", "near zero", "a tenth"]), st.integers(0, 99))
def test_scores_of_a_few_objects_among_many_anchors_are_no_faint_ones(anchors, events, how, seed):
    boxes, scores = sparse(16, anchors, events, seed)
    found = {"zero": np.zeros_like(scores), "near zero": np.minimum(scores, 0.002), "a tenth": scores * 0.1}[how]
    separate = floor([boxes, scores], [boxes, found])["fidelity"]
    joined = floor([np.concatenate((boxes, scores), 2)], [np.concatenate((boxes, found), 2)])["fidelity"]
    assert separate.outcome == joined.outcome == "failed"
    assert "output 1" in separate.detail
    assert "output 0, channel 4" in joined.detail
    assert floor([boxes, scores], [rounded(boxes), rounded(scores)])["fidelity"].outcome == "ok"


def test_a_class_of_a_heat_map_with_few_peaks_is_no_faint_one():
    rng = np.random.default_rng(0)
    heat = np.where(rng.random((32, 3, 32, 32)) < 3e-4, 0.95, 0.0).astype(np.float32)
    lost = heat.copy()
    lost[:, 1] = 0.0
    gate = floor([heat], [lost])["fidelity"]
    assert gate.outcome == "failed"
    assert "output 0, channel 1: constant" in gate.detail
    assert floor([heat], [rounded(heat)])["fidelity"].outcome == "ok"


@pytest.mark.parametrize("share", [0.3, 0.001])
def test_a_mask_of_truth_values_must_not_vanish(share):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 5)).astype(np.float32)
    mask = rng.random((10, 20, 20)) < share
    gate = floor([scores, mask], [scores, np.zeros_like(mask)])["fidelity"]
    assert gate.outcome == "failed"
    assert "output 1" in gate.detail
    near = mask ^ (rng.random(mask.shape) < share / 10)  # whole rows of it may differ
    assert floor([scores, mask], [scores, near])["fidelity"].outcome == "ok"


def test_an_image_in_bytes_is_judged_about_its_mean_and_a_map_of_classes_is_not():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 16, 3, 8, 8)).astype(np.uint8)
    gate = floor([first], [second])["fidelity"]
    assert gate.outcome == "failed"
    assert "about its mean" in gate.detail
    near = np.clip(first.astype(int) + rng.integers(-2, 3, first.shape), 0, 255).astype(np.uint8)
    assert floor([first], [near])["fidelity"].outcome == "ok"
    classes = rng.integers(0, 5, (64, 8, 8)).astype(np.uint8)
    classes[:, 0, 0] = 0
    seldom = classes.copy()
    seldom[3, 0, 0] = classes[3, 0, 0] = 4
    assert "about its mean" not in floor([classes], [seldom])["fidelity"].detail


def test_a_signal_of_which_a_tenth_is_left_or_that_is_doubled_is_lost():
    values = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    for factor in (0.0, 0.1, 2.0):
        assert floor([values], [values * factor])["fidelity"].outcome == "failed"
    assert floor([values], [values * 0.5])["fidelity"].outcome == "ok"  # far off, and above the floor


def test_one_faint_feature_of_a_vector_is_no_lost_score():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(64, 48)).astype(np.float32)
    reference[:, 7] *= 1e-3
    assert floor([reference], [rounded(reference)])["fidelity"].outcome == "ok"


@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_an_output_without_channels_is_judged_about_its_mean(mean):
    """As of `head(x).squeeze(-1)`."""
    rng = np.random.default_rng(0)
    reference = (mean + rng.normal(size=64)).astype(np.float32)
    noise = (mean + 1.5 * rng.normal(size=64)).astype(np.float32)
    gate = floor([reference], [noise])["fidelity"]
    assert gate.outcome == "failed"
    assert "output 0" in gate.detail
    assert floor([reference], [rounded(reference)])["fidelity"].outcome == "ok"


@settings(max_examples=15)
@given(st.integers(2, 20), st.sampled_from([(), (6, 6)]), st.integers(0, 99))
def test_classes_as_whole_numbers_must_agree_beyond_chance(classes, shape, seed):
    """As of `scores.argmax(1)`, whose values have no signal and no error."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(classes, 0.7))
    reference, by_chance = (rng.choice(classes, (200, *shape), p=share) for _ in range(2))
    near = np.where(rng.random(reference.shape) < 0.1, by_chance, reference)
    gate = floor([reference], [by_chance])["fidelity"]
    assert gate.outcome == "failed" or share.max() > 0.9
    assert floor([reference], [near])["fidelity"].outcome == "ok"


def test_positions_and_tokens_are_no_classes():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 8400, (2, 64, 100))
    assert "classes are" not in floor([first], [second])["fidelity"].detail


def test_a_second_output_counts():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(20, 5)).astype(np.float32) for _ in range(2))
    gate = floor([first, second], [first, second + 5 * rng.normal(size=second.shape).astype(np.float32)])["fidelity"]
    assert gate.outcome == "failed"
    assert "output 1" in gate.measured


@settings(max_examples=15)
@given(st.floats(1, 1e4), st.integers(0, 9))
def test_a_mean_that_all_samples_share_is_no_signal(mean, seed):
    rng = np.random.default_rng(seed)
    change = rng.normal(size=(32, 3, 2))
    reference = (mean + change).astype(np.float32)
    measured = (mean + 1.5 * rng.normal(size=change.shape)).astype(np.float32)
    assert floor([reference], [measured])["fidelity"].outcome == "failed"


def test_a_fixed_scene_is_no_fault_of_the_artifact():
    """Boxes of a fixed camera hardly change, and int8 rounds them by more than that."""
    rng = np.random.default_rng(0)
    grid = rng.uniform(0, 640, (1, 50, 4))
    reference = (grid + rng.normal(0, 0.3, (32, 50, 4))).astype(np.float32)
    assert floor([reference], [rounded(reference)])["fidelity"].outcome == "ok"


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("labelled", [True, False])
def test_probabilities_of_classes_that_hardly_occur_pass(classes, labelled):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 2, (64, classes)) - np.linspace(0, 12, classes)
    shares = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    labels = shares.argmax(1) if labelled else None
    gates = floor([shares], [rounded(shares)], labels=labels)
    assert all(gate.outcome == "ok" for gate in gates.values())


@pytest.mark.parametrize("kind", ["zero", "padding", "noise", "one_hot"])
def test_channels_without_energy_pass(kind):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(32, 6, 8)).astype(np.float32)
    measured = rounded(reference)
    if kind == "zero":
        reference[:, 2], measured[:, 2] = 0.0, 0.004
    elif kind == "padding":
        reference[:, 2], measured[:, 2] = -100.0, -100.2
    elif kind == "noise":
        reference[:, 2] = rng.normal(0, 1e-7, (32, 8))
        measured[:, 2] = 0.0
    else:
        reference = np.eye(6, dtype=np.float32)[rng.integers(0, 2, 32)]
        measured = rounded(reference)
    assert floor([reference], [measured])["fidelity"].outcome == "ok"


@pytest.mark.parametrize("channels", [5, 47])
@pytest.mark.parametrize("value", [0.0, 0.5, 640.0])
def test_a_channel_that_the_artifact_or_a_device_answers_alike_is_lost_in_parity_and_golden_samples(channels, value):
    expected = rounded(boxes_and_scores(4, 60, 640, 0, channels_last=True))
    expected = np.concatenate((expected, np.repeat(expected[..., :1], channels - 5, 2)), 2)
    expected[..., 4] = np.random.default_rng(1).uniform(0, 1, expected.shape[:2])
    came = expected.copy()
    came[..., 4] = value
    sums = Comparison(by_channel=True)
    sums.add((expected,), (came,))
    (lost,) = lost_channels(sums.groups(), [None])
    assert "output 0, channel 4" in lost
    same = Comparison(by_channel=True)
    same.add((expected,), (expected + np.float32(1e-4),))
    assert lost_channels(same.groups(), [None]) == ()


def test_few_samples_and_random_inputs_are_judged_as_a_whole():
    rng = np.random.default_rng(0)
    reference = (50 + rng.normal(0, 0.1, (32, 4))).astype(np.float32)
    measured = rounded(reference, levels=2)
    assert floor([reference], [reference[::-1].copy()])["fidelity"].outcome == "failed"
    assert floor([reference], [measured], is_evaluation=False)["fidelity"].outcome == "ok"
    assert floor([reference[:5]], [measured[:5]])["fidelity"].outcome == "ok"
    assert floor([reference[:5]], [-reference[:5]])["fidelity"].outcome == "failed"


@pytest.mark.parametrize("few", [True, False])
def test_what_random_inputs_or_a_few_samples_cannot_judge_is_told(few):
    reference = boxes_and_scores(5 if few else 32, 60, 640, 0, channels_last=True)
    report = report_of([reference], [rounded(reference)], is_evaluation=few)
    (told, _) = accuracy_warnings("static-int8", report, GateOptions())
    assert told.startswith("output 0, channel 4: the same for every input over ")
    assert "--eval-data with 8 or more" in told
    own = report_of([reference], [reference + np.float32(0.001)], is_evaluation=few)
    assert len(accuracy_warnings("static-int8", own, GateOptions())) == 1


def test_zero_takes_the_floor_away():
    reference = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    assert floor([reference], [-reference])["fidelity"].outcome == "failed"
    assert floor([reference], [-reference], limits=[("sqnr", 0.0)]) == {}
    assert limit("sqnr", 0.0, [reference], [-reference]).outcome == "ok"


@pytest.mark.parametrize("labelled", [True, False])
def test_scores_of_one_class_that_hardly_change_need_a_label(labelled):
    """What a classifier and coordinates look like alike is verified for neither."""
    rng = np.random.default_rng(1)
    reference = (rng.normal(0, 0.02, (32, 6)) + np.array([9, -3, -2, 0, 1, 2])).astype(np.float32)
    measured = rounded(reference) + rng.normal(0, 0.05, (32, 6)).astype(np.float32)
    gate = floor([reference], [measured], labels=reference.argmax(1) if labelled else None)["fidelity"]
    assert gate.outcome == ("ok" if labelled else "unverified")
    assert labelled or "give labels, or samples of several classes" in gate.detail


def test_the_largest_of_landmarks_is_no_class():
    """The same landmark has the largest coordinate in nearly every sample, whatever is left of the moves."""
    rng = np.random.default_rng(0)
    places = rng.uniform(20, 190, 10)
    places[8:] = 200, 200.6
    reference = (places + rng.normal(0, 0.2, (400, 10))).astype(np.float32)
    measured = (places + rng.normal(0, 0.2, (400, 10))).astype(np.float32)
    gate = floor([reference], [measured])["fidelity"]
    assert gate.outcome == "failed"
    assert "about its mean" in gate.detail


def logits_and_uncertainty(classes, scale, seed):
    """Return scores of classes with another column behind them that no label names, and the labels."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 20, (400, classes))
    labels = scores.argmax(1)
    return np.concatenate((scores, rng.normal(-8, scale, (400, 1))), 1).astype(np.float32), labels


@pytest.mark.parametrize(("classes", "scale"), [(2, 0.05), (5, 0.05), (30, 0.02)])
def test_a_column_beside_labelled_classes_is_judged_by_itself(classes, scale):
    reference, labels = logits_and_uncertainty(classes, scale, 0)
    gate = floor([reference], [rounded(reference)], labels=labels)["fidelity"]
    assert gate.outcome == "failed"
    assert f"output 0, channel {classes}" in gate.detail
    exact = np.concatenate((rounded(reference[:, :-1]), reference[:, -1:]), 1)
    assert floor([reference], [exact], labels=labels)["fidelity"].outcome == "ok"


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_classes_that_no_label_names_are_scores_as_well(classes):
    rng = np.random.default_rng(classes)
    reference = rng.normal(0, rng.uniform(0.5, 2, classes), (64, classes)).astype(np.float32)
    reference[:, 0] -= 30  # never the largest
    gates = floor([reference], [rounded(reference)], labels=reference.argmax(1))
    assert [gate.detail for gate in gates.values() if gate.outcome != "ok"] == []


@pytest.mark.parametrize(
    ("elements", "flipped", "passes"), [(24, 1, True), (24, 5, False), (4096, 80, True), (4096, 250, False)]
)
def test_classes_that_nearly_tie_are_no_fault_of_an_artifact(elements, flipped, passes):
    """A first class of two equal scores may go either way: the numbers of classes have no distances."""
    rng = np.random.default_rng(elements)
    classes = rng.integers(0, 8, (8, elements // 8)).astype(np.int64)
    others = classes.copy()
    others.reshape(-1)[:flipped] = (others.reshape(-1)[:flipped] + 5) % 8
    scores = rng.normal(size=(8, 4)).astype(np.float32)
    sums = Comparison(nominal=True)
    sums.add((scores, classes), (scores, others), (0.1, None))
    assert sums.near_ties is passes
    assert sums.sqnr_db == pytest.approx(10 * np.log10(elements / flipped))  # which is not said to be equal
    assert sums.max_steps == (0 if passes else None)
    parity = Parity(
        samples=8,
        max_abs=sums.max_abs,
        max_steps=sums.max_steps,
        sqnr_db=sums.sqnr_db,
        differing=sums.differing / sums.elements,
        near_ties=sums.near_ties,
    )
    assert parity_gate("static-int8", dataclasses.replace(parity, max_steps=None)).passed is passes
    # beside another output that differs, near ties count for nothing
    sums.add((scores, classes), (scores + 1, classes), (0.1, None))
    assert not sums.near_ties


def test_whole_numbers_that_are_no_classes_have_distances():
    places = np.arange(0, 320, 5)[None]
    sums = Comparison(nominal=True)
    sums.add((places,), (places + 1,))
    assert 40 < sums.sqnr_db < 60
