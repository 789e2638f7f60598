"""`compare_bundles`: the outputs of an fp32 bundle and of a quantized one, on the same inputs, and layer by layer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.bundle.golden import model_inputs, read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import read_report
from edgeq.core.config import DataConfig, Progress
from edgeq.core.errors import UnsupportedError, UsageError, VerificationError
from edgeq.core.lazy import np
from edgeq.core.manifest import Bundle, Manifest, Tensor
from edgeq.core.results.measured import OutputComparison
from edgeq.core.results.model import LayerSqnrs, TensorSpec
from edgeq.core.results.report import PackageResult, html_table
from edgeq.core.samples import Batch, batches, run_in_order, state_specs, unrolled
from edgeq.core.system import check_extras
from edgeq.core.targets import why_not_run
from edgeq.core.units import counted
from edgeq.load.inputs import MOST_PLACES, random_inputs, random_sequences
from edgeq.pipeline.evaluation import Evaluation, input_specs, open_evaluation
from edgeq.report import text
from edgeq.verify.accumulate import batch_scores, chosen_metric
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Comparison, cut, mean_score


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleComparison:
    """Two bundles of one model.

    Attributes:
        layers: as the quantized bundle's report has them; None where they were not asked for.
        weight_bytes: of the quantized bundle's layers, by name; empty where they were not asked for.
        notes: caveats about the figures.
    """

    fp32: Manifest
    quantized: Manifest
    outputs: OutputComparison
    layers: LayerSqnrs | None
    weight_bytes: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return text.comparison(self.fp32, self.quantized, self.outputs, self.layers, self.weight_bytes, self.notes)

    def __repr__(self) -> str:
        found = f"SQNR {text.decibel(self.outputs.sqnr_db)}"
        return f"<BundleComparison fp32 and {text.bundle_title(self.quantized)}: {found}>"

    def _repr_html_(self) -> str:
        """Return the figures as an HTML table, for notebooks."""
        found = self.outputs
        rows = [
            ("SQNR", f"{found.sqnr_db:.1f} dB"),
            ("mean absolute error", f"{found.mean_abs_error:.4g}"),
            ("largest error", f"{found.max_abs_error:.4g}"),
            ("mean magnitude", f"{found.fp32_magnitude:.4g} fp32, {found.quantized_magnitude:.4g} quantized"),
            ("cosine", f"{found.cosine:.6f}"),
        ]
        rows += [("argmax agreement", f"{found.agreeing:,} of {found.ranked:,}")] if found.ranked else []
        if found.score is not None and found.fp32_score is not None:
            rows.append((found.metric, f"{found.score:.4g}, fp32 {found.fp32_score:.4g}"))
        rows += [("note", note) for note in self.notes]
        model, target = self.quantized.model, self.quantized.target
        title = f"{model.name} {model.version} for {target.name}, {self.quantized.scheme}, against fp32 on "
        return html_table((), rows, title=f"{title}{counted(found.samples, f'{found.inputs} input')}")


def compare_bundles(
    fp32: Path,
    quantized: Path,
    *,
    data: DataConfig,
    samples: int,
    layers: bool,
    progress: Progress,
    trusted: bool = False,
) -> BundleComparison:
    """Run both artifacts on this host, each in a child process, on the same inputs.

    Args:
        fp32: a bundle of scheme fp32.
        quantized: one of any other scheme, or of fp32 for another target.
        data: evaluation data; without it seeded inputs are drawn.
        samples: the most inputs.
        layers: whether to compare the layers too.
        progress: where progress is reported.
        trusted: whether artifacts that could run code may be loaded.

    Raises:
        UsageError: a folder is not a bundle, the two cannot be compared, the data does not fit, or the quantized bundle
            has no figures of its layers.
        UnsupportedError: nothing on this host runs one of them.
        IntegrityError: a file is missing or changed.
        VerificationError: an artifact does not run, or gives NaN or Inf.
        EnvironmentProblem: the extra of a runtime is not installed.
    """
    with progress.task("check sizes and hashes"):
        pair = read_bundle(fp32), read_bundle(quantized)
        _check_pair(*pair)
        row = _layer_report(*pair) if layers else None
    check_extras(bundle.manifest.target.runtime for bundle in pair)
    # the runtimes' imports take seconds, in which the data is opened here
    with HostRuntime(trusted=trusted) as left, HostRuntime(trusted=trusted) as right:
        evaluation = _inputs(pair[0], data, samples, progress)
        for bundle, runtime in zip(pair, (left, right), strict=True):
            target = bundle.manifest.target
            threads = bundle.manifest.threads
            runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=threads)
        outputs = _compared(pair, (left, right), evaluation, data.evaluation is not None, progress)
    left_facts, right_facts = pair[0].manifest, pair[1].manifest
    notes = _notes(left_facts, right_facts, is_evaluation=data.evaluation is not None)
    return BundleComparison(
        fp32=left_facts,
        quantized=right_facts,
        outputs=outputs,
        layers=row.layer_sqnrs if row else None,
        weight_bytes={layer.name: layer.weight_bytes for layer in row.layers} if row else {},
        notes=notes,
    )


def _check_pair(fp32: Bundle, quantized: Bundle) -> None:
    """Refuse what cannot be compared; raises UsageError and UnsupportedError."""
    left, right = fp32.manifest, quantized.manifest
    if fp32.digest == quantized.digest:
        raise UsageError("both bundles are the same", "give an fp32 bundle and a quantized bundle of the same model")
    if left.scheme != "fp32":
        swapped = "swap the two bundles" if right.scheme == "fp32" else "package the model also with --scheme fp32"
        raise UsageError(f"the first bundle must be the fp32 one, but {fp32.folder} is {left.scheme}", swapped)
    for what, old, new in (
        ("inputs", _tensors(left.inputs), _tensors(right.inputs)),
        ("outputs", _tensors(left.outputs, named=False), _tensors(right.outputs, named=False)),
        ("preprocessing", _preprocessing(left), _preprocessing(right)),
        ("labels", ", ".join(left.labels) or "none", ", ".join(right.labels) or "none"),
    ):
        if old != new:
            text = f"the bundles cannot be compared: their {what} differ: {_short(old)} and {_short(new)}"
            raise UsageError(text, "package one model for both, with the same --input, --preprocess and data")
    for manifest in (left, right):
        why = why_not_run(manifest.target.backend)
        if why:
            what = f"the bundle for {manifest.target.name} cannot be run here: {why}"
            raise UnsupportedError(what, "compare bundles for another target of the same model")


def _tensors(tensors: Sequence[Tensor], *, named: bool = True) -> str:
    return ", ".join(f"{one.name if named else ''} {one.text()}".strip() for one in tensors)


def _preprocessing(manifest: Manifest) -> str:
    return "; ".join(one.preprocessing.model_dump_json() if one.preprocessing else "none" for one in manifest.inputs)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _layer_report(fp32: Bundle, quantized: Bundle) -> PackageResult:
    """Return the report of what was quantized: its layers are those of the very graph that was lowered."""
    row, manifest = read_report(quantized.folder), quantized.manifest
    if row.digest != quantized.digest:
        what = f"{quantized.folder / 'report.json'} does not match the bundle beside it (different digest)"
        raise UsageError(what, "give the folder that `edgeq package` wrote")
    if not _same_source(fp32.manifest, manifest):
        what = (
            "the bundles come from different sources or weights, but layer figures compare with the quantized "
            "model's own fp32"
        )
        raise UsageError(what, "package both from the same model, or omit --layers")
    if row.layer_sqnrs is None:
        what = f"{quantized.folder} has no layer figures: {_why_none(manifest.scheme)}"
        raise UsageError(what, "package the model again with a calibrated scheme, or omit --layers")
    return row


def _why_none(scheme: str) -> str:
    if scheme in ("static-int8", "qat-int8", "mixed-int8"):
        return "an older edgeq wrote it, or the model marks its own int8 region (QuantStub)"
    return f"they are measured during calibration, and {scheme} has none"


def _same_source(left: Manifest, right: Manifest) -> bool:
    one, other = left.provenance, right.provenance
    return (one.source_sha256, one.weights_sha256) == (other.source_sha256, other.weights_sha256)


def _notes(left: Manifest, right: Manifest, *, is_evaluation: bool) -> tuple[str, ...]:
    notes = []
    if not is_evaluation:
        notes.append("random inputs differ from the calibration data and agree less: give --eval-data")
    if not _same_source(left, right):
        notes.append(
            "the bundles come from different sources or weights: the difference is not from quantization alone"
        )
    if "random" in (left.model.weights, right.model.weights):
        notes.append("the weights are random: their outputs agree poorly and say little about the trained model")
    return tuple(notes)


def _inputs(bundle: Bundle, data: DataConfig, samples: int, progress: Progress) -> Evaluation:
    if data.evaluation is not None:
        return open_evaluation(bundle, data, progress, limit=samples)

    preprocess = next((one.preprocessing for one in bundle.manifest.inputs if one.preprocessing), None)
    value_range = preprocess.value_range if preprocess else None
    specs, seed = _ranged(bundle), bundle.manifest.provenance.seed
    if state_specs(specs):
        drawn = unrolled(random_sequences(specs, 1, samples, seed, value_range), specs, None)
    else:
        drawn = random_inputs(specs, samples, seed, value_range)
    return Evaluation(samples=drawn, metric=None, metric_name="")


def _ranged(bundle: Bundle) -> tuple[TensorSpec, ...]:
    """Return the inputs with the range that the golden samples span: the manifest states none.

    Of whole numbers each place has its own highest value, as the columns of a table's ids are of tables of unlike size.
    """
    ranged = []
    golden = zip(*model_inputs(read_golden(bundle), bundle.manifest), strict=True)
    for spec, arrays in zip(input_specs(bundle.manifest), golden, strict=True):
        low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
        places = math.prod(spec.shape[1:])
        highs: tuple[float, ...] = ()
        is_table = spec.dtype.startswith(("int", "uint")) and not spec.varying and 1 < places <= MOST_PLACES
        if is_table and high > low:
            values = np.concatenate([array.reshape(-1, places) for array in arrays])
            highs = tuple(values.max(0).astype(float).tolist())
        ranged.append(dataclasses.replace(spec, low=low, high=high, highs=highs))
    return tuple(ranged)


def _compared(
    pair: tuple[Bundle, Bundle],
    runtimes: tuple[HostRuntime, HostRuntime],
    evaluation: Evaluation,
    is_evaluation: bool,
    progress: Progress,
) -> OutputComparison:
    comparison = Comparison()
    samples, count, scored = evaluation.samples, 0, None
    scores: tuple[list[Any], list[Any]] = [], []
    with progress.task("run both", samples.count) as task:
        specs = input_specs(pair[0].manifest)
        runs = [
            run_in_order(batches(samples, specs), specs, functools.partial(_finite, bundle, runtime))
            for bundle, runtime in zip(pair, runtimes, strict=True)
        ]
        for (batch, _, left), (_, _, right) in zip(*runs, strict=True):
            comparison.add(left, right)
            metric = chosen_metric(evaluation.metric, left, labelled=samples.labelled)
            if metric is not None:
                scored = metric
                for own, outputs in zip(scores, (left, right), strict=True):
                    own += batch_scores(metric, batch, outputs)
            count += batch.rows
            task.advance(batch.rows)
    return OutputComparison(
        samples=count,
        inputs="evaluation" if is_evaluation else "random",
        mean_abs_error=comparison.error_sum / comparison.elements,
        fp32_magnitude=comparison.magnitude_sum / comparison.elements,
        quantized_magnitude=comparison.measured_magnitude_sum / comparison.elements,
        max_abs_error=comparison.max_abs,
        sqnr_db=comparison.sqnr_db,
        cosine=comparison.cosine,
        agreeing=comparison.agreeing,
        ranked=comparison.ranked,
        metric="" if scored is None else evaluation.metric_name,
        fp32_score=None if scored is None else mean_score(scored, scores[0]),
        score=None if scored is None else mean_score(scored, scores[1]),
    )


def _finite(bundle: Bundle, runtime: HostRuntime, batch: Batch) -> tuple[Any, ...]:
    """Return the outputs of the rows that are samples; the rest of a batch repeats the last one."""
    outputs = cut(batch, runtime.run(batch.inputs))
    if not all(np.isfinite(array).all() for array in outputs):
        what = f"{bundle.folder} gives NaN or Inf on {batch.samples[0].name}"
        raise VerificationError(what, "run `edgeq verify` on it for details")
    return outputs
