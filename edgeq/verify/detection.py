"""Mean average precision of detectors, as COCO counts it: `--metric map`, and the class that users extend."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

from edgeq.core.errors import UsageError
from edgeq.core.lazy import NDArray, np
from edgeq.core.system import check_extras

_THRESHOLDS = 10  # of the overlap of boxes: 0.50, 0.55, … 0.95

_RECALLS = 101  # evenly from 0 to 1, at which COCO reads the precision

_MOST = 100  # detections of an image, those with the highest scores


class MeanAveragePrecision:
    """The mean average precision over overlaps (IoU) of 0.50 to 0.95 and over classes, of all images together.

    pycocotools matches the boxes of each image. As it is, the class takes models that end in boxes, their scores and
    their classes. For others, extend it: `detections` decodes the outputs (anchors, non-maximum suppression), `truth`
    reads the labels. Then name it as the metric: `--metric FILE.py:Class`.
    """

    def detections(self, outputs: Sequence[NDArray[Any]]) -> tuple[Any, Any, Any]:
        """Return what a model found in one image.

        Args:
            outputs: an array for each output of the model, without the batch axis.

        Returns:
            Boxes [n, 4] as x1, y1, x2, y2 in the unit of the labels, scores [n], higher is surer, and classes [n].

        Raises:
            UsageError: the outputs are not a float [n, 4], a float [n] and an integer [n].
        """
        boxes = [array for array in outputs if array.ndim == 2 and array.shape[1] == 4 and array.dtype.kind == "f"]
        scores = [array for array in outputs if array.ndim == 1 and array.dtype.kind == "f"]
        classes = [array for array in outputs if array.ndim == 1 and array.dtype.kind in "iu"]
        if [len(found) for found in (boxes, scores, classes)] != [1, 1, 1]:
            shapes = ", ".join(f"{array.dtype} {list(array.shape)}" for array in outputs)
            what = f"--metric map expects outputs of boxes [n, 4], scores [n] and integer classes [n], got {shapes}"
            raise UsageError(what, "extend edgeq.MeanAveragePrecision: its `detections` decodes the outputs")
        return boxes[0], scores[0], classes[0]

    def truth(self, label: Any) -> tuple[Any, Any]:
        """Return the objects of one image.

        Args:
            label: an array [objects, 5] of x1, y1, x2, y2 and the class; rows whose class is negative fill up.

        Returns:
            Boxes [n, 4] as x1, y1, x2, y2, and classes [n].

        Raises:
            UsageError: the label has another shape.
        """
        rows = np.asarray(label, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 5:
            what = f"--metric map expects labels [objects, 5]: x1, y1, x2, y2, class; got the shape {list(rows.shape)}"
            raise UsageError(what, "fill up images with fewer objects by rows of class -1")
        rows = rows[rows[:, 4] >= 0]
        return rows[:, :4], rows[:, 4]

    def row(self, outputs: Sequence[NDArray[Any]], label: Any) -> NDArray[np.float64]:
        """Return a line for each object and each detection of an image.

        Returns:
            [lines, 13]: the class, 1 for an object or 0 for a detection, its score, and for each overlap whether the
            detection found an object.

        Raises:
            UsageError: boxes, scores and classes that are not as many, or not finite.
        """
        boxes, scores, classes = (np.asarray(part, np.float64) for part in self.detections(outputs))
        true_boxes, true_classes = (np.asarray(part, np.float64) for part in self.truth(label))
        boxes, true_boxes = boxes.reshape(-1, 4), true_boxes.reshape(-1, 4)
        if not len(boxes) == scores.size == classes.size or len(true_boxes) != true_classes.size:
            counts = f"{len(boxes)} boxes, {scores.size} scores, {classes.size} classes"
            what = f"expected as many boxes as scores and classes, got {counts}"
            raise UsageError(what, "return boxes [n, 4], scores [n] and classes [n]")
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)  # what is lost in int8 finds nothing
        boxes, scores, classes = boxes[finite], scores[finite], classes[finite]
        lines = [(kind, 1.0, 0.0, *[0.0] * _THRESHOLDS) for kind in true_classes]
        for found in _matches(boxes, scores, classes, true_boxes, true_classes):
            hits = np.asarray(found["dtMatches"]) > 0
            of_class = float(found["category_id"])
            lines += [(of_class, 0.0, score, *hits[:, i]) for i, score in enumerate(found["dtScores"])]
        return np.asarray(lines, np.float64).reshape(-1, 3 + _THRESHOLDS)

    def score(self, rows: NDArray[np.float64]) -> float:
        """Return the mean average precision of lines of `row`; NaN where there is no object.

        The precision at a recall is the highest at this or a larger one, read at 101 recalls (COCOeval.accumulate).
        """
        precisions, recalls = [], np.linspace(0, 1, _RECALLS)
        for kind in np.unique(rows[rows[:, 1] == 1, 0]):
            of_class = rows[rows[:, 0] == kind]
            objects = int(of_class[:, 1].sum())
            found = of_class[of_class[:, 1] == 0]
            hits = found[np.argsort(-found[:, 2], kind="mergesort"), 3:]
            right = np.cumsum(hits, axis=0)
            precision = right / np.arange(1, len(hits) + 1)[:, None]
            precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            for at in range(_THRESHOLDS):
                places = np.searchsorted(right[:, at] / objects, recalls, side="left")
                reached = places < len(hits)
                precisions.append(float(precision[places[reached], at].sum()) / _RECALLS)
        return float(np.mean(precisions)) if precisions else math.nan


def _matches(boxes: Any, scores: Any, classes: Any, true_boxes: Any, true_classes: Any) -> list[dict[str, Any]]:
    """Return COCOeval's matches of one image, for each class that occurs; it counts from the upper left corner."""
    check_extras(("map",))
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(places: Any, kinds: Any, more: Any) -> list[dict[str, Any]]:
        sizes = places[:, 2:] - places[:, :2]
        return [
            {
                "id": i + 1,
                "image_id": 0,
                "category_id": int(kind),
                "bbox": [*corner, *size],
                "area": float(size.prod()),
                "iscrowd": 0,
                **extra,
            }
            for i, (corner, size, kind, extra) in enumerate(zip(places[:, :2], sizes, kinds, more, strict=True))
        ]

    kinds = [int(kind) for kind in np.unique(np.concatenate((classes, true_classes)))]
    if not kinds:
        return []
    sides = []
    for found in (
        annotations(true_boxes, true_classes, [{}] * len(true_boxes)),
        annotations(boxes, classes, [{"score": float(score)} for score in scores]),
    ):
        side = COCO()
        side.dataset = {"images": [{"id": 0}], "categories": [{"id": kind} for kind in kinds], "annotations": found}
        with contextlib.redirect_stdout(io.StringIO()):  # it reports each step
            side.createIndex()
        sides.append(side)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(*sides, "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [_MOST]
        evaluator.evaluate()
    return [found for found in evaluator.evalImgs if found is not None]
