"""Writing a bundle: the artifact, the golden samples and the manifest, with the same bytes for the same input."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgeq.bundle.example import EXAMPLE_NAME, example_script, has_example
from edgeq.core.errors import ExitCode
from edgeq.core.files import disk_errors, sha256_file
from edgeq.core.lazy import NDArray, np
from edgeq.core.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Accuracy,
    CudaBox,
    EmulationFacts,
    FileEntry,
    FileRole,
    GateVerdict,
    GoldenFacts,
    LanguageFacts,
    LayerSummary,
    Manifest,
    ModelFacts,
    NpuNeeds,
    ParityFacts,
    Provenance,
    QatFacts,
    RuntimeRange,
    SearchFacts,
    TargetFacts,
    Tensor,
    manifest_bytes,
    manifest_digest,
)
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import CheckReport, DataFacts, Gate, GoldenSet, PackageResult
from edgeq.core.schema import explain
from edgeq.core.system import edgeq_version

Facts = TypeVar("Facts", bound=BaseModel)

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
        artifact = folder / item.artifact.lowered.path.name
        shutil.copyfile(item.artifact.lowered.path, artifact)
        golden = folder / GOLDEN_NAME
        golden.write_bytes(golden_npz(item.artifact.golden, [spec.name for spec in item.inputs.model.inputs]))
        files = [_entry(artifact, "artifact"), _entry(golden, "golden")]
        for role, companion in item.artifact.lowered.companions:
            files.append(_entry(Path(shutil.copyfile(companion, folder / companion.name)), role))
        if has_example(item.target):
            example = folder / EXAMPLE_NAME
            has_state = any(spec.fed_from is not None for spec in item.inputs.model.inputs)
            example.write_text(example_script(item.target, artifact.name, has_state=has_state), encoding="utf-8")
            files.append(_entry(example, "example"))
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
    lowered, target, verified = item.artifact.lowered, item.target, item.artifact.verified
    golden, data = item.artifact.golden, item.inputs.data
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelFacts(name=item.inputs.model.name, version=item.model_version, weights=item.inputs.model.weights),
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
        inputs=tuple(_tensor(spec, _preprocessing(spec, item)) for spec in item.inputs.model.inputs),
        outputs=tuple(_tensor(spec, None) for spec in verified.outputs),
        labels=item.inputs.labels,
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        dynamic_batch=lowered.dynamic_batch,
        planned_memory_bytes=lowered.planned_memory_bytes,
        passes=lowered.passes,
        layers=_layers(item),
        gates=tuple(_gate(gate) for gate in item.checked.gates),
        accepted=item.checked.exit_code == ExitCode.OK,
        accuracy=_filled(Accuracy, verified.fidelity),
        graph_accuracy=_filled(Accuracy, verified.graph_only.fidelity if verified.graph_only else None),
        parity=_filled(ParityFacts, verified.parity),
        golden=GoldenFacts(
            samples=len(golden.inputs[0]),
            preprocessed=golden.preprocessed,
            sqnr_floor_db=golden.sqnr_floor_db,
            made_on=golden.made_on,
            made_by=golden.made_by,
        ),
        emulation=_filled(
            EmulationFacts,
            verified.emulation if verified.emulation and verified.emulation.runs else None,
        ),
        not_emulated=verified.not_emulated or None,
        cuda=_filled(CudaBox, lowered.cuda),
        npu=_filled(NpuNeeds, lowered.npu),
        language=_filled(LanguageFacts, item.inputs.model.language),
        verified_on=_verified_on(verified),
        provenance=Provenance(
            source_sha256=item.inputs.model.source_sha256,
            calibration_sha256=data.calibration_sha256,
            calibration_samples=data.calibration_samples,
            evaluation_sha256=data.evaluation_sha256,
            evaluation_samples=data.evaluation_samples,
            data_findings=tuple(sorted({finding.name for finding in data.findings})),
            qat=_qat(item, data),
            search=_search(item, data),
            seed=item.seed,
            tools=item.tools,
            edgeq=edgeq_version(),
            options=item.options,
            shipped=item.artifact.reuse.shipped if item.artifact.reuse else None,
        ),
    )


def with_gates(manifest: Manifest, checked: CheckReport) -> Manifest:
    """Return a manifest with the verdicts of other limits; nothing else in it depends on them."""
    gates = tuple(_gate(gate) for gate in checked.gates)
    return manifest.model_copy(update={"gates": gates, "accepted": checked.exit_code == ExitCode.OK})


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
        ("size_bytes", row.size_bytes, manifest.size_bytes),
        ("verdict", not row.checked.exit_code, manifest.accepted),
        ("accuracy", _filled(Accuracy, row.verified.fidelity), manifest.accuracy),
        ("graph_accuracy", _filled(Accuracy, only.fidelity if only else None), manifest.graph_accuracy),
        ("parity", _filled(ParityFacts, row.verified.parity), manifest.parity),
    )
    gates = tuple(_gate(gate) for gate in row.checked.gates)
    differing = [gate.name for gate in gates if gate not in manifest.gates]
    differing += [gate.name for gate in manifest.gates if gate.name not in {one.name for one in gates}]
    return (
        *(name for name, said, known in pairs if said != known),
        *(f"gate {name}" for name in dict.fromkeys(differing)),
    )


def _tensor(spec: TensorSpec, preprocess: Preprocess | None) -> Tensor:
    return Tensor.model_validate(
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "shape": spec.shape,
            "preprocessing": preprocess,
            "varying": tuple(dataclasses.asdict(one) for one in spec.varying),
            "fed_from": spec.fed_from,
        }
    )


def _preprocessing(spec: TensorSpec, item: BundleInput) -> Preprocess | None:
    """Images go into the only input that can take them, or into those of rank 4 and more; `load` does the same."""
    preprocess = item.inputs.preprocess
    if preprocess is None or not preprocess.takes(spec.dtype):
        return None
    alone = sum(preprocess.takes(other.dtype) for other in item.inputs.model.inputs) == 1
    return preprocess if alone or len(spec.shape) >= 4 else None


def _layers(item: BundleInput) -> LayerSummary:
    kernels = item.artifact.verified.kernels
    return LayerSummary(
        macs=item.artifact.lowered.macs if item.artifact.lowered.layers else None,
        delegated_macs=item.artifact.lowered.delegated_macs,
        int8_macs=kernels.int8_macs if kernels else None,
        undelegated=tuple(sorted(set(item.artifact.lowered.undelegated))),
        kept_fp32=tuple(sorted(item.artifact.quantized.kept_fp32)),
    )


def _gate(gate: Gate) -> GateVerdict:
    detail = None if gate.exit_code in _SILENT else gate.detail or None
    return GateVerdict(name=gate.name, outcome=gate.outcome, limit=gate.limit, bound=gate.bound, detail=detail)


def _filled(facts: type[Facts], result: object | None) -> Facts | None:
    """Return a part of the manifest with the fields of the same names of a result; None if there is none."""
    return None if result is None else facts.model_validate(result, from_attributes=True)


def _verified_on(verified: VerifyReport) -> str:
    runs = verified.emulation.runs if verified.emulation else ()
    cpus = ", ".join(dict.fromkeys(run.cpu for run in runs))
    return f"emulated {cpus}; {verified.host}" if cpus else verified.host


def _qat(item: BundleInput, data: DataFacts) -> QatFacts | None:
    tuning = item.artifact.quantized.tuning
    if tuning is None or data.qat_sha256 is None:
        return None
    own = tuning.weights == "user"
    return QatFacts(
        data_sha256=data.qat_sha256,
        samples=tuning.samples,
        held_out=tuning.held_out,
        loss=None if own else tuning.loss,
        epochs=tuning.epochs,
        learning_rate=None if own else tuning.learning_rate,
        batch=None if own else tuning.batch,
        weights=tuning.weights,
    )


def _search(item: BundleInput, data: DataFacts) -> SearchFacts | None:
    search = item.artifact.quantized.search
    if search is None or data.search_sha256 is None:
        return None
    return SearchFacts(
        data_sha256=data.search_sha256,
        samples=data.search_samples,
        assignments=len(search.attempts),
    )
