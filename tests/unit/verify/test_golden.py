from __future__ import annotations

import math

import numpy as np
from small_models import sample

from edgeq.core.samples import Sample
from edgeq.verify.golden import golden_set


def pairs(count=3, shape=(1, 5)):
    rng = np.random.default_rng(0)
    return [(sample(rng.random((3, 4), np.float32)), (rng.random(shape, np.float32),)) for _ in range(count)]


def test_samples_and_outputs_are_stacked_without_the_batch_axis_of_one():
    given = pairs()
    golden = golden_set(given, (None,), scheme="static-int8")
    assert golden.inputs[0].shape == (3, 3, 4)
    assert golden.outputs[0].shape == (3, 5)
    assert np.array_equal(golden.outputs[0][1], given[1][1][0][0])
    assert golden.preprocessed
    assert golden_set(pairs(shape=(100, 4)), (None,), scheme="fp32").outputs[0].shape == (3, 100, 4)


def test_images_of_several_sizes_leave_one_sample():
    first = pairs(1)
    other = [(sample(np.zeros((7, 7), np.float32)), first[0][1])]
    golden = golden_set(first + other, (None,), scheme="fp32")
    assert golden.inputs[0].shape == (1, 3, 4)
    assert golden.outputs[0].shape == (1, 5)


def test_raw_samples_are_told_from_preprocessed_ones():
    raw = np.zeros((8, 8, 3), np.uint8)
    item = Sample(inputs=(np.zeros((3, 8, 8), np.float32),), raw=(raw,), label=None, name="s", digest="d")
    golden = golden_set([(item, (np.ones((1, 2)),))], (None,), scheme="fp32")
    assert golden.inputs[0].dtype == np.uint8
    assert not golden.preprocessed


def test_the_floor_is_outputs_that_are_one_step_off_everywhere():
    outputs = np.full((1, 5), 0.5, np.float32)
    golden = golden_set([(pairs(1)[0][0], (outputs,))], (0.01,), scheme="static-int8")
    off = outputs + 0.01
    sqnr_db = 10 * math.log10((outputs**2).sum() / ((outputs - off) ** 2).sum())
    assert golden.sqnr_floor_db == round(sqnr_db, 2)
    assert golden_set(pairs(), (None,), scheme="fp32").sqnr_floor_db == 60
    assert golden_set(pairs(), (), scheme="static-int8").sqnr_floor_db == 20
    dead = [(pairs(1)[0][0], (np.zeros((1, 5), np.float32),))]
    assert golden_set(dead, (0.01,), scheme="static-int8").sqnr_floor_db == 3


def test_large_samples_leave_one_since_every_app_downloads_them():
    large = [(sample(np.zeros((3, 224, 224), np.float32)), (np.ones((1, 5), np.float32),)) for _ in range(4)]
    assert golden_set(large, (None,), scheme="fp32").inputs[0].shape == (1, 3, 224, 224)
    images = [(sample(np.zeros((100, 100, 3), np.uint8)), (np.ones((1, 5), np.float32),)) for _ in range(12)]
    assert golden_set(images, (None,), scheme="fp32").inputs[0].shape[0] == 8
