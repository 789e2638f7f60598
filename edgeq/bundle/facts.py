"""From the steps' results to the manifest: which facts are published, and how numbers are rounded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pydantic import ValidationError

from edgeq.artifacts import (
    Agreement,
    BundleInput,
    DataFacts,
    DeviceRun,
    Emulation,
    Fidelity,
    Gate,
    GoldenSet,
    Interval,
    Parity,
    Row,
    TensorSpec,
    VerifyReport,
)
from edgeq.errors import ExitCode
from edgeq.manifest import (
    SCHEMA_VERSION,
    Accuracy,
    AgreementFacts,
    CudaBox,
    DeviceRunFacts,
    EmulationFacts,
    FileEntry,
    GateVerdict,
    GoldenFacts,
    IntervalFacts,
    LayerSummary,
    Manifest,
    Measure,
    ModelFacts,
    ParityFacts,
    Provenance,
    QatFacts,
    RuntimeRange,
    SearchFacts,
    TargetFacts,
    Tensor,
)
from edgeq.preprocess import Preprocess
from edgeq.target import explain

# The detail of a time differs from run to run, and that of the download size would change the size it tells
_SILENT = (ExitCode.SIZE, ExitCode.LATENCY)


def manifest_from(item: BundleInput, files: Sequence[FileEntry]) -> Manifest:
    """Return the manifest of a bundle that holds `files`.

    Raises:
        UsageError: a name that may not stand in a manifest, such as a model's name with a slash.
    """
    try:
        return _manifest(item, files)
    except ValidationError as err:
        raise explain(err, "the manifest", Manifest) from err


def _manifest(item: BundleInput, files: Sequence[FileEntry]) -> Manifest:
    lowered, target, verified = item.lowered, item.target, item.verified
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelFacts(name=item.model.name, version=item.model_version, weights=item.model.weights),
        target=TargetFacts(
            name=target.name,
            platform=target.platform,
            arch=target.arch,
            runtime=target.runtime,
            backend=target.backend,
        ),
        runtime=RuntimeRange(
            name=target.runtime,
            exported_with=lowered.runtime_version,
            oldest_in_field=target.app.oldest,
            bytecode_version=lowered.bytecode_version,
            build=target.app.build,
        ),
        scheme=item.scheme,
        threads=target.device.threads,
        inputs=tuple(_tensor(spec, _preprocessing(spec, item)) for spec in item.model.inputs),
        outputs=tuple(_tensor(spec, None) for spec in verified.outputs),
        labels=item.labels,
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        dynamic_batch=lowered.dynamic_batch,
        passes=lowered.passes,
        layers=_layers(item),
        gates=tuple(_gate(gate) for gate in item.checked.gates),
        accepted=item.checked.exit_code == ExitCode.OK,
        accuracy=_accuracy(verified.fidelity),
        graph_accuracy=_accuracy(verified.graph_only.fidelity if verified.graph_only else None),
        parity=_parity(verified.parity),
        golden=_golden(item.golden),
        emulation=_emulation(verified.emulation),
        not_emulated=verified.not_emulated or None,
        cuda=None if lowered.cuda is None else CudaBox(**dataclasses.asdict(lowered.cuda)),
        verified_on=_verified_on(verified),
        provenance=_provenance(item, item.data),
    )


def contradictions(row: Row, manifest: Manifest) -> tuple[str, ...]:
    """Return what a report says otherwise than the manifest beside it, whose digest speaks for it.

    Times, memory and the layers' figures stand in the report alone, and cannot be checked.

    Args:
        row: as report.json has it.
        manifest: of the bundle that it lies in.
    """
    only = row.verified.graph_only
    pairs: tuple[tuple[str, object, object], ...] = (
        ("model", row.model, manifest.model.name),
        ("weights", row.weights, manifest.model.weights),
        ("target", row.target, manifest.target.name),
        ("scheme", row.scheme, manifest.scheme),
        ("size_bytes", row.size_bytes, manifest.file("artifact").size_bytes),
        ("verdict", not row.checked.exit_code, manifest.accepted),
        ("accuracy", _accuracy(row.verified.fidelity), manifest.accuracy),
        ("graph_accuracy", _accuracy(only.fidelity) if only else None, manifest.graph_accuracy),
        ("parity", _parity(row.verified.parity), manifest.parity),
    )
    gates = tuple(_gate(gate) for gate in row.checked.gates)
    differing = [gate.name for gate in gates if gate not in manifest.gates]
    differing += [gate.name for gate in manifest.gates if gate.name not in {one.name for one in gates}]
    return (
        *(name for name, said, known in pairs if said != known),
        *(f"gate {name}" for name in dict.fromkeys(differing)),
    )


def measure(value: float) -> Measure:
    """Return a measured number with four significant digits; JSON knows no infinity and no NaN, so these are text."""
    rounded = float(f"{value:.4g}")
    if math.isnan(rounded):
        return "nan"
    if math.isinf(rounded):  # the greatest floats round up to it
        return "inf" if rounded > 0 else "-inf"
    return rounded + 0.0  # -0.0 and 0.0 are equal, and must give equal bytes


def _maybe(value: float | None) -> Measure | None:
    return None if value is None else measure(value)


def _tensor(spec: TensorSpec, preprocess: Preprocess | None) -> Tensor:
    return Tensor.model_validate(
        {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "preprocessing": preprocess}
    )


def _preprocessing(spec: TensorSpec, item: BundleInput) -> Preprocess | None:
    """Images go into the only input that can take them, or into those of rank 4 and more; `load` does the same."""
    preprocess = item.preprocess
    if preprocess is None or not preprocess.takes(spec.dtype):
        return None
    alone = sum(preprocess.takes(other.dtype) for other in item.model.inputs) == 1
    return preprocess if alone or len(spec.shape) >= 4 else None


def _layers(item: BundleInput) -> LayerSummary:
    kernels = item.verified.kernels
    return LayerSummary(
        macs=item.lowered.macs if item.lowered.layers else None,
        delegated_macs=_maybe(item.lowered.delegated_macs),
        int8_macs=_maybe(kernels.int8_macs) if kernels else None,
        undelegated=tuple(sorted(set(item.lowered.undelegated))),
        kept_fp32=tuple(sorted(item.kept_fp32)),
    )


def _gate(gate: Gate) -> GateVerdict:
    detail = None if gate.exit_code in _SILENT else gate.detail or None
    return GateVerdict(name=gate.name, outcome=gate.outcome, limit=gate.limit, bound=gate.bound, detail=detail)


def _accuracy(fidelity: Fidelity | None) -> Accuracy | None:
    if fidelity is None:
        return None
    return Accuracy(
        samples=fidelity.samples,
        inputs=fidelity.inputs,
        metric=fidelity.metric,
        fp32_score=_maybe(fidelity.fp32_score),
        score=_maybe(fidelity.score),
        drop_pp=_interval(fidelity.drop_pp),
        top1_agreement=_maybe(fidelity.top1_agreement),
        sqnr_db=_maybe(fidelity.sqnr_db),
        cosine=_maybe(fidelity.cosine),
        max_abs=_maybe(fidelity.max_abs),
    )


def _interval(interval: Interval | None) -> IntervalFacts | None:
    if interval is None:
        return None
    return IntervalFacts(estimate=measure(interval.estimate), low=measure(interval.low), high=measure(interval.high))


def _parity(parity: Parity | None) -> ParityFacts | None:
    if parity is None:
        return None
    return ParityFacts(
        samples=parity.samples,
        max_abs=measure(parity.max_abs),
        max_steps=_maybe(parity.max_steps),
        sqnr_db=measure(parity.sqnr_db),
        differing=measure(parity.differing),
        reaction_db=_maybe(parity.reaction_db),
    )


def _verified_on(verified: VerifyReport) -> str:
    runs = verified.emulation.runs if verified.emulation else ()
    cpus = ", ".join(dict.fromkeys(run.cpu for run in runs))
    return f"emulated {cpus}; {verified.host}" if cpus else verified.host


def _emulation(emulation: Emulation | None) -> EmulationFacts | None:
    if emulation is None or not emulation.runs:
        return None
    return EmulationFacts(
        runs=tuple(_device_run(run) for run in emulation.runs),
        between=tuple(_agreement(pair) for pair in emulation.between),
    )


def _device_run(run: DeviceRun) -> DeviceRunFacts:
    return DeviceRunFacts(
        cpu=run.cpu,
        runtime=run.runtime,
        features=run.features,
        samples=run.samples,
        host=_agreement(run.host),
        fp32=_agreement(run.fp32) if run.fp32 else None,
        score=_maybe(run.score),
        host_score=_maybe(run.host_score),
        fp32_score=_maybe(run.fp32_score),
        scored=run.scored,
        rescored=run.rescored,
    )


def _agreement(pair: Agreement) -> AgreementFacts:
    return AgreementFacts(
        left=pair.left,
        right=pair.right,
        samples=pair.samples,
        max_abs=measure(pair.max_abs),
        sqnr_db=measure(pair.sqnr_db),
        differing=measure(pair.differing),
        top1_flips=pair.top1_flips,
    )


def _golden(golden: GoldenSet) -> GoldenFacts:
    return GoldenFacts(
        samples=len(golden.inputs[0]),
        preprocessed=golden.preprocessed,
        sqnr_floor_db=measure(golden.sqnr_floor_db),
        made_on=golden.made_on,
        made_by=golden.made_by,
    )


def _qat(item: BundleInput, data: DataFacts) -> QatFacts | None:
    tuning = item.tuning
    if tuning is None or data.qat_sha256 is None:
        return None
    own = tuning.weights == "user"
    return QatFacts(
        data_sha256=data.qat_sha256,
        samples=tuning.samples,
        held_out=tuning.held_out,
        loss=None if own else tuning.loss,
        epochs=tuning.epochs,
        learning_rate=None if own else measure(tuning.learning_rate),
        batch=None if own else tuning.batch,
        weights=tuning.weights,
    )


def _search(item: BundleInput, data: DataFacts) -> SearchFacts | None:
    if item.search is None or data.search_sha256 is None:
        return None
    return SearchFacts(
        data_sha256=data.search_sha256, samples=data.search_samples, assignments=len(item.search.attempts)
    )


def _provenance(item: BundleInput, data: DataFacts) -> Provenance:
    return Provenance(
        source_sha256=item.model.source_sha256,
        calibration_sha256=data.calibration_sha256,
        calibration_samples=data.calibration_samples,
        evaluation_sha256=data.evaluation_sha256,
        evaluation_samples=data.evaluation_samples,
        data_findings=tuple(sorted({finding.name for finding in data.findings})),
        qat=_qat(item, data),
        search=_search(item, data),
        seed=item.seed,
        tools=item.tools,
    )
