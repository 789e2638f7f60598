"""The first steps, shared by all targets of a run: load the model, open the data, lint it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import DataFacts, LoadedModel, TensorSpec
from edgeq.errors import UsageError
from edgeq.job import Job, Progress
from edgeq.manifest import check_slug
from edgeq.samples import Dataset, remembered

if TYPE_CHECKING:
    from edgeq.load.data import Role
    from edgeq.preprocess import Preprocess

_Wanted = tuple["Role", str | None, int | None]
DIGITS = "digits"
REJECTED_NAME = "rejected"
RANDOM_SAMPLES = 32
_MEMO_BYTES = 128 * 10**6  # a set: 128 images of 224 x 224, preprocessed and raw
NO_SAMPLES = Dataset(origin="none", count=0, read=lambda i: _nothing(i))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the later steps start from.

    Attributes:
        samples: evaluation data, or seeded random inputs where none was given.
        training: what qat-int8 may train on; none where no scheme trains.
        searching: what mixed-int8 judges on; none where no scheme searches.
        train: the user's own training loop.
        logits: whether the outputs are scored as logits [N, classes].
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


def _nothing(i: int) -> Any:
    raise IndexError(i)


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
    job: Job,
    progress: Progress,
    *,
    needs_calibration: bool,
    needs_training: bool = False,
    needs_search: bool = False,
    describe: Callable[[LoadedModel], LoadedModel],
) -> Prepared:
    """Load the model and its data.

    Args:
        job: what the run was asked to do.
        progress: how it is told.
        needs_calibration: whether any scheme of the run observes ranges.
        needs_training: whether any scheme of the run trains.
        needs_search: whether any scheme of the run searches.
        describe: fills in the inputs of an artifact that came as it is.

    Raises:
        UsageError: the model or the data is not usable, or the lint found something.
        EnvironmentProblem: weights could not be downloaded.
    """
    from edgeq.load.inputs import random_inputs
    from edgeq.load.source import load_model

    with progress.task(f"load {job.source}"):
        model = load_model(job.source, weights=job.weights, inputs=job.inputs, name=job.name, seed=job.seed)
        is_artifact = model.kind in ("pte", "ptl")
        model = describe(model) if is_artifact else model
        _check_name(model)
        model, preprocess = _pixels(job, model, _preprocess(job))
        outputs = () if is_artifact else _outputs(model)
    if needs_calibration and job.data.calibration is None and not is_artifact:
        what = "int8 ranges must come from real samples, and no calibration data was given"
        raise UsageError(what, "give --calibration-data, or --scheme fp32")
    needs_training, needs_search = needs_training and not is_artifact, needs_search and not is_artifact
    train = _train(job) if needs_training else None
    with progress.task("read the data"):
        also = _also(job, with_training=needs_training, with_search=needs_search)
        opened, facts = _data(job, model, preprocess, outputs, also)
    calibration, evaluation = opened["calibration"], opened.get("evaluation")
    if model.weights == "random" and calibration.count:
        from edgeq.load.weights import estimate_batch_norm

        with progress.task("estimate batch-norm statistics"):
            module = estimate_batch_norm(model.model, calibration, model.inputs)
            model = dataclasses.replace(model, model=module)
    value_range = preprocess.value_range if preprocess else None
    return Prepared(
        model=model,
        preprocess=preprocess,
        calibration=calibration,
        samples=evaluation or random_inputs(model.inputs, RANDOM_SAMPLES, job.seed, value_range),
        is_evaluation=evaluation is not None,
        metric=_metric(job),
        labels=_labels(job, evaluation, calibration),
        data=facts,
        training=opened.get("qat", NO_SAMPLES),
        searching=opened.get("search", NO_SAMPLES),
        train=train,
        logits=_n_classes(job, outputs) is not None,
    )


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


def _pixels(job: Job, model: LoadedModel, preprocess: Preprocess | None) -> tuple[LoadedModel, Preprocess | None]:
    """Let the model normalise pixels itself, where the job asks for it, and the preprocessing leave them bytes."""
    if job.input_dtype is None:
        return model, preprocess
    from edgeq.load.pixels import takes_pixels

    if preprocess is None:
        what = f"--input-dtype {job.input_dtype} lets the artifact normalise pixels, and how is not known"
        raise UsageError(what, "give --preprocess imagenet, unit, or a .toml file")
    return takes_pixels(model, preprocess), preprocess.as_bytes


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


def _data(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    outputs: tuple[TensorSpec, ...],
    also: Sequence[_Wanted],
) -> tuple[dict[str, Dataset], DataFacts]:
    """Return the sets by role, `calibration` always among them, and what the manifest says of them."""
    from edgeq.load.data import open_dataset
    from edgeq.load.digest import dataset_sha256
    from edgeq.load.labels import check_classes

    n_classes = _n_classes(job, outputs)
    opened: dict[str, Dataset] = {"calibration": NO_SAMPLES}
    skipped: list[str] = []
    wanted: list[_Wanted] = [
        ("calibration", job.data.calibration, job.data.num_calibration_samples),
        ("evaluation", job.data.evaluation, None),
        *also,
    ]
    for role, origin, limit in wanted:
        if origin is None:
            continue
        data, left_out = open_dataset(
            origin, role=role, specs=model.inputs, preprocess=preprocess, options=job.data, limit=limit, seed=job.seed
        )
        opened[role] = remembered(data, _MEMO_BYTES)
        skipped += left_out
        if n_classes is not None:
            check_classes(data.class_names, n_classes, from_file=job.data.labels is not None)
    if "search" in opened:
        from edgeq.pipeline.searching import split_search

        opened |= split_search(opened["calibration"], opened["search"], job)
    opened, facts = _linted(job, model, preprocess, opened, n_classes)
    hashes = {role: dataset_sha256(data) for role, data in opened.items() if data.count}
    counts = {role: data.count for role, data in opened.items()}
    return opened, dataclasses.replace(
        facts,
        calibration_sha256=hashes.get("calibration"),
        calibration_samples=counts["calibration"],
        evaluation_sha256=hashes.get("evaluation"),
        evaluation_samples=counts.get("evaluation", 0),
        qat_sha256=hashes.get("qat"),
        qat_samples=counts.get("qat", 0),
        search_sha256=hashes.get("search"),
        search_samples=counts.get("search", 0),
        skipped=tuple(dict.fromkeys(skipped)),
    )


def _also(job: Job, *, with_training: bool, with_search: bool) -> list[_Wanted]:
    """Return the sets that only some schemes need."""
    data = job.data
    wanted: list[_Wanted] = []
    if with_training:
        wanted.append(("qat", job.qat.data or data.calibration, job.qat.samples))
    if with_search:
        # of the calibration data so many are asked for that enough are left
        most = data.num_search_samples + data.num_calibration_samples
        wanted.append(("search", data.search or data.calibration, most))
    return wanted


def _linted(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    opened: dict[str, Dataset],
    n_classes: int | None,
) -> tuple[dict[str, Dataset], DataFacts]:
    """Refuse bad data, or with `--data-lint warn` tell of it and leave shared samples out of the evaluation."""
    from edgeq.load.digest import exclude
    from edgeq.load.lint import lint

    evaluation, training, search = (opened.get(role) for role in ("evaluation", "qat", "search"))
    findings = lint(
        opened["calibration"] if opened["calibration"].count else None,
        evaluation,
        training,
        search,
        wanted=job.data.num_calibration_samples,
        preprocess=preprocess,
        specs=model.inputs,
        n_classes=n_classes,
        declared=bool(job.inputs),
    )
    if findings and job.data.lint == "error":
        told = "; ".join(f"{finding.name}: {finding.message}" for finding in findings)
        raise UsageError(f"the data lint found {told}", "mend the data, or give --data-lint warn to go on all the same")
    excluded = 0
    if evaluation is not None and any(finding.name == "shared-with-evaluation" for finding in findings):
        before = evaluation.count
        seen = (opened["calibration"], *(data for data in (training, search) if data is not None))
        evaluation = exclude(evaluation, frozenset(sample.digest for data in seen for sample in data))
        excluded = before - evaluation.count
    kept = {role: data for role, data in opened.items() if role != "evaluation"}
    if evaluation is not None and evaluation.count:
        kept["evaluation"] = evaluation
    return kept, DataFacts(findings=findings, excluded_shared=excluded)
