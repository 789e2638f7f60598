from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeq.core.preprocess import PRESETS, Preprocess
from edgeq.core.results.model import TensorSpec
from edgeq.load.lint import MIN_SAMPLES, LintSpec, lint

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 20, 24))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 8), high=99.0)
UNIT = Preprocess()


@pytest.fixture
def images(smooth):
    """float32 images within 0..1, all different."""

    def make(count, first=0):
        return [smooth(first + i).transpose(2, 0, 1).astype(np.float32) / 255 for i in range(count)]

    return make


def found(calibration, evaluation=None, **changes):
    options = {"wanted": 128, "preprocess": UNIT, "specs": [IMAGE], "n_classes": None, "declared": False}
    spec = LintSpec(**(options | changes))
    return {finding.name: finding.message for finding in lint(calibration, evaluation, spec=spec)}


def test_good_data_has_no_findings(in_memory, images):
    labels = [i % 2 for i in range(20)]
    calibration = in_memory(images(20), labels)
    evaluation = in_memory(images(20, first=30), labels)
    assert found(calibration, evaluation, n_classes=2) == {}


def test_too_few_distinct_samples(in_memory, images):
    assert found(in_memory(images(MIN_SAMPLES))) == {}
    message = found(in_memory(images(MIN_SAMPLES - 1)), wanted=64)["too-few-samples"]
    assert message == "15 distinct calibration samples (64 wanted) are fewer than 16"
    assert "too-few-samples" in found(in_memory(images(8) * 4))


def test_constant_samples_are_named(in_memory, images):
    blank = [np.full((3, 20, 24), value, np.float32) for value in (0, 0.25, 0.5, 1)]
    message = found(in_memory(images(20) + blank))["constant-samples"]
    assert message == "4 of 24 calibration samples hold one constant value: s20, s21, s22 and 1 more"


def test_single_numbers_are_not_constant_samples(in_memory):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1))
    data = in_memory([np.full(1, i, np.float32) for i in range(20)])
    assert found(data, specs=[spec], preprocess=None) == {}


def test_repeated_samples_count_above_five_percent(in_memory, images):
    assert found(in_memory(images(19) + images(1))) == {}
    assert found(in_memory(images(19) + images(2)))["repeated-samples"].startswith("2 of 21 calibration samples repeat")


def test_noise_counts_above_half(in_memory, images):
    rng = np.random.default_rng(0)
    noise = [rng.random((3, 20, 24), np.float32) for _ in range(21)]
    assert found(in_memory(images(20) + noise[:20])) == {}
    assert "21 of 41" in found(in_memory(images(20) + noise))["noise"]


def test_only_images_can_be_noise(in_memory):
    rng = np.random.default_rng(0)
    features = [rng.random((3, 20, 24), np.float32) for _ in range(20)]
    assert found(in_memory(features), preprocess=None) == {}


def test_only_what_is_wrong_beyond_doubt_is_certain(in_memory, images):
    bad = images(40)
    bad[0][...] = np.nan
    bad[1][...] = 0.5
    spec = LintSpec(wanted=128, preprocess=UNIT, specs=[IMAGE], n_classes=2, declared=False)
    calibration = in_memory([image * 2 for image in bad[:15]], [i % 3 for i in range(15)])
    findings = lint(calibration, in_memory(images(20, first=40), [0] * 20, title="e"), spec=spec)
    assert {one.name for one in findings if one.is_certain} == {"not-finite", "labels-out-of-range"}
    assert {one.name for one in findings if not one.is_certain} == {
        "too-few-samples",
        "constant-samples",
        "out-of-range",
    }
    rng = np.random.default_rng(0)
    tokens = in_memory([rng.integers(0, 200, 8) for _ in range(20)])
    spec = LintSpec(wanted=128, preprocess=None, specs=[TOKENS], n_classes=None, declared=True)
    assert [(one.name, one.is_certain) for one in lint(tokens, tokens, spec=spec)] == [
        ("out-of-range", True),
        ("out-of-range", True),
        ("shared-with-evaluation", True),
    ]


def test_values_outside_the_range_of_the_preprocessing(in_memory, images):
    scaled = [image * 255 for image in images(20)]
    message = found(in_memory(scaled))["out-of-range"]
    assert "exceed the range 0..1 of input 'image'" in message
    assert "pixels that were not scaled" in message
    normalised = [image * 4 - 2 for image in images(20)]
    assert found(in_memory(normalised), preprocess=PRESETS["imagenet"]) == {}
    assert "not scaled" not in found(in_memory(normalised))["out-of-range"]


def test_rounding_is_within_the_range(in_memory, images):
    calibration = in_memory([*images(19), images(20)[19] / images(20)[19].max() * np.float32(1.0005)])
    assert found(calibration) == {}


def test_without_a_preprocessing_floats_have_no_range(in_memory, images):
    assert found(in_memory([image * 255 for image in images(20)]), preprocess=None) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_found_in_either_set(in_memory, images, value):
    bad = images(40)
    bad[33][0, 0, 0] = value
    messages = found(in_memory(images(20)), in_memory(bad[20:], title="e"), preprocess=None)
    assert messages == {"not-finite": "1 of 20 evaluation samples hold NaN or Inf: e13"}
    assert "calibration" in found(in_memory(bad))["not-finite"]


def test_tokens_are_held_to_a_declared_range_only(in_memory):
    rng = np.random.default_rng(0)
    data = in_memory([rng.integers(0, 200, 8) for _ in range(20)])
    assert found(data, specs=[TOKENS]) == {}
    message = found(data, specs=[TOKENS], declared=True)["out-of-range"]
    assert "exceed the range 0..99 of input 'tokens'" in message
    assert "pixels" in message or "with 0.." in message


def test_an_input_of_one_value_is_held_to_it_without_a_declared_range(in_memory):
    length = TensorSpec(name="lengths", dtype="int64", shape=(1,), low=48.0, high=48.0)
    assert "out-of-range" not in found(in_memory([np.array(48)] * 3), specs=[length])
    message = found(in_memory([np.array(30), np.array(48)]), specs=[length])["out-of-range"]
    assert message.startswith("1 of 2 calibration samples exceed the range 48..48 of input 'lengths': 30..30")


def test_missing_classes_by_index(in_memory, images):
    calibration = in_memory(images(20), [i % 3 for i in range(20)])
    evaluation = in_memory(images(20, first=30), [i % 5 for i in range(20)])
    message = found(calibration, evaluation)["missing-classes"]
    assert message == "2 of 5 classes are not in the calibration data: 3, 4"
    assert "2 of 5" in found(calibration, n_classes=5)["missing-classes"]
    assert found(calibration, in_memory(images(9, first=30))) == {}


def test_missing_classes_by_name(in_memory, images):
    calibration = in_memory(images(20), [i % 2 for i in range(20)], ("bee", "cat"))
    evaluation = in_memory(images(20, first=30), [i % 3 for i in range(20)], ("ant", "bee", "cat"))
    assert found(calibration, evaluation)["missing-classes"].endswith("not in the calibration data: ant")
    labels = in_memory(images(20), [i % 2 * 2 for i in range(20)], ("bee", "", "cat", "dog"))
    assert found(labels)["missing-classes"].endswith(": dog")
    assert found(labels, in_memory(images(9, first=30)))["missing-classes"].endswith(": dog")


def test_a_set_smaller_than_the_classes_is_not_missing_any(in_memory, images):
    assert found(in_memory(images(20), list(range(20))), n_classes=1000) == {}


def test_labels_that_the_model_does_not_have(in_memory, images):
    calibration = in_memory(images(20), [i % 3 for i in range(20)])
    message = found(calibration, n_classes=2)["labels-out-of-range"]
    assert "6 of 20" in message
    assert "s2 (2)" in message


def test_labels_of_other_kinds_are_not_judged(in_memory, images):
    labels = [{"boxes": []}, 0.5, "cat", None] * 5
    assert found(in_memory(images(20), labels), n_classes=2) == {}


def test_samples_shared_with_the_evaluation_data(in_memory, images):
    message = found(in_memory(images(20)), in_memory(images(20, first=18), title="e"))["shared-with-evaluation"]
    assert message == "2 of 20 calibration samples are also in the evaluation data: s18, s19"


def test_every_sample_is_read_once(in_memory, images):
    reads: list[int] = []
    data = in_memory(images(20))
    counted = replace(data, read=lambda i: reads.append(i) or data.read(i))
    found(counted, in_memory(images(20, first=30)))
    assert reads == list(range(20))
