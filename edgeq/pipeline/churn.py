"""What a new model does otherwise than the shipped one, on the same data: flips, and classes that got worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.bundle.reader import Bundle
from edgeq.errors import UsageError
from edgeq.job import DataOptions, Progress
from edgeq.pipeline.evaluation import input_specs, open_evaluation
from edgeq.samples import Dataset, batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeq.manifest import Manifest
    from edgeq.verify.host import HostRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """A new model against the shipped one.

    Attributes:
        samples: how many predictions were compared; a sample that is a whole batch has one for each row.
        flips: share of them that changed.
        class_drop_pp: by how much the accuracy of the class that lost most fell; None without labels.
        worst_class: that class, in words.
    """

    samples: int
    flips: float
    class_drop_pp: float | None
    worst_class: str


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

    samples = open_evaluation(new.manifest, data, progress).samples
    before = _predictions(old, samples, runtime, progress, "shipped model")
    after = _predictions(new, samples, runtime, progress, "new model")
    drop, worst = None, ""
    if samples.labelled:
        drop, worst = _class_drop(_labels(new.manifest, samples), before, after, new.manifest.labels)
    return Churn(samples=len(before), flips=float(np.mean(before != after)), class_drop_pp=drop, worst_class=worst)


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


def _predictions(bundle: Bundle, samples: Dataset, runtime: HostRuntime, progress: Progress, what: str) -> NDArray[Any]:
    """Return the predicted class of each row, int64 [rows]; a sample that is a whole batch has several."""
    import numpy as np

    from edgeq.verify.rows import cut, real_rows

    target = bundle.manifest.target
    runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=bundle.manifest.threads)
    found = []
    with progress.task(f"run the {what}", samples.count) as task:
        for batch in batches(samples, input_specs(bundle.manifest)):
            scores = cut(batch, runtime.run(batch.inputs))[0]
            if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != real_rows(batch):
                what = f"the first output of {bundle.manifest.model.name} is no [N, classes], but {list(scores.shape)}"
                raise UsageError(what, "flips and class_drop are for classifiers; leave these limits out")
            if not np.isfinite(scores).all():
                raise UsageError(f"the {what} gives NaN or Inf", "verify the bundle with `edgeq verify`")
            found.append(scores.argmax(axis=1))
            task.advance(batch.rows)
    return np.concatenate(found)


def _class_drop(
    labels: NDArray[Any], before: NDArray[Any], after: NDArray[Any], names: tuple[str, ...]
) -> tuple[float, str]:
    """Return the largest drop of a class's accuracy in percentage points, and that class with its counts."""
    worst, text = float("-inf"), ""
    for label in sorted(set(labels.tolist())):
        of_class = labels == label
        old, new = int((before[of_class] == label).sum()), int((after[of_class] == label).sum())
        drop_pp = 100 * (old - new) / int(of_class.sum())
        if drop_pp > worst:
            name = names[label] if 0 <= label < len(names) else f"class {label}"
            worst, text = drop_pp, f"{name}: {old} right of {int(of_class.sum())} before, {new} now"
    return worst, text
