"""Evaluation data for a bundle, read as its manifest describes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgeq.bundle.golden import model_inputs
from edgeq.core.config import DataConfig, Progress
from edgeq.core.errors import UsageError
from edgeq.core.manifest import Bundle, Manifest
from edgeq.core.marks import is_built_in_metric
from edgeq.core.results.model import LanguageModel, TensorSpec
from edgeq.core.results.report import GoldenSet
from edgeq.core.samples import Batch, Dataset, Outputs, Sample, batches, run_in_order, state_specs, unrolled
from edgeq.load.images import check_classes, few
from edgeq.load.language import is_text, open_text
from edgeq.load.live import open_dataset
from edgeq.load.selection import sample_digest
from edgeq.load.user_code import OfSet, load_metric
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import TOP1, Metric, SetMetric, built_in_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the artifact is scored on.

    Attributes:
        metric: a score per sample or of the whole set; None for top-1.
    """

    samples: Dataset
    metric: Metric | SetMetric | None
    metric_name: str


def input_specs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Return the model's inputs as the steps take them."""
    return tuple(
        TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape, varying=one.varying_sizes(), fed_from=one.fed_from)
        for one in manifest.inputs
    )


def language_of(bundle: Bundle) -> LanguageModel | None:
    """Return what a bundle's language model is, with the tokenizer in the bundle; None for other models."""
    facts, files = bundle.manifest.language, {entry.role: entry.path for entry in bundle.manifest.files}
    if facts is None:
        return None
    tokenizer = bundle.folder / files["tokenizer"] if "tokenizer" in files else None
    return LanguageModel(**facts.model_dump(), tokenizer=tokenizer)


def open_evaluation(bundle: Bundle, data: DataConfig, progress: Progress, *, limit: int | None = None) -> Evaluation:
    """Open evaluation data for a bundle, preprocessed as its manifest says.

    Args:
        bundle: whose artifact is scored.
        data: what was given.
        progress: where progress is reported.
        limit: the most samples, evenly from all classes; None for all.

    Raises:
        UsageError: no such data or metric, samples that do not fit, or class folders of other outputs.
    """
    manifest, language, origin = bundle.manifest, language_of(bundle), data.evaluation or ""
    specs, seed = input_specs(manifest), manifest.provenance.seed
    with progress.task("read the data"):
        if language is not None and is_text(origin):
            samples = open_text(Path(origin), language, specs, limit=limit, seed=seed)
        else:
            samples, _ = open_dataset(
                origin,
                role="evaluation",
                specs=specs,
                preprocess=next((one.preprocessing for one in manifest.inputs if one.preprocessing), None),
                options=data,
                limit=limit,
                seed=seed,
            )
        if state_specs(input_specs(manifest)):
            samples = unrolled(samples, input_specs(manifest), None)
        # refuse class folders that stand for other outputs than the bundle's labels do
        outputs = manifest.outputs
        if data.metric is None and outputs and len(outputs[0].shape) == 2:
            check_classes(samples.class_names, outputs[0].shape[1], from_file=data.labels is not None)
        if data.labels is None and samples.class_names and manifest.labels not in ((), samples.class_names):
            what = f"the class folders are {few(samples.class_names)}, the bundle's labels {few(manifest.labels)}"
            raise UsageError(what, "map each folder to its output with --labels FILE")
        metric, name = _metric(manifest, data.metric, samples)
    return Evaluation(samples=samples, metric=metric, metric_name=name)


def _metric(manifest: Manifest, asked: str | None, samples: Dataset) -> tuple[Metric | SetMetric | None, str]:
    """Return what was asked for, with the threshold that the bundle was scored with, or else the bundle's built-in one.

    Raises:
        UsageError: a metric that is not there, or a threshold that nothing states.
    """
    recorded = (manifest.accuracy.metric if manifest.accuracy is not None else None) or ""
    name, mark, _ = recorded.partition("@")
    if asked is None:
        asked = {"accuracy": recorded, "1/perplexity": "perplexity"}.get(name)
    elif asked == name and mark:
        asked = recorded
    if asked is None:
        return None, TOP1
    if not is_built_in_metric(asked):
        users = load_metric(asked)
        metric = SetMetric(row=users.row, score=users.score) if isinstance(users, OfSet) else users
        return metric, asked.rpartition(":")[2]
    if asked in ("f1", "miou"):
        what = f"--metric {asked} needs the value above which the model says yes, and the bundle was not scored with it"
        raise UsageError(what, f"give --metric {asked}@0.5 for probabilities, {asked}@0 for logits")
    return built_in_metric(asked, samples, 0)


# --- The golden samples of a bundle, as samples and as runs on this host.


def golden_dataset(bundle: Bundle, golden: GoldenSet) -> Dataset:
    """Return the golden inputs of a bundle as samples."""
    has_state = any(one.fed_from is not None for one in bundle.manifest.inputs)
    samples = tuple(
        Sample(
            inputs=inputs,
            raw=inputs,
            label=None,
            name=f"golden sample {i}",
            digest=sample_digest(inputs),
            sequence="golden" if has_state else "",
            step=i,
        )
        for i, inputs in enumerate(model_inputs(golden, bundle.manifest))
    )
    return Dataset(origin=str(bundle.golden), count=len(samples), read=samples.__getitem__)


def run_golden(manifest: Manifest, samples: Dataset, runtime: HostRuntime) -> tuple[tuple[Batch, Outputs], ...]:
    """Run each sample in a batch of its own, with the state that the one before has left, if the model has any.

    The verify step keeps the outputs of a few only.
    """
    runs = run_in_order(golden_batches(manifest, samples), input_specs(manifest), lambda fed: runtime.run(fed.inputs))
    return tuple((fed, outputs) for _, fed, outputs in runs)


def golden_batches(manifest: Manifest, samples: Dataset) -> tuple[Batch, ...]:
    """Return each sample in a batch of its own."""
    alone = (dataclasses.replace(samples, count=1, read=(samples.read(i),).__getitem__) for i in range(samples.count))
    return tuple(batch for one in alone for batch in batches(one, input_specs(manifest)))
