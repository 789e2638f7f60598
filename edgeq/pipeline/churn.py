"""What a new model does otherwise than the shipped one, on the same data: flips, and classes that got worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.bundle.reader import Bundle
from edgeq.errors import UsageError
from edgeq.job import DataOptions, Progress
from edgeq.pipeline.evaluation import input_specs, open_evaluation
from edgeq.samples import Dataset, batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeq.artifacts import ClassDrop
    from edgeq.manifest import Manifest
    from edgeq.verify.host import HostRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """A new model against the shipped one.

    Attributes:
        samples: how many predictions were compared; a sample that is a whole batch has one for each row.
        distinct: how many of them are of distinct samples.
        flips: share of them that changed.
        most_flips: the upper end of its 95% interval, by Wilson's method.
        class_drop_pp: by how much the accuracy of the class that lost most fell; None without labels.
        worst_class: that class, in words.
        most_class_drop_pp: the largest upper end of all classes' 95% intervals, which hold together.
        least_known_class: the class that it belongs to, in words.
    """

    samples: int
    distinct: int
    flips: float
    most_flips: float
    class_drop_pp: float | None
    worst_class: str
    most_class_drop_pp: float | None = None
    least_known_class: str = ""


def churn(new: Bundle, old: Bundle, data: DataOptions, runtime: HostRuntime, progress: Progress) -> Churn:
    """Run both artifacts on the evaluation set.

    Args:
        new: the bundle to be released.
        old: the shipped one, with equal inputs and outputs.
        data: the evaluation data.
        runtime: a child process that runs them one after the other.
        progress: how it is told.

    Raises:
        UsageError: the data does not fit, a label is none of the model's classes, or the first output is no scores of
            classes.
        VerificationError: an artifact does not run.
        UnsupportedError: the runtime lacks what an artifact needs.
    """
    import numpy as np

    from edgeq.intervals import effective_count, share
    from edgeq.verify.metrics import class_drops

    samples = open_evaluation(new.manifest, data, progress).samples
    before, keys = _predictions(old, samples, runtime, progress, "shipped model")
    after, _ = _predictions(new, samples, runtime, progress, "new model")
    flips, distinct = float(np.mean(before != after)), len(set(keys))
    worth = effective_count(keys)
    found = Churn(
        samples=len(before),
        distinct=distinct,
        flips=flips,
        most_flips=share(flips * worth, worth)[1],
        class_drop_pp=None,
        worst_class="",
    )
    if not samples.labelled:
        return found
    labels = _labels(new.manifest, samples)
    drops = class_drops(labels.tolist(), before.tolist(), after.tolist(), keys)
    worst = max(drops, key=lambda one: one.drop_pp.estimate)
    unsure = max(drops, key=lambda one: one.drop_pp.high)
    return dataclasses.replace(
        found,
        class_drop_pp=worst.drop_pp.estimate,
        worst_class=_class_words(worst, new.manifest.labels),
        most_class_drop_pp=unsure.drop_pp.high,
        least_known_class=_class_words(unsure, new.manifest.labels),
    )


def _class_words(one: ClassDrop, names: tuple[str, ...]) -> str:
    name = names[one.label] if 0 <= one.label < len(names) and names[one.label] else f"class {one.label}"
    return f"{name}: {one.fp32_right} right of {one.samples} before, {one.right} now"


def _labels(manifest: Manifest, samples: Dataset) -> NDArray[Any]:
    """Return the class of each row, int64 [rows]."""
    import numpy as np

    from edgeq.verify.metrics import class_index
    from edgeq.verify.rows import scored

    classes = manifest.outputs[0].shape[1]
    return np.asarray(
        [
            class_index(label, classes)
            for batch in batches(samples, input_specs(manifest))
            for _, label in scored(batch, (), by_row=True)
        ]
    )


def _predictions(
    bundle: Bundle, samples: Dataset, runtime: HostRuntime, progress: Progress, what: str
) -> tuple[NDArray[Any], list[Hashable]]:
    """Return the predicted class of each row, int64 [rows], and what tells the rows apart.

    A sample that is a whole batch has several rows.
    """
    import numpy as np

    from edgeq.verify.rows import cut, real_rows, row_keys

    target = bundle.manifest.target
    runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=bundle.manifest.threads)
    found, keys = [], []
    with progress.task(f"run the {what}", samples.count) as task:
        for batch in batches(samples, input_specs(bundle.manifest)):
            scores = cut(batch, runtime.run(batch.inputs))[0]
            if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != real_rows(batch):
                what = f"the first output of {bundle.manifest.model.name} is no [N, classes], but {list(scores.shape)}"
                raise UsageError(what, "flips and class_drop are for classifiers; leave these limits out")
            if not np.isfinite(scores).all():
                raise UsageError(f"the {what} gives NaN or Inf", "verify the bundle with `edgeq verify`")
            found.append(scores.argmax(axis=1))
            keys += row_keys(batch)
            task.advance(batch.rows)
    return np.concatenate(found), keys
