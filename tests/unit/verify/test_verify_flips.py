"""Every prediction that changed is counted, a few are shown, and memory stays bounded."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from edgeq.core.samples import Batch, Sample
from edgeq.verify.accumulate import MAX_EXAMPLES, FlipTally, thumbnail


def sample(index: int, label: object = None) -> Sample:
    image = np.full((8, 8, 1), index % 256, np.uint8)
    inputs = (np.zeros((1, 8, 8), np.float32),)
    return Sample(inputs=inputs, raw=(image,), label=label, name=f"data[{index}]", digest=str(index))


def batch(*samples: Sample) -> Batch:
    return Batch(inputs=(np.zeros((len(samples), 1, 8, 8), np.float32),), samples=samples)


def scores(*classes: int) -> tuple[np.ndarray, ...]:
    return (np.eye(4, dtype=np.float32)[list(classes)],)


def test_changes_are_counted_by_pair_and_shown_with_their_label():
    tally = FlipTally()
    tally.add(batch(sample(0, 0), sample(1, 1), sample(2, 2)), scores(0, 1, 2), scores(0, 3, 2))
    tally.add(batch(sample(3, 1), sample(4)), scores(1, 2), scores(3, 0))
    found = tally.result()
    assert found is not None
    assert (found.total, found.ranked) == (3, 5)
    assert [(pair.fp32, pair.artifact, pair.count) for pair in found.pairs] == [(1, 3, 2), (2, 0, 1)]
    assert [(flip.sample, flip.label, flip.fp32, flip.artifact) for flip in found.examples] == [
        ("data[1]", 1, 1, 3),
        ("data[3]", 1, 1, 3),
        ("data[4]", None, 2, 0),
    ]
    assert found.examples[2].fp32_scores == (1.0, 0.0)  # of classes 2 and 0
    assert found.examples[2].artifact_scores == (0.0, 1.0)


def test_examples_are_bounded_and_the_count_is_not():
    tally = FlipTally()
    for index in range(MAX_EXAMPLES + 10):
        tally.add(batch(sample(index)), scores(0), scores(1))
    found = tally.result()
    assert found is not None
    assert found.total == MAX_EXAMPLES + 10
    assert len(found.examples) == MAX_EXAMPLES


def test_what_ranks_no_classes_or_is_not_finite_is_left_out():
    tally = FlipTally()
    tally.add(batch(sample(0)), (np.zeros((1, 2, 2), np.float32),), (np.ones((1, 2, 2), np.float32),))
    assert tally.result() is None
    tally.add(batch(sample(0), sample(1)), scores(0, 1), (np.array([[np.nan, 1, 0, 0], [0, 1, 0, 0]], np.float32),))
    found = tally.result()
    assert found is not None
    assert (found.total, found.ranked) == (0, 1)


@pytest.mark.parametrize("label", [1.5, -1, np.array([1, 2]), "cat", 2**40])
def test_a_label_that_is_no_class_is_not_shown_as_one(label):
    tally = FlipTally()
    tally.add(batch(sample(0, label)), scores(0), scores(1))
    found = tally.result()
    assert found is not None
    assert found.examples[0].label in (None, 1)
    assert (found.examples[0].label == 1) == isinstance(label, np.ndarray)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (300, 200, 3)])
def test_images_become_thumbnails(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(pixels))))
    assert max(image.size) == min(64, max(shape[:2]))
    if max(shape[:2]) <= 64:  # nothing of a few pixels may be lost
        grey = pixels if pixels.ndim == 3 else pixels[:, :, None]
        assert np.array_equal(np.asarray(image), np.broadcast_to(grey, (*shape[:2], 3)))


@pytest.mark.parametrize(
    "raw",
    [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.float32), np.zeros(8, np.uint8), np.zeros((0, 8), np.uint8)],
)
def test_what_is_no_image_has_no_thumbnail(raw):
    assert thumbnail(raw) == ""
