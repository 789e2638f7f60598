"""The first steps, shared by all targets of a run: load the model, open the data, lint it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import DataFacts, LoadedModel, TensorSpec
from edgeq.errors import UsageError
from edgeq.job import Job, Progress
from edgeq.manifest import check_slug
from edgeq.pipeline.datasets import NO_SAMPLES, open_data
from edgeq.samples import Dataset, Sample
from edgeq.scheme import NEEDS_CALIBRATION, NEEDS_TRAINING

if TYPE_CHECKING:
    from edgeq.preprocess import Preprocess

DIGITS = "digits"
REJECTED_NAME = "rejected"
RANDOM_SAMPLES = 32
_ARTIFACTS = ("pte", "ptl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the later steps start from.

    Attributes:
        samples: evaluation data, or seeded random inputs where none was given.
        training: what qat-int8 may train on; none where no scheme trains.
        searching: what mixed-int8 judges on; none where no scheme searches.
        train: the user's own training loop.
        logits: whether the outputs are scored as logits [N, classes].
        unapplied: which data the preprocessing was not applied to, in words, although the manifest tells apps to apply
            it; "" where it was to all.
        remarks: what people must know of the data, and fails nothing.
    """

    model: LoadedModel
    preprocess: Preprocess | None
    calibration: Dataset
    samples: Dataset
    is_evaluation: bool
    metric: Callable[[tuple[Any, ...], Any], float] | None
    labels: tuple[str, ...]
    data: DataFacts
    training: Dataset = NO_SAMPLES
    searching: Dataset = NO_SAMPLES
    train: Callable[[Any, Any, Any], Any] | None = None
    logits: bool = False
    unapplied: str = ""
    remarks: tuple[str, ...] = ()


def with_demo_data(job: Job) -> Job:
    """Fill in the digits' own data and labels where the source is the embedded demo and none were given."""
    if job.source != DIGITS:
        return job
    data = dataclasses.replace(
        job.data,
        calibration=job.data.calibration or "edgeq.demo.digits:calibration_data",
        evaluation=job.data.evaluation or "edgeq.demo.digits:evaluation_data",
    )
    return dataclasses.replace(job, data=data, name=job.name or DIGITS)


def prepare(
    job: Job, progress: Progress, *, schemes: Collection[str], describe: Callable[[LoadedModel], LoadedModel]
) -> Prepared:
    """Load the model and its data.

    Args:
        job: what the run was asked to do.
        progress: how it is told.
        schemes: of the run, which say what data it needs.
        describe: fills in the inputs of an artifact that came as it is.

    Raises:
        UsageError: the model or the data is not usable, or the lint found something.
        EnvironmentProblem: weights could not be downloaded.
    """
    model, preprocess, outputs = _loaded(job, progress, describe)
    if model.kind in _ARTIFACTS:
        schemes = ()
    check_calibration(job, schemes)
    train = None if NEEDS_TRAINING.isdisjoint(schemes) else _train(job)
    n_classes = _n_classes(job, outputs)
    with progress.task("read the data"):
        opened, facts = open_data(job, model, preprocess, n_classes, schemes)
    calibration, evaluation = opened["calibration"], opened.get("evaluation")
    labels = _labels(job, evaluation, calibration)
    return Prepared(
        model=_with_statistics(model, calibration, progress),
        preprocess=preprocess,
        calibration=calibration,
        samples=evaluation or _random_samples(model, preprocess, job.seed),
        is_evaluation=evaluation is not None,
        metric=_metric(job),
        labels=labels,
        data=facts,
        training=opened.get("qat", NO_SAMPLES),
        searching=opened.get("search", NO_SAMPLES),
        train=train,
        logits=n_classes is not None,
        unapplied=_unapplied(preprocess, model, calibration, evaluation),
        remarks=_label_remarks(job, labels),
    )


def _unapplied(
    preprocess: Preprocess | None, model: LoadedModel, calibration: Dataset, evaluation: Dataset | None
) -> str:
    """Name the data that came as what the model takes, so that the preprocessing was not applied to it."""
    takes = [preprocess is not None and preprocess.takes(spec.dtype) for spec in model.inputs]
    roles = [
        role
        for role, data in (("calibration", calibration), ("evaluation", evaluation))
        if data is not None and data.count and _as_it_came(data.read(0), takes)
    ]
    # what is evaluated counts; where nothing is, what the ranges were taken from
    if not roles or (evaluation is not None and "evaluation" not in roles):
        return ""
    return f"the {' and '.join(roles)} data are arrays of the model's own inputs, to which --preprocess was not applied"


def _as_it_came(sample: Sample, takes: Sequence[bool]) -> bool:
    images = [pair for pair, image in zip(zip(sample.raw, sample.inputs, strict=True), takes, strict=True) if image]
    return bool(images) and all(raw is ready and ready.dtype.kind == "f" for raw, ready in images)


def _label_remarks(job: Job, labels: tuple[str, ...]) -> tuple[str, ...]:
    from edgeq.load.labels import few, read_labels, repeated_names

    named = read_labels(job.data.labels) if job.data.labels is not None else labels
    twice = repeated_names(named)
    if not twice:
        return ()
    return (f"{len(twice)} label{'s' if len(twice) > 1 else ''} stand for more than one output: {few(twice)}",)


def _loaded(
    job: Job, progress: Progress, describe: Callable[[LoadedModel], LoadedModel]
) -> tuple[LoadedModel, Preprocess | None, tuple[TensorSpec, ...]]:
    """Return the model, what is done with its images, and its outputs; of an artifact that came these are not known."""
    from edgeq.load.source import load_model

    with progress.task(f"load {job.source}"):
        model = load_model(
            job.source,
            weights=job.weights,
            inputs=job.inputs,
            name=job.name,
            seed=job.seed,
            trusted=job.trust_source,
        )
        if model.kind in _ARTIFACTS:
            model = describe(model)
        _check_name(model)
        model, preprocess = _pixels(job, model, _preprocess(job))
        return model, preprocess, () if model.kind in _ARTIFACTS else _outputs(model)


def _pixels(job: Job, model: LoadedModel, preprocess: Preprocess | None) -> tuple[LoadedModel, Preprocess | None]:
    """Let the model normalise pixels itself, where the job asks for it, and the preprocessing leave them bytes."""
    if job.input_dtype is None:
        return model, preprocess
    from edgeq.load.pixels import takes_pixels

    if preprocess is None:
        what = f"--input-dtype {job.input_dtype} lets the artifact normalise pixels, and how is not known"
        raise UsageError(what, "give --preprocess imagenet, unit, or a .toml file")
    return takes_pixels(model, preprocess), preprocess.as_bytes


def _random_samples(model: LoadedModel, preprocess: Preprocess | None, seed: int) -> Dataset:
    from edgeq.load.inputs import random_inputs

    return random_inputs(model.inputs, RANDOM_SAMPLES, seed, preprocess.value_range if preprocess else None)


def _with_statistics(model: LoadedModel, calibration: Dataset, progress: Progress) -> LoadedModel:
    """Return a model with random weights with batch-norm statistics of its own: its outputs are near zero else."""
    if model.weights != "random" or not calibration.count:
        return model
    from edgeq.load.weights import estimate_batch_norm

    with progress.task("estimate batch-norm statistics"):
        return dataclasses.replace(model, model=estimate_batch_norm(model.model, calibration, model.inputs))


def check_calibration(job: Job, schemes: Collection[str]) -> None:
    """Refuse schemes that observe ranges where there is nothing to observe; raises a UsageError."""
    if job.data.calibration is None and not NEEDS_CALIBRATION.isdisjoint(schemes):
        what = "int8 ranges must come from real samples, and no calibration data was given"
        raise UsageError(what, "give --calibration-data, or --scheme fp32")


def _check_name(model: LoadedModel) -> None:
    """Refuse a name that no bundle can have, and the one that has a meaning of its own in the output folder."""
    check_slug(model.name, "the model's name")
    if model.name == REJECTED_NAME:
        what = f"a model cannot be named {REJECTED_NAME!r}: bundles that fail their gates go into OUT/{REJECTED_NAME}"
        raise UsageError(what, "give another --name")


def _outputs(model: LoadedModel) -> tuple[TensorSpec, ...]:
    """Run the float model once, so that a misfit shows at once; an ONNX file states its outputs."""
    if model.kind == "onnx":
        from edgeq.load.onnx_file import output_specs

        return output_specs(model.model)
    from edgeq.quantize.capture import run_once

    return run_once(model)


def _preprocess(job: Job) -> Preprocess | None:
    from edgeq.preprocess import load_preprocess

    if job.data.preprocess is not None:
        return load_preprocess(job.data.preprocess)
    if job.source == DIGITS:
        from edgeq.demo.digits import PREPROCESS

        return PREPROCESS
    return None


def _metric(job: Job) -> Callable[[tuple[Any, ...], Any], float] | None:
    if job.data.metric is None:
        return None
    import numpy as np

    from edgeq.load.functions import load_metric

    score = load_metric(job.data.metric)

    def on_copies(outputs: tuple[Any, ...], label: Any) -> float:
        """A metric that works in place must not change what other targets, and the golden samples, are made of."""
        return score(tuple(np.array(array) for array in outputs), label)

    return on_copies


def _train(job: Job) -> Callable[[Any, Any, Any], Any] | None:
    if job.qat.train is None:
        return None
    from edgeq.load.functions import check_arguments, load_function

    function = load_function(job.qat.train, "training loop")
    check_arguments(function, 3, "prepared, teacher, data")
    return function


def _labels(job: Job, evaluation: Dataset | None, calibration: Dataset) -> tuple[str, ...]:
    named = (evaluation.class_names if evaluation else ()) or calibration.class_names
    return tuple(str(i) for i in range(10)) if job.source == DIGITS and not named else named


def _n_classes(job: Job, outputs: tuple[TensorSpec, ...]) -> int | None:
    """Return how many classes the first output tells apart; None where it is no logits [N, classes]."""
    shape = outputs[0].shape if outputs and job.data.metric is None else ()
    return shape[1] if len(shape) == 2 else None
