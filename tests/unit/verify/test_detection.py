"""Mean average precision, against COCO's own."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgeq.core.errors import UsageError
from edgeq.verify.detection import MeanAveragePrecision
from edgeq.verify.metrics import built_in_metric

CLASSES = 3


def image(rng):
    """Objects [n, 5], and detections near them: boxes, scores with ties, classes."""
    count = int(rng.integers(0, 5))
    corners = rng.uniform(0, 50, (count, 2))
    objects = np.column_stack((corners, corners + rng.uniform(5, 30, (count, 2)), rng.integers(0, CLASSES, count)))
    found = objects[rng.integers(0, count, 2 * count)] if count else np.zeros((0, 5))
    other = np.column_stack((rng.uniform(0, 20, (2, 2)), rng.uniform(30, 60, (2, 2)), rng.integers(0, CLASSES, 2)))
    found = np.concatenate((found, other))
    boxes = found[:, :4] + rng.normal(0, 1.5, (len(found), 4))
    wrong = rng.random(len(found)) < 0.2
    classes = np.where(wrong, rng.integers(0, CLASSES, len(found)), found[:, 4])
    return objects, (boxes, np.round(rng.random(len(found)), 1), classes.astype(np.int64))


def padded(objects, length=8):
    return np.concatenate((objects, np.full((length - len(objects), 5), -1.0)))


def cocos(images):
    """COCOeval's own mean average precision of all images."""
    truth, found = [], []
    for number, (objects, (boxes, scores, classes)) in enumerate(images):
        truth += [
            {"image_id": number, "category_id": int(kind), "bbox": [x, y, r - x, b - y], "area": 9.0, "iscrowd": 0}
            for x, y, r, b, kind in objects
        ]
        found += [
            {"image_id": number, "category_id": int(kind), "bbox": [x, y, r - x, b - y], "score": score}
            for (x, y, r, b), score, kind in zip(boxes, scores, classes, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            "images": [{"id": number} for number in range(len(images))],
            "categories": [{"id": kind} for kind in range(CLASSES)],
            "annotations": [{"id": i + 1, **one} for i, one in enumerate(truth)],
        }
        ground.createIndex()
        # as loadRes does, which wants a list that is not empty
        evaluator = COCOeval(ground, ground.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


@pytest.mark.parametrize("seed", range(2))
def test_it_is_that_of_coco(seed):
    rng = np.random.default_rng(seed)
    images = [image(rng) for _ in range(30)]
    metric, name = built_in_metric("map", None, 0)
    rows = [metric.row(found, padded(objects)) for objects, found in images]
    expected = cocos(images)
    assert 0.1 < expected < 0.9
    assert (metric.of(rows), name) == (pytest.approx(expected), "map")
    # a paired interval, in which an image's boxes stay together
    worse = [metric.row((boxes + 4, scores, classes), padded(objects)) for objects, (boxes, scores, classes) in images]
    drop = metric.drop_pp(rows, worse, None)
    assert drop.estimate == pytest.approx(100 * (expected - metric.of(worse)))
    assert 0 < drop.low < drop.estimate < drop.high
    same = metric.drop_pp(rows, rows, None)
    assert same.low < same.estimate == 0 < same.high


def test_what_is_not_finite_finds_nothing_and_no_object_gives_no_score():
    metric = MeanAveragePrecision()
    boxes = np.float32([[0, 0, 10, 10], [20, 20, 40, 40]])
    label = np.float32([[0, 0, 10, 10, 0], [20, 20, 40, 40, 1]])
    outputs = (boxes, np.float32([0.9, 0.8]), np.int64([0, 1]))
    assert metric.score(metric.row(outputs, label)) == pytest.approx(1)
    outputs[0][0] = math.nan
    assert metric.score(metric.row(outputs, label)) == pytest.approx(0.5)
    assert math.isnan(metric.score(metric.row(outputs, np.full((2, 5), -1))))
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert metric.score(metric.row(empty, label)) == 0
    assert metric.row(empty, np.full((2, 5), -1)).shape == (0, 13)


def test_other_outputs_and_labels_are_refused():
    metric = MeanAveragePrecision()
    boxes, scores, classes = np.zeros((2, 4), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int64)
    with pytest.raises(UsageError, match=r"expects outputs of boxes .* got float32 \[2, 4\], float32 \[2\]") as raised:
        metric.row((boxes, scores), np.zeros((1, 5)))
    assert "extend edgeq.MeanAveragePrecision" in raised.value.fix
    with pytest.raises(UsageError, match=r"expects labels \[objects, 5\].*got the shape \[4\]"):
        metric.row((boxes, scores, classes), np.zeros(4))
    with pytest.raises(UsageError, match="got 2 boxes, 3 scores, 2 classes"):
        metric.row((boxes, np.zeros(3, np.float32), classes), np.zeros((1, 5)))
