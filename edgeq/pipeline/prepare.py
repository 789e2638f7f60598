"""The first steps, shared by all targets of a run: load the model, open the data, lint it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import REJECTED_NAME, Job, Progress
from edgeq.core.errors import FoundErrors, UsageError, VerificationError, first_line, raise_findings
from edgeq.core.intervals import beyond_proof
from edgeq.core.lazy import np
from edgeq.core.manifest import ETDUMP_NAME, check_slug
from edgeq.core.marks import is_built_in_metric
from edgeq.core.preprocess import Preprocess, load_preprocess
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.model import LoadedModel, LoweredModel, ModelFacts, ModelWork, TensorSpec
from edgeq.core.results.report import DataFacts
from edgeq.core.samples import (
    NO_SAMPLES,
    Batch,
    Dataset,
    Sample,
    batch_size,
    batches,
    remembered,
    state_specs,
    unrolled,
)
from edgeq.core.schemes import NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.core.sources import DIGITS
from edgeq.load.dataset import Role, makes_data
from edgeq.load.images import check_classes, few, read_labels, repeated_names
from edgeq.load.inputs import random_inputs, random_sequences, takes_pixels, with_states
from edgeq.load.language import is_text, open_text
from edgeq.load.lint import LintSpec, lint
from edgeq.load.live import open_dataset
from edgeq.load.model import estimate_batch_norm, load_model
from edgeq.load.onnx import gives_probability, output_specs
from edgeq.load.selection import choose, dataset_sha256, exclude
from edgeq.load.user_code import Metric as UserMetric
from edgeq.load.user_code import OfSet, check_arguments, load_function, load_metric
from edgeq.lower.onnx import file_work
from edgeq.pipeline.plan import BuildStep, match_apps, plan_text
from edgeq.pipeline.preflight import check_calibration, limits_drop, preflight, refused_targets, without_labels
from edgeq.quantize.capture import run_once
from edgeq.quantize.graph_runner import Forward, forward
from edgeq.verify.accumulate import GOLDEN_SAMPLES
from edgeq.verify.emulate.emulate import Subset, subset_size
from edgeq.verify.host import onnx_error
from edgeq.verify.metrics import TOP1, Metric, SetMetric, built_in_metric, class_index
from edgeq.verify.spec import VerifySpec

_LEAST = 16  # with fewer, one prediction is worth more than any limit in use

_SHARE = 4  # one of so many calibration samples is for the search, where there are no others


class TooFewSamples(UsageError):
    """Too few samples to search on and to calibrate on (exit code 2)."""


def split_search(calibration: Dataset, search: Dataset, job: Job) -> dict[str, Dataset]:
    """Return calibration and search samples that share none, by role.

    Args:
        calibration: the samples that ranges are set from.
        search: the samples of --search-data, or of the calibration data as a whole.
        job: how many of the latter are taken at most, and the seed that splits the former.

    Raises:
        TooFewSamples: too few are left.
    """
    rest = exclude(search, frozenset(sample.digest for sample in calibration))
    if rest.count >= _LEAST:
        taken = dataclasses.replace(rest, count=min(rest.count, job.data.num_search_samples))
        return {"calibration": calibration, "search": taken}
    if job.data.search is not None:
        what = (
            f"--search-data has {rest.count} samples outside of the calibration data, but at least {_LEAST} are needed"
        )
        raise TooFewSamples(what, "give more samples, or omit --search-data")
    if calibration.count < _SHARE * _LEAST:
        what = f"mixed-int8 needs samples beyond those that it calibrates on, but {calibration.origin} has only"
        raise TooFewSamples(
            f"{what} {calibration.count}", f"give {_SHARE * _LEAST} samples or more, or give --search-data"
        )
    held = choose(
        calibration.count,
        limit=calibration.count // _SHARE,
        seed=job.seed,
        classes=[str(sample.label) for sample in calibration] if calibration.labelled else None,
    )
    kept = sorted({*range(calibration.count)} - {*held})
    return {"calibration": _view(calibration, kept), "search": _view(calibration, held)}


def _view(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    return dataclasses.replace(dataset, count=len(rows), read=lambda i: dataset.read(rows[i]))


def subset(step: BuildStep, macs: int) -> Subset:
    """Return what keeps the samples that the device's kernels will run; `macs` are those of one inference."""
    samples = step.inputs.samples
    rows = batch_size(samples, step.inputs.model.inputs) or 1
    limit = step.job.device.samples or subset_size(macs, step.spec.scheme)
    return Subset(count=samples.count, rows=rows, limit=limit, first=GOLDEN_SAMPLES)


def verify_spec(step: BuildStep, lowered: LoweredModel | None) -> VerifySpec:
    """Return the verify step's input for an artifact that is compared with nothing yet; None: for its graph alone."""
    inputs, spec = step.inputs, step.spec
    return VerifySpec(
        lowered=lowered,
        inputs=inputs.model.inputs,
        graph=None,
        fp32=None,
        output_steps=(),
        samples=inputs.samples,
        is_evaluation=inputs.is_evaluation,
        metric=inputs.metric,
        metric_name=inputs.metric_name,
        scheme=spec.scheme,
        backend=spec.backend,
        threads=spec.threads,
        output_names=inputs.model.output_names,
        progress=step.progress,
        label=step.label,
        etdump=step.folder / ETDUMP_NAME if step.job.devtools and spec.runtime == "executorch" else None,
        language=inputs.model.language,
    )


def float_forward(model: LoadedModel) -> Forward:
    """Return a function that runs the model as it was loaded; an ONNX file by ONNX Runtime."""
    if model.kind == "onnx":
        return unfused(model.model, model.inputs)
    return forward(model.model.module() if model.kind == "exported" else model.model)


def unfused(path: Path, specs: Sequence[TensorSpec]) -> Forward:
    """Return a function that runs an ONNX file operator by operator, without any optimization, in this process.

    Raises:
        UnsupportedError, VerificationError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises a type for each of its codes
        kind, meaning = onnx_error(str(err)) or (VerificationError, "")
        what = f"ONNX Runtime cannot load {path.name}: {meaning or first_line(err)}"
        raise kind(what, "export it again with an opset that this ONNX Runtime supports") from err
    names = [spec.name for spec in specs]

    def run(batch: Batch) -> tuple[Any, ...]:
        outputs = session.run(None, dict(zip(names, batch.inputs, strict=True)))
        return tuple(np.asarray(output) for output in outputs)

    return run


def float_module(inputs: Inputs) -> Any:
    """Return the model as it was loaded, as a module."""
    model = inputs.model
    return model.model.module() if model.kind == "exported" else model.model


RANDOM_SAMPLES = 32

RANDOM_SEQUENCES, RANDOM_STEPS = 4, 32  # of a model with state

_ARTIFACTS = ("pte", "ptl")

_THRESHOLDED = ("f1", "miou")  # metrics that turn scores into answers

_LOOKED_AT = 64  # samples that tell probabilities from logits


def prepare(
    job: Job, progress: Progress, *, schemes: Collection[str], describe: Callable[[LoadedModel], LoadedModel]
) -> Inputs:
    """Load the model and its data.

    Args:
        job: what the run was asked to do.
        progress: where progress is reported.
        schemes: of the run, which say what data it needs.
        describe: fills in the inputs of a ready-made artifact.

    Raises:
        UsageError: the model or the data is not usable, or the lint found something.
        VerificationError: a limit on the accuracy drop, and evaluation data without labels.
        EnvironmentProblem: weights could not be downloaded.
    """
    model, preprocess, outputs, work = _loaded(job, progress, describe)
    if model.kind in _ARTIFACTS:
        schemes = ()
    check_calibration(job, schemes)
    train = None if NEEDS_TRAINING.isdisjoint(schemes) else _train(job)
    n_classes = _classes(job, outputs)
    with progress.task("read the data") as task:
        opened, facts = open_data(job, model, preprocess, n_classes, schemes)
        metric, metric_name = _metric(job, model, outputs, opened.get("evaluation"))
        if n_classes is not None and (why := _cannot_pass(job, opened.get("evaluation"))):
            task.note(why)
    calibration, evaluation = opened["calibration"], opened.get("evaluation")
    if evaluation is not None:
        _score_one(evaluation, metric, model, n_classes)
    is_scored = evaluation is None or evaluation.labelled or metric is not None
    if evaluation is not None and not is_scored and limits_drop(job.gates) and model.kind not in _ARTIFACTS:
        raise without_labels(evaluation.origin)
    named = (evaluation.class_names if evaluation else ()) or calibration.class_names
    labels = tuple(str(i) for i in range(10)) if job.source == DIGITS and not named else named
    return Inputs(
        model=_with_statistics(model, calibration, progress),
        preprocess=preprocess,
        calibration=calibration,
        samples=evaluation or _random_samples(model, preprocess, job.seed),
        is_evaluation=evaluation is not None,
        metric=metric,
        labels=labels,
        data=facts,
        training=opened.get("qat", NO_SAMPLES),
        searching=opened.get("search", NO_SAMPLES),
        train=train,
        logits=n_classes is not None,
        unapplied=_unapplied(preprocess, model, calibration, evaluation),
        metric_name=metric_name,
        remarks=(*model.remarks, *_label_remarks(job, labels)),
        work=work,
    )


def _cannot_pass(job: Job, evaluation: Dataset | None) -> str:
    """Return that a limit on the accuracy drop fails for any artifact, since there are too few samples; else ""."""
    limit = dict(job.gates.limits).get("accuracy_drop")
    if limit is None or job.gates.limit_on == "point" or evaluation is None or not evaluation.labelled:
        return ""
    why = beyond_proof(evaluation.count, limit)
    return why and f"--limit accuracy_drop={limit:g}pp cannot pass: {why}; --limit-on point judges the estimate alone"


def _classes(job: Job, outputs: Sequence[TensorSpec]) -> int | None:
    """Return how many classes logits [N, classes] tell apart; None for other outputs, and where a metric judges."""
    shape = outputs[0].shape if outputs and job.data.metric is None else ()
    # one value in each row may be the score of one of two classes, or a quantity
    return shape[1] if len(shape) == 2 and shape[1] > 1 else None


def _score_one(
    evaluation: Dataset, metric: Metric | SetMetric | None, model: LoadedModel, n_classes: int | None
) -> None:
    """Score the float model's answer to one sample, so that a metric or label that cannot be used fails at once."""
    if not evaluation.labelled:
        return
    sample = evaluation.read(0)
    try:
        if metric is None and n_classes is not None:
            class_index(sample.label, n_classes)
        elif metric is not None and model.kind not in (*_ARTIFACTS, "onnx"):
            batch = next(iter(batches(dataclasses.replace(evaluation, count=1), model.inputs)))
            run = float_forward(model)
            score = metric.row if isinstance(metric, SetMetric) else metric
            score(tuple(output[0] for output in run(batch)), sample.label)
    except UsageError as err:
        raise UsageError(f"--eval-data {evaluation.origin}: {sample.name}: {err.what}", err.fix) from err


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
    return (
        f"the {' and '.join(roles)} data are arrays in the model's own input format, to which --preprocess was "
        "not applied"
    )


def _as_it_came(sample: Sample, takes: Sequence[bool]) -> bool:
    images = [pair for pair, image in zip(zip(sample.raw, sample.inputs, strict=True), takes, strict=True) if image]
    return bool(images) and all(raw is ready and ready.dtype.kind == "f" for raw, ready in images)


def _label_remarks(job: Job, labels: tuple[str, ...]) -> tuple[str, ...]:
    named = read_labels(job.data.labels) if job.data.labels is not None else labels
    twice = repeated_names(named)
    if not twice:
        return ()
    return (f"{len(twice)} label{'s' if len(twice) > 1 else ''} stand for more than one output: {few(twice)}",)


def load_job_model(job: Job, *, downloads: bool = True) -> LoadedModel:
    """Load the model that a job names; the arguments and errors are those of `load_model`."""
    return load_model(
        job.source,
        weights=job.weights,
        inputs=job.inputs,
        name=job.name,
        seed=job.seed,
        trusted=job.trust_source,
        ignore_extra=job.ignore_extra_weights,
        downloads=downloads,
        context_length=job.context_length,
    )


def _loaded(
    job: Job, progress: Progress, describe: Callable[[LoadedModel], LoadedModel], *, downloads: bool = True
) -> tuple[LoadedModel, Preprocess | None, tuple[TensorSpec, ...], ModelWork | None]:
    """Return the model, what is done with its images, its outputs, and what it computes.

    Of an artifact that came the last two are not known.
    """
    with progress.task(f"load {job.source}") as task:
        model = load_job_model(job, downloads=downloads)
        for note in model.notes:
            task.note(note)
        if model.kind in _ARTIFACTS:
            model = describe(model)
        # refuse a name that no bundle can have, and the one that has a meaning of its own in the output folder
        check_slug(model.name, "the model's name")
        if model.name == REJECTED_NAME:
            what = (
                f"a model cannot be named {REJECTED_NAME!r}, since bundles that fail their gates go into "
                f"OUT/{REJECTED_NAME}"
            )
            raise UsageError(what, "give another --name")
        model, preprocess = _pixels(job, model, _preprocess(job) or model.preprocess)
        outputs, work = ((), None) if model.kind in _ARTIFACTS else _outputs(model)
        if job.state and model.kind == "onnx":  # whose outputs may have open sizes
            outputs = _ran_once(model, outputs)
        return with_states(model, job.state, outputs), preprocess, outputs, work


def _ran_once(model: LoadedModel, outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs of an ONNX file with the shapes that a run gives them."""
    (batch,) = batches(random_inputs(model.inputs, 1, 0, None), model.inputs)
    arrays = float_forward(model)(batch)
    return tuple(
        dataclasses.replace(spec, dtype=array.dtype.name, shape=array.shape)
        for spec, array in zip(outputs, arrays, strict=True)
    )


def _pixels(job: Job, model: LoadedModel, preprocess: Preprocess | None) -> tuple[LoadedModel, Preprocess | None]:
    """Let the model normalise pixels itself, where the job asks for it, and the preprocessing leave them bytes."""
    if job.input_dtype is None:
        return model, preprocess

    if preprocess is None:
        what = (
            f"--input-dtype {job.input_dtype} makes the artifact normalise pixels, but the normalisation is not known"
        )
        raise UsageError(what, "give --preprocess imagenet, unit, or a .toml file")
    return takes_pixels(model, preprocess), preprocess.as_bytes


def _random_samples(model: LoadedModel, preprocess: Preprocess | None, seed: int) -> Dataset:
    value_range = preprocess.value_range if preprocess else None
    if not state_specs(model.inputs):
        return random_inputs(model.inputs, RANDOM_SAMPLES, seed, value_range)
    sequences = random_sequences(model.inputs, RANDOM_SEQUENCES, RANDOM_STEPS, seed, value_range)
    return remembered(unrolled(sequences, model.inputs, float_forward(model)), _MEMO_BYTES)


def _with_statistics(model: LoadedModel, calibration: Dataset, progress: Progress) -> LoadedModel:
    """Return a model with random weights with batch-norm statistics of its own: its outputs are near zero else."""
    if model.weights != "random" or not calibration.count:
        return model
    with progress.task("estimate batch-norm statistics"):
        return dataclasses.replace(model, model=estimate_batch_norm(model.model, calibration, model.inputs))


def _outputs(model: LoadedModel) -> tuple[tuple[TensorSpec, ...], ModelWork | None]:
    """Run the float model once, so that a misfit shows at once; an ONNX file states its outputs."""
    if model.kind == "onnx":
        return output_specs(model.model), None

    return run_once(model)


def _preprocess(job: Job) -> Preprocess | None:
    if job.data.preprocess is not None:
        return load_preprocess(job.data.preprocess)
    if job.source == DIGITS:
        from edgeq.demo.digits import PREPROCESS

        return PREPROCESS
    return None


def _metric(
    job: Job, model: LoadedModel, outputs: tuple[TensorSpec, ...], evaluation: Dataset | None
) -> tuple[Metric | SetMetric | None, str]:
    """Return the score of a sample with its name; None for top-1, or where nothing says how to score."""
    name = job.data.metric
    if name is None and evaluation is not None and evaluation.labelled and outputs and _is_one_value(outputs[0]):
        labels = [np.asarray(sample.label) for sample in evaluation]
        if all(label.size == 1 and label.dtype.kind in "biuf" and label.item() in (0, 1) for label in labels):
            name = f"accuracy@{_threshold(model, evaluation)}"
    if name is None and model.language is not None and evaluation is not None and evaluation.labelled:
        name = "perplexity"
    if name is None:
        return None, TOP1
    if is_built_in_metric(name):
        threshold = _threshold(model, evaluation) if name in _THRESHOLDED and evaluation is not None else 0
        return built_in_metric(name, evaluation, threshold)
    return _on_copies(load_metric(name)), name.rpartition(":")[2]


def _on_copies(users: UserMetric | OfSet) -> Metric | SetMetric:
    """Call a metric on copies: one that works in place must not change other targets' or golden samples."""
    if isinstance(users, OfSet):
        return SetMetric(row=lambda outputs, label: users.row(_copied(outputs), label), score=users.score)
    return lambda outputs, label: users(_copied(outputs), label)


def _copied(outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(np.array(array) for array in outputs)


def _is_one_value(output: TensorSpec) -> bool:
    """Whether an output has one float for each sample: [N, 1] or [N]."""
    return output.dtype.startswith("float") and output.shape[1:] in ((), (1,)) and len(output.shape) > 0


def _threshold(model: LoadedModel, evaluation: Dataset) -> float:
    """Return the value above which the float model says 1: 0.5 of a probability, 0 of a logit.

    A model whose outputs all lie from 0 to 1 gives probabilities: as logits they would all say the same.
    """
    if model.kind == "onnx":
        return 0.5 if gives_probability(model.model) else 0
    run = float_forward(model)
    seen = dataclasses.replace(evaluation, count=min(evaluation.count, _LOOKED_AT))
    values = [run(batch)[0] for batch in batches(seen, model.inputs)]
    return 0.5 if all(value.min() >= 0 and value.max() <= 1 for value in values) else 0


def _train(job: Job) -> Callable[[Any, Any, Any], Any] | None:
    if job.qat.train is None:
        return None

    function = load_function(job.qat.train, "training loop")
    check_arguments(function, 3, "prepared, teacher, data")
    return function


# --- The run's data by role: opened, split, linted, and counted for the manifest.


_Wanted = tuple[Role, str | None, int | None]

_OPTION_OF: dict[Role, str] = {
    "calibration": "data.calibration",
    "evaluation": "data.evaluation",
    "qat": "qat.data",
    "search": "data.search",
}

_MEMO_BYTES = 128 * 10**6  # a set: 128 images of 224 x 224, preprocessed and raw


def open_data(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    n_classes: int | None,
    schemes: Collection[str],
) -> tuple[dict[str, Dataset], DataFacts]:
    """Return the sets by role, `calibration` always among them, and what the manifest says of them.

    Args:
        job: which data, and how strict.
        model: takes the samples.
        preprocess: how images become inputs; None where arrays are fed as they are.
        n_classes: how many classes the first output tells apart; None where it is not logits [N, classes].
        schemes: some need a set of their own.

    Raises:
        UsageError: data that cannot be read or does not fit, or a finding of the lint.
    """
    opened, skipped = _opened(job, model, preprocess, n_classes, _wanted(job, schemes))
    if "search" in opened:
        opened |= split_search(opened["calibration"], opened["search"], job)
    # refuse data that are certainly wrong, or with `--data-lint warn` leave shared samples out of the evaluation
    evaluation, training, search = (opened.get(role) for role in ("evaluation", "qat", "search"))
    findings = lint(
        opened["calibration"] if opened["calibration"].count else None,
        evaluation,
        training,
        search,
        spec=LintSpec(
            wanted=job.data.num_calibration_samples,
            preprocess=preprocess,
            specs=model.inputs,
            n_classes=n_classes,
            declared=bool(job.inputs),
        ),
    )
    stops = {"error": [one for one in findings if one.is_certain], "strict": findings, "warn": ()}[job.data.lint]
    if stops:
        messages = "; ".join(f"{finding.name}: {finding.message}" for finding in stops)
        raise UsageError(f"the data lint found {messages}", "fix the data, or continue with --data-lint warn")
    excluded = 0
    if evaluation is not None and any(finding.name == "shared-with-evaluation" for finding in findings):
        before = evaluation.count
        seen = (opened["calibration"], *(data for data in (training, search) if data is not None))
        evaluation = exclude(evaluation, frozenset(sample.source for data in seen for sample in data))
        excluded = before - evaluation.count
    kept = {role: data for role, data in opened.items() if role != "evaluation"}
    if evaluation is not None and evaluation.count:
        kept["evaluation"] = evaluation
    opened, facts = kept, DataFacts(findings=findings, excluded_shared=excluded)
    return opened, _counted(facts, opened, skipped)


def _opened(
    job: Job, model: LoadedModel, preprocess: Preprocess | None, n_classes: int | None, wanted: Sequence[_Wanted]
) -> tuple[dict[str, Dataset], list[str]]:
    """Return the sets that were named, by role, and the names of images that were skipped as bad."""
    opened: dict[str, Dataset] = {"calibration": NO_SAMPLES}
    skipped: list[str] = []
    found = FoundErrors()
    for role, origin, limit in wanted:
        if origin is None:
            continue
        with found.of(_OPTION_OF[role]):
            data, left_out = _opened_one(job, model, preprocess, n_classes, (role, origin, limit))
            opened[role] = remembered(data, _MEMO_BYTES)
            skipped += left_out
    found.raise_all()
    return opened, skipped


def _opened_one(
    job: Job,
    model: LoadedModel,
    preprocess: Preprocess | None,
    n_classes: int | None,
    wanted: tuple[Role, str, int | None],
) -> tuple[Dataset, tuple[str, ...]]:
    """Return one of the sets, whose first sample fits the model, and the names of images that were skipped as bad."""
    role, origin, limit = wanted
    if model.language is not None and is_text(origin):
        return open_text(Path(origin), model.language, model.inputs, limit=limit, seed=job.seed), ()
    data, skipped = open_dataset(
        origin, role=role, specs=model.inputs, preprocess=preprocess, options=job.data, limit=limit, seed=job.seed
    )
    if n_classes is not None:
        check_classes(data.class_names, n_classes, from_file=job.data.labels is not None)
    if state_specs(model.inputs):
        # from sequences to their steps; where not all are wanted, they are drawn from all parts of all sequences
        data = unrolled(remembered(data, _MEMO_BYTES), model.inputs, float_forward(model))
        if limit is not None and limit < data.count:
            data = _view(data, choose(data.count, limit=limit, seed=job.seed, classes=None))
    return data, skipped


def _counted(facts: DataFacts, opened: Mapping[str, Dataset], skipped: Sequence[str]) -> DataFacts:
    """Return the facts with what each set is and how many samples it has."""
    hashes = {role: dataset_sha256(data) for role, data in opened.items() if data.count}
    counts = {role: data.count for role, data in opened.items()}
    return dataclasses.replace(
        facts,
        calibration_sha256=hashes.get("calibration"),
        calibration_samples=counts["calibration"],
        evaluation_sha256=hashes.get("evaluation"),
        evaluation_samples=counts.get("evaluation", 0),
        qat_sha256=hashes.get("qat"),
        search_sha256=hashes.get("search"),
        search_samples=counts.get("search", 0),
        skipped=tuple(dict.fromkeys(skipped)),
    )


def _wanted(job: Job, schemes: Collection[str]) -> list[_Wanted]:
    """Return the sets of a run by role; some schemes need sets of their own."""
    data = job.data
    wanted: list[_Wanted] = [
        ("calibration", data.calibration, data.num_calibration_samples),
        ("evaluation", data.evaluation, None),
    ]
    if not NEEDS_TRAINING.isdisjoint(schemes):
        wanted.append(("qat", job.qat.data or data.calibration, job.qat.samples))
    if not NEEDS_SEARCH.isdisjoint(schemes):
        # ask for enough of the calibration data that the search has samples after the split
        most = data.num_search_samples + data.num_calibration_samples
        wanted.append(("search", data.search or data.calibration, most))
    return wanted


# --- `--dry-run`: what names, files, headers and one run of the float model show.


# without these there is no model to run
_OF_THE_MODEL = frozenset({"model", "weights", "inputs", "targets"})


def check_job(job: Job, progress: Progress) -> ModelFacts | None:
    """Check a job as a run would before it downloads, calibrates or lowers anything; write nothing.

    This loads torch and runs the user's code: the model's factory, and one inference. Where a cluster builds, only
    names and files are checked.

    Returns:
        What the model is; None where it was not loaded.

    Raises:
        Findings: several errors, each with the option that it is about.
        EdgeqError: the only one; its exit code is that of the run.
    """
    found = FoundErrors()
    builds_here = job.build.cluster is None
    with found.of(""):
        preflight(job, builds_here=builds_here)
    with found.of("install_into"):
        match_apps(job)
    with found.of("schemes"):
        plan_text(job, {})  # a scheme that the runtime has no method for
    for refused in refused_targets(job).values():
        found.errors.append(refused.about(key="targets"))
    known, ended = {error.key for error in found.errors}, found.exit_code
    facts: ModelFacts | None = None
    if builds_here and not known & _OF_THE_MODEL:
        again = FoundErrors()
        with again.of(""):
            facts = _check_inputs(with_demo_data(job), progress)
        # what a file's name has shown already is not said again in the words of its reader
        found.errors += [error for error in again.errors if error.key not in known]
    # a run ends before it loads the model if names or files are wrong: the exit code is then theirs
    raise_findings(found.errors, ended)
    return facts


def _check_inputs(job: Job, progress: Progress) -> ModelFacts:
    """Load the model, run it once, and read a sample of each file or folder of data, as `prepare` does.

    Nothing is downloaded, functions that make data are imported and not called, and a ready-made artifact is not run.
    """
    found = FoundErrors()
    with found.of("model"):
        model, preprocess, outputs, work = _loaded(job, progress, lambda artifact: artifact, downloads=False)
    if not found.errors and model.kind not in _ARTIFACTS:
        n_classes = _classes(job, outputs)
        schemes = {scheme for target in job.all_targets for scheme in job.possible_schemes(target)}
        with found.of("qat.train"):
            _train(job)
        metric, evaluated = None, None
        with found.of("data.metric"):
            if job.data.metric is not None and not is_built_in_metric(job.data.metric):
                metric = _on_copies(load_metric(job.data.metric))
        with progress.task("read a sample of the data"):
            for role, origin, limit in _wanted(job, schemes):
                with found.of(_OPTION_OF[role]):
                    if origin is not None and makes_data(origin):
                        check_arguments(load_function(origin, "data function"), 0, "")
                    elif origin is not None:
                        data, _ = _opened_one(job, model, preprocess, n_classes, (role, origin, limit))
                        if role == "evaluation":
                            evaluated = data.count if job.data.metric is None else None
                            _score_one(data, metric, model, n_classes)
    found.raise_all()
    work = file_work(model.model, model.inputs) if model.kind == "onnx" else work
    return ModelFacts(inputs=model.inputs, outputs=outputs, work=work, notes=model.notes, evaluation_samples=evaluated)
