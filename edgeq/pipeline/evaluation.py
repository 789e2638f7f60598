"""Evaluation data for a bundle, which is read by its manifest alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError
from edgeq.job import DataOptions, Progress
from edgeq.manifest import Manifest
from edgeq.samples import Dataset

TOP1 = "top1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the artifact is scored on.

    Attributes:
        metric: a score per sample; None for top-1.
    """

    samples: Dataset
    metric: Callable[[tuple[Any, ...], Any], float] | None
    metric_name: str


def input_specs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Return the model's inputs as the steps take them."""
    return tuple(TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in manifest.inputs)


def open_evaluation(
    manifest: Manifest, data: DataOptions, progress: Progress, *, limit: int | None = None
) -> Evaluation:
    """Open evaluation data for a bundle, preprocessed as its manifest says.

    Args:
        manifest: the bundle's.
        data: what was given.
        progress: how it is told.
        limit: the most samples, evenly from all classes; None for all.

    Raises:
        UsageError: no such data or metric, samples that do not fit, or class folders of other outputs.
    """
    from edgeq.load.data import open_dataset
    from edgeq.load.functions import load_metric

    with progress.task("read the data"):
        samples, _ = open_dataset(
            data.evaluation or "",
            role="evaluation",
            specs=input_specs(manifest),
            preprocess=next((one.preprocessing for one in manifest.inputs if one.preprocessing), None),
            options=data,
            limit=limit,
            seed=manifest.provenance.seed,
        )
        _check_labels(manifest, samples, data)
        metric = load_metric(data.metric) if data.metric else None
    name = (data.metric or "").rpartition(":")[2] or TOP1
    return Evaluation(samples=samples, metric=metric, metric_name=name)


def _check_labels(manifest: Manifest, samples: Dataset, data: DataOptions) -> None:
    """Refuse class folders that stand for other outputs than the bundle's labels do."""
    from edgeq.load.labels import check_classes, few

    outputs = manifest.outputs
    if data.metric is None and outputs and len(outputs[0].shape) == 2:
        check_classes(samples.class_names, outputs[0].shape[1], from_file=data.labels is not None)
    if data.labels is None and samples.class_names and manifest.labels not in ((), samples.class_names):
        what = f"the class folders are {few(samples.class_names)}, the bundle's labels {few(manifest.labels)}"
        raise UsageError(what, "say which output each folder stands for with --labels FILE")
