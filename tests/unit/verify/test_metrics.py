from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from edgeq.core.errors import UsageError
from edgeq.core.intervals import matched_pairs, student_t975
from edgeq.core.results.measured import Interval
from edgeq.core.samples import Dataset, Sample
from edgeq.verify.metrics import (
    Comparison,
    SetMetric,
    built_in_metric,
    metric_drop_pp,
    paired_drop_pp,
    percentile_ms,
    speedup,
    top1,
)


def compared(reference, measured, steps=(), rows=None):
    sums = Comparison()
    sums.add(tuple(map(np.float32, reference)), tuple(map(np.float32, measured)), steps, rows=rows)
    return sums


def test_sqnr_cosine_and_max_abs_of_a_known_case():
    sums = compared([[[3.0, 4.0]]], [[[3.0, 4.5]]])
    assert sums.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert sums.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert sums.max_abs == pytest.approx(0.5)
    assert (sums.elements, sums.differing) == (2, 1)


def test_equal_outputs_have_infinite_sqnr_and_lost_ones_minus_infinity():
    assert compared([[[1.0, 2.0]]], [[[1.0, 2.0]]]).sqnr_db == math.inf
    assert compared([[[0.0, 0.0]]], [[[0.0, 1.0]]]).sqnr_db == -math.inf
    assert math.isnan(compared([[[1.0]]], [[[0.0]]]).cosine)
    assert math.isnan(Comparison().sqnr_db)


def test_a_large_output_does_not_hide_a_bad_small_one():
    sums = compared([[[1e4, 1e4]], [[0.1, -0.1]]], [[[1e4, 1e4]], [[-0.1, 0.1]]])
    assert sums.sqnr_db < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("last", [False, True])
def test_what_is_not_finite_is_never_forgiven(bad, side, last):
    good, broken = [[[1.0, 2.0]]], [[[1.0, bad]]]
    pairs = [(good, good), (broken if side == 0 else good, broken if side == 1 else good)]
    sums = Comparison()
    for reference, measured in pairs if last else reversed(pairs):
        sums.add(tuple(map(np.float32, reference)), tuple(map(np.float32, measured)), (0.1,))
    assert not sums.finite
    assert not sums.sqnr_db >= 0
    assert not sums.max_steps <= 1
    assert not sums.max_abs < 1
    assert sums.top1_agreement == 0.5


def test_nan_on_both_sides_is_no_agreement():
    sums = compared([[[math.nan, 1.0]]], [[[math.nan, 1.0]]])
    assert math.isnan(sums.sqnr_db)
    assert sums.top1_agreement == 0


def test_overflow_is_no_perfect_match():
    sums = Comparison()
    sums.add((np.array([[1e200, 1.0]]),), (np.array([[1e200, 2.0]]),))
    assert math.isnan(sums.sqnr_db)


def test_steps_count_only_where_every_output_has_one():
    pair = [[[1.0, 2.0]], [[1.0, 2.0]]], [[[1.0, 2.2]], [[1.0, 2.5]]]
    assert compared(*pair, steps=(0.1, 0.5)).max_steps == pytest.approx(2, rel=1e-5)
    # the second output could be garbage, and no one would know
    assert compared(*pair, steps=(0.1, None)).max_steps is None
    assert compared(*pair, steps=(0.1,)).max_steps is None
    assert compared(*pair).max_steps is None


def test_top1_agreement_counts_rows_of_rankings_only():
    assert compared([[[1, 2], [2, 1]]], [[[1, 3], [1, 2]]]).top1_agreement == 0.5
    assert compared([[1.0, 2.0]], [[1.0, 2.0]]).top1_agreement is None
    # 100 boxes of one image are no ranking of classes
    boxes = np.ones((100, 4))
    assert compared([boxes], [boxes], rows=1).top1_agreement is None


outputs = arrays(np.float32, array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e3, 1e3, width=32))


@given(outputs, st.integers(-10, 10))
def test_sqnr_does_not_depend_on_scale(array, power):
    reference, measured = array.astype(np.float64), array + 0.5
    one, scaled = Comparison(), Comparison()
    one.add((reference,), (measured,))
    scaled.add((reference * 2.0**power,), (measured * 2.0**power,))
    assert scaled.sqnr_db == pytest.approx(one.sqnr_db)


@given(outputs)
def test_adding_in_parts_equals_adding_at_once(array):
    measured = (array * np.float32(0.9)).astype(np.float32)
    whole, parts = Comparison(), Comparison()
    whole.add((array,), (measured,), (0.1,))
    for row in range(len(array)):
        parts.add((array[row : row + 1],), (measured[row : row + 1],), (0.1,))
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert (parts.max_abs, parts.max_steps, parts.differing) == (whole.max_abs, whole.max_steps, whole.differing)
    assert parts.top1_agreement == whole.top1_agreement


@given(outputs)
def test_cosine_is_within_its_bounds(array):
    sums = Comparison()
    sums.add((array,), (np.roll(array, 1),))
    assert math.isnan(sums.cosine) or -1.000001 <= sums.cosine <= 1.000001


@pytest.mark.parametrize(
    ("label", "score"), [(1, 1.0), (0, 0.0), (np.int64(1), 1.0), (np.array([1]), 1.0), (np.array(1), 1.0), (1.0, 1.0)]
)
def test_top1(label, score):
    assert top1((np.array([0.1, 0.7, 0.2]),), label) == score


def test_a_nan_among_the_scores_is_wrong_whatever_the_argmax():
    assert top1((np.array([0.1, math.nan, 0.2]),), 1) == 0


@pytest.mark.parametrize("label", [3, -1, 1.5, "cat", None, np.array([1, 2])])
def test_labels_that_are_no_class_are_errors_not_misses(label):
    # both models would miss them alike, and the drop would look like none
    with pytest.raises(UsageError, match="label"):
        top1((np.array([0.1, 0.7, 0.2]),), label)


def test_the_paired_interval_equals_agresti_and_mins_by_hand():
    # 100 pairs: 8 lost, 3 won. (8.5 - 3.5) / 102; sqrt(12 - 25 / 102) / 102 is the standard error
    fp32 = [1.0] * 8 + [0.0] * 3 + [1.0] * 89
    measured = [0.0] * 8 + [1.0] * 3 + [1.0] * 89
    drop = paired_drop_pp(fp32, measured)
    assert drop.estimate == pytest.approx(5.0)
    assert drop.low == pytest.approx(100 * (5 / 102 - 1.959964 * math.sqrt(12 - 25 / 102) / 102))
    assert drop.high == pytest.approx(100 * (5 / 102 + 1.959964 * math.sqrt(12 - 25 / 102) / 102))


def test_no_disagreement_in_a_few_samples_is_no_proof():
    few, many = paired_drop_pp([1.0] * 10, [1.0] * 10), paired_drop_pp([1.0] * 10_000, [1.0] * 10_000)
    assert few.high > 10
    assert 0 < many.high < 0.05


def test_other_scores_use_students_t_and_half_an_observation():
    rng = np.random.default_rng(0)
    fp32 = rng.random(20)
    measured = fp32 - rng.normal(0.02, 0.05, 20)
    drop = paired_drop_pp(fp32, measured)
    student = stats.t.ppf(0.975, 19) * stats.sem(fp32 - measured)
    half = math.hypot(student, 1.959964 * np.abs(fp32 - measured).max() / 22)
    assert student < half < 1.2 * student
    centre = (fp32 - measured).mean()
    assert (drop.low, drop.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), rel=1e-3)
    assert paired_drop_pp([0.5], [0.4]).high == math.inf


@pytest.mark.parametrize("scores", [[0.25, 0.75] * 6, [0.9] * 12, [1.0, 0.5] * 6, [0.0, 1.0] * 6])
def test_no_interval_is_a_point(scores):
    drop = paired_drop_pp(scores, scores)
    assert drop.low < 0 < drop.high
    assert drop.high > 5


def test_equal_scores_that_tell_samples_apart_prove_more_than_unequal_ones():
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.8, 1, 60)
    worse = paired_drop_pp(dice, dice - rng.normal(0.0004, 0.003, 60))
    equal = paired_drop_pp(dice, dice)
    assert equal.low < 0 < equal.high < worse.high
    # one that fell in a rare sample still counts for what may come
    fallen = paired_drop_pp(dice, np.where(np.arange(60) == 7, dice - 0.5, dice))
    assert fallen.high > fallen.estimate + 1
    # of a few stars no sample changed, which says little of the next one
    stars = rng.integers(1, 6, 60) / 5
    assert paired_drop_pp(stars, stars).high > 2


def test_float_noise_in_the_scores_proves_no_more_than_equal_ones():
    scores = np.array([0.25, 0.75] * 6)
    assert paired_drop_pp(scores, scores + 1e-9).high == pytest.approx(paired_drop_pp(scores, scores).high, rel=1e-3)


@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**31))
def test_repeats_count_once(distinct, times, seed):
    rng = np.random.default_rng(seed)
    fp32, measured = rng.integers(0, 2, distinct).astype(float), rng.integers(0, 2, distinct).astype(float)
    once = paired_drop_pp(fp32, measured)
    keys = list(range(distinct)) * times
    often = paired_drop_pp(np.tile(fp32, times), np.tile(measured, times), keys)
    assert (often.estimate, often.low, often.high) == pytest.approx((once.estimate, once.low, once.high))


@pytest.mark.parametrize("freedom", [*range(1, 31), 100, 1000])
def test_students_point_is_scipys(freedom):
    assert student_t975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=50))
def test_the_estimate_lies_in_its_interval(pairs):
    drop = paired_drop_pp(*zip(*pairs, strict=True))
    assert -100 <= drop.low <= drop.estimate <= drop.high <= 100


@pytest.mark.parametrize(
    ("fp32", "measured"), [([], []), ([math.nan], [1.0]), ([1.0], [math.inf]), ([1.0, 1.0], [1.0])]
)
def test_scores_that_cannot_be_compared(fp32, measured):
    with pytest.raises(ValueError, match="expected equally many scores"):
        paired_drop_pp(fp32, measured)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.9, 9), (0.91, 10), (1.0, 10), (0.0, 1)])
def test_percentiles_are_times_that_were_seen(share, expected):
    assert percentile_ms([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_has_its_share_at_or_below_it(times, share):
    value = percentile_ms(times, share)
    assert value in times
    assert sum(time <= value for time in times) >= share * len(times) - 1e-9


@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=6, max_size=40))
def test_a_speedup_lies_in_its_interval_and_turns_round_with_its_sides(pairs):
    fp32, other = zip(*pairs, strict=True)
    found, back = speedup(fp32, other), speedup(other, fp32)
    assert found.low <= found.estimate <= found.high
    assert (found.low, found.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_a_speedups_interval_is_the_sign_tests():
    ratios = [float(number) for number in range(1, 16)]
    found = speedup(ratios[::-1], [1.0] * 15)
    # 15 turns: P(at most 3 of 15 below the median) = 576 / 2**15 = 0.018, and with 4 0.059
    assert (found.low, found.estimate, found.high) == (4.0, 8.0, 12.0)
    assert speedup([2.0] * 5 + [100.0], [1.0] * 6) == Interval(estimate=2.0, low=2.0, high=100.0)


def test_turns_are_compared_in_pairs():
    busy = [1.0, 1.0, 9.0, 1.0, 5.0, 1.0, 1.0]  # a machine that slows both
    found = speedup([2.0 * times for times in busy], busy)
    assert found == Interval(estimate=2.0, low=2.0, high=2.0)


def test_too_few_turns_have_no_interval():
    with pytest.raises(ValueError, match="needs 6 turns, not 5"):
        speedup([1.0] * 5, [1.0] * 5)


# --- Built-in metrics, against scikit-learn's.


def as_dataset(labels):
    samples = [Sample(inputs=(), raw=(), label=label, name=str(i), digest=str(i)) for i, label in enumerate(labels)]
    return Dataset(origin="labels", count=len(samples), read=samples.__getitem__, labelled=True)


def set_score(name, outputs, labels, threshold=0.0):
    metric, told = built_in_metric(name, as_dataset(labels), threshold)
    rows = [metric.row((np.asarray(output),), label) for output, label in zip(outputs, labels, strict=True)]
    return metric.of(rows), told


@pytest.fixture(scope="module")
def sklearn():
    from sklearn import metrics  # it takes 1.5 s, in every worker that collects

    return metrics


def test_auc_and_f1_of_one_output_are_sklearns(sklearn):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(labels, 1.5), 1)  # with ties
    outputs = scores[:, None]
    assert set_score("auc", outputs, labels)[0] == pytest.approx(sklearn.roc_auc_score(labels, scores))
    assert set_score("f1", outputs, labels, 0.5) == (pytest.approx(sklearn.f1_score(labels, scores > 0.5)), "f1@0.5")
    assert set_score("f1@1", outputs, labels) == (pytest.approx(sklearn.f1_score(labels, scores > 1)), "f1@1")


def test_auc_and_f1_of_classes_are_sklearns_macro_means(sklearn):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 300)
    logits = rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels] + rng.normal(size=(300, 1)) * 9
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = sklearn.roc_auc_score(labels, shares, multi_class="ovr")
    assert set_score("auc", logits, labels)[0] == pytest.approx(expected)
    assert set_score("auc", shares, labels)[0] == pytest.approx(expected)
    f1 = sklearn.f1_score(labels, logits.argmax(axis=1), average="macro")
    assert set_score("f1", logits, labels)[0] == pytest.approx(f1)


def test_f1_and_auc_of_several_labels_are_sklearns(sklearn):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (200, 4))
    logits = rng.normal(2 * labels - 1, 1.5)
    assert set_score("f1", logits, labels)[0] == pytest.approx(sklearn.f1_score(labels, logits > 0, average="macro"))
    assert set_score("auc", logits, labels)[0] == pytest.approx(sklearn.roc_auc_score(labels, logits))


def test_miou_is_over_the_pixels_of_the_set_without_the_ignored_ones(sklearn):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (20, 8, 8))
    logits = rng.normal(size=(20, 4, 8, 8)) + 2 * np.eye(4)[labels].transpose(0, 3, 1, 2)  # no pixel is of class 3
    logits[:, 3] -= 99
    guess = logits.argmax(axis=1)
    marked = labels.copy()
    marked[:, :2] = 255
    seen = marked != 255
    expected = sklearn.jaccard_score(labels[seen], guess[seen], average="macro")
    assert set_score("miou", logits, marked)[0] == pytest.approx(expected)
    masks = set_score("miou", logits[:, :1], labels == 0)[0]
    assert masks == pytest.approx(
        sklearn.jaccard_score((labels == 0).ravel(), logits[:, 0].ravel() > 0, average="macro")
    )


def test_errors_are_shares_of_the_labels_range():
    labels = [0.0, 4.0, 10.0]
    outputs = [[1.0], [4.0], [7.0]]
    assert set_score("mae", outputs, labels) == (pytest.approx(1 - 4 / 3 / 10), "1-mae/10")
    assert set_score("rmse", outputs, labels)[0] == pytest.approx(1 - math.sqrt(10 / 3) / 10)
    with pytest.raises(UsageError, match="labels of more than one value"):
        built_in_metric("mae", as_dataset([1.0, 1.0]), 0)


def test_accuracy_of_one_output():
    metric, told = built_in_metric("accuracy@0.5", None, 0)
    assert told == "accuracy@0.5"
    pairs = [(0.6, 1, 1.0), (0.6, 0, 0.0), (0.4, 0, 1.0), (math.nan, 0, 0.0)]
    assert [metric((np.array([value]),), label) for value, label, _ in pairs] == [right for *_, right in pairs]
    with pytest.raises(UsageError, match="labels of 0 and 1"):
        metric((np.array([0.1]),), 2)
    with pytest.raises(UsageError, match="a number behind the @"):
        built_in_metric("accuracy@half", None, 0)


def test_the_bootstrap_interval_covers_the_true_drop():
    """95% intervals of the drop of AUC that noise on the scores costs hold the drop of a large set as often as 90%."""
    metric, _ = built_in_metric("auc", None, 0)
    rng = np.random.default_rng(4)

    def draw(count):
        labels = rng.integers(0, 2, count).astype(float)
        scores = rng.normal(labels, 1.0)
        return np.stack([scores, labels], 1), np.stack([scores + rng.normal(0, 1.0, count), labels], 1)

    before, after = draw(200_000)
    true = 100 * (metric.of(before) - metric.of(after))
    drops = [metric.drop_pp(*draw(120), None) for _ in range(40)]
    assert sum(drop.low <= true <= drop.high for drop in drops) >= 36
    # and they are about as wide as the estimates are spread
    spread = 2 * 1.96 * np.std([drop.estimate for drop in drops])
    assert 0.7 * spread <= np.mean([drop.high - drop.low for drop in drops]) <= 1.4 * spread


def test_repeats_and_equal_scores_do_not_shorten_the_bootstrap_interval():
    metric, _ = built_in_metric("f1", None, 0)
    rng = np.random.default_rng(5)
    rows = [metric.row((np.array([value]),), int(value > 0)) for value in rng.normal(size=20)]
    equal = metric.drop_pp(rows, rows, None)
    assert equal.estimate == 0
    assert equal.high == pytest.approx(100 * matched_pairs(0, 0, 20)[1])
    often = metric.drop_pp(rows * 10, rows * 10, [i % 20 for i in range(200)])
    assert often.high == pytest.approx(equal.high)


def test_perplexity_is_that_of_the_words_that_count():
    rng = np.random.default_rng(6)
    logits, words = rng.normal(size=(5, 7, 11)), rng.integers(0, 11, (5, 7))
    words[:, :2] = -100
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11), torch.from_numpy(words).reshape(-1)
    )
    assert set_score("perplexity", logits, words) == (pytest.approx(math.exp(-loss)), "1/perplexity")
    metric, _ = built_in_metric("perplexity", None, 0)
    for label, said in ((words[0, :6], "has 6 values"), (words[0] + 11, "the word 2"), (words[0] * 1.0, "of float64")):
        with pytest.raises(UsageError, match=said):
            metric.row((logits[0],), label)


def test_steps_of_one_sequence_depend_on_each_other():
    rng = np.random.default_rng(0)
    fp32 = np.ones((20, 50))
    # each sequence loses all of its steps or none: as steps, 1000 samples would prove much
    measured = fp32 * (rng.random((20, 1)) > 0.1)
    before, after = fp32.ravel().tolist(), measured.ravel().tolist()
    sequences = [f"s{i}" for i in range(20) for _ in range(50)]
    steps = metric_drop_pp(top1, before, after, list(range(1000)))
    whole = metric_drop_pp(top1, before, after, list(range(1000)), sequences)
    assert whole.estimate == pytest.approx(steps.estimate)
    assert whole.high - whole.low > 4 * (steps.high - steps.low)
    # where no step differs, sequences prove no more than as many steps
    rng = np.random.default_rng(0)
    equal = (rng.random(1000) > 0.3).astype(float).tolist()
    assert metric_drop_pp(top1, equal, equal, list(range(1000)), sequences).high >= matched_pairs(0, 0, 1000)[1] * 100
    mean = SetMetric(row=top1, score=lambda rows: float(rows.mean()))
    rows = [(value,) for value in before], [(value,) for value in after]
    drawn = metric_drop_pp(mean, *rows, list(range(1000)), sequences)
    alone = metric_drop_pp(mean, *rows, list(range(1000)))
    assert drawn.high - drawn.low > 4 * (alone.high - alone.low)


def test_an_infinity_that_both_have_is_equal_and_adds_nothing():
    left = np.float32([[1, -np.inf, 3], [-np.inf, 2, np.inf]])
    right = np.float32([[1, -np.inf, 3.3], [-np.inf, 2, np.inf]])
    sums = Comparison(by_channel=True)
    sums.add((left,), (right,), (0.1,))
    assert sums.sqnr_db == pytest.approx(10 * math.log10(14 / 0.09), rel=1e-4)
    assert (sums.max_steps, sums.top1_agreement) == (pytest.approx(3, rel=1e-5), 1)
    same = Comparison(by_channel=True)
    same.add((left,), (left.copy(),))
    assert same.sqnr_db == math.inf


@pytest.mark.parametrize("other", [math.inf, math.nan, 1e30])
def test_an_infinity_of_one_side_is_no_match(other):
    sums = Comparison()
    sums.add((np.float32([[1, -np.inf]]),), (np.float32([[1, other]]),), (0.1,))
    assert math.isnan(sums.sqnr_db)
    assert not sums.max_steps <= 1
    assert sums.top1_agreement == 0


def test_channels_are_judged_by_what_is_finite():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    x[rng.uniform(size=x.shape) < 0.3] = -np.inf
    dead = x.copy()
    dead[np.isfinite(x[:, 2]), 2] = 0.25
    found = {}
    for name, measured in (("same", x), ("dead", dead)):
        sums = Comparison(by_channel=True)
        for rows in range(0, 64, 8):
            sums.add((x[rows : rows + 8],), (measured[rows : rows + 8],))
        found[name] = {group.channels[0]: group for group in sums.groups() if group.count == 1}
    assert not any(group.constant for group in found["same"].values())
    assert [group.constant for channel, group in sorted(found["dead"].items())] == [False, False, True, False]
    kept = x[np.isfinite(x[:, 2]), 2].astype(np.float64)
    expected = 10 * math.log10(kept.var(ddof=1) * (len(kept) - 1) / ((kept - 0.25) ** 2).sum())
    assert found["dead"][2].change_sqnr_db == pytest.approx(expected, abs=0.1)
