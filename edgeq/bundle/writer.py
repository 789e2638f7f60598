"""Writing a bundle: the artifact, the golden samples and the manifest, with the same bytes for the same input."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgeq.core.errors import ExitCode
from edgeq.core.files import disk_errors, sha256_file
from edgeq.core.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Accuracy,
    AgreementFacts,
    CudaBox,
    DeviceRunFacts,
    EmulationFacts,
    FileEntry,
    FileRole,
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
    manifest_bytes,
    manifest_digest,
    measure,
)
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.measured import Agreement, DeviceRun, Emulation, Fidelity, Interval, Parity, VerifyReport
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import BundleInput, DataFacts, Gate, GoldenSet, PackageResult
from edgeq.core.schema import explain

if TYPE_CHECKING:
    from numpy.typing import NDArray


ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_bundle(item: BundleInput, folder: Path) -> str:
    """Write a bundle into an existing folder, and return its digest.

    Args:
        item: the results of the steps.
        folder: the caller's staging folder (`edgeq._io.staged_dir`); files of an earlier call are overwritten.

    Raises:
        UsageError: a name that a manifest does not allow.
        EnvironmentProblem: the disk is full, or not writable.
    """
    with disk_errors(folder):
        artifact = folder / item.lowered.path.name
        shutil.copyfile(item.lowered.path, artifact)
        golden = folder / GOLDEN_NAME
        golden.write_bytes(golden_npz(item.golden, [spec.name for spec in item.model.inputs]))
        files = [_entry(artifact, "artifact"), _entry(golden, "golden")]
        for role, companion in item.lowered.companions:
            files.append(_entry(Path(shutil.copyfile(companion, folder / companion.name)), role))
        manifest = manifest_from(item, files)
        data = manifest_bytes(manifest)
        (folder / MANIFEST_NAME).write_bytes(data)
    return manifest_digest(data, manifest)


def golden_npz(golden: GoldenSet, input_names: list[str]) -> bytes:
    """Return golden.npz: `input_<name>` and `output_<i>`, little-endian, [samples, …].

    Stored, not deflated: the digest must not depend on the version of zlib.
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, array in _golden_arrays(golden, input_names):
            archive.writestr(zip_entry(f"{name}.npy", ZIP_EPOCH), _npy(array))
    return sink.getvalue()


def zip_entry(name: str, date_time: tuple[int, int, int, int, int, int]) -> zipfile.ZipInfo:
    """Return a ZIP entry that does not depend on the machine: fixed time, mode 0644, created on Unix."""
    info = zipfile.ZipInfo(name, date_time)
    info.external_attr = 0o100644 << 16
    info.create_system = 3
    return info


def _golden_arrays(golden: GoldenSet, input_names: list[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in zip(input_names, golden.inputs, strict=True):
        yield f"input_{name}", array
    for i, array in enumerate(golden.outputs):
        yield f"output_{i}", array


def _npy(array: NDArray[Any]) -> bytes:
    import numpy as np

    sink = io.BytesIO()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(sink, plain, version=(1, 0), allow_pickle=False)
    return sink.getvalue()


def _entry(path: Path, role: FileRole) -> FileEntry:
    return FileEntry(path=path.name, sha256=sha256_file(path), size_bytes=path.stat().st_size, role=role)


# --- From the steps' results to the manifest: which facts are published, and how numbers are rounded.


# The detail of a time differs from run to run, and that of the download size would change the size it tells
_SILENT = (ExitCode.SIZE, ExitCode.LATENCY)


def manifest_from(item: BundleInput, files: Sequence[FileEntry]) -> Manifest:
    """Return the manifest of a bundle that holds `files`.

    Raises:
        UsageError: a name that a manifest does not allow, such as a model's name with a slash.
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


def contradictions(row: PackageResult, manifest: Manifest) -> tuple[str, ...]:
    """Return the facts in which a report contradicts the manifest, which the digest covers.

    Times, memory and layer figures are only in the report, and cannot be checked.

    Args:
        row: from report.json.
        manifest: of its bundle.
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
