"""`verify_bundle`: read a bundle from disk, run it on this host, and compare it with its manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.bundle.archive import download_size_bytes
from edgeq.bundle.golden import read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.check import bundle as promises
from edgeq.check.artifact import outputs_gate, sizes_gates
from edgeq.check.bundle import NOT_RUN, limit_gates, remarks, settled
from edgeq.check.evaluate import check_cost_options, validate_options
from edgeq.core.config import DataConfig, DeviceConfig, GateOptions, Progress
from edgeq.core.errors import (
    EdgeqError,
    EnvironmentProblem,
    UnsupportedError,
    UsageError,
    VerificationError,
    first_line,
)
from edgeq.core.manifest import Bundle, Manifest
from edgeq.core.results.measured import GoldenComparison, ScoreComparison, VerifyReport
from edgeq.core.results.model import LoweredModel
from edgeq.core.results.report import BundleVerification, CheckReport, Gate, GoldenSet
from edgeq.core.samples import Batch, Dataset, Outputs
from edgeq.core.system import check_extras, host_arch
from edgeq.core.targets import why_not_run
from edgeq.load.selection import dataset_sha256
from edgeq.pipeline import devices
from edgeq.pipeline.devices import DeviceSetting, device_setting, on_device
from edgeq.pipeline.evaluation import Evaluation, golden_dataset, input_specs, language_of, open_evaluation, run_golden
from edgeq.pipeline.measurement import JudgedMeasurement, judge, read_verdict
from edgeq.pipeline.profile import with_bundle_cost
from edgeq.verify.golden import compare_golden, golden_set
from edgeq.verify.host import HostRuntime, Killed, Loaded
from edgeq.verify.metrics import TOP1, of_sample
from edgeq.verify.spec import VerifySpec
from edgeq.verify.verify import verify

ON_HOST = DeviceConfig(on="host")


def verify_bundle(
    folder: Path,
    *,
    data: DataConfig,
    gates: GateOptions,
    progress: Progress,
    device: DeviceConfig = ON_HOST,
    digest: str | None = None,
    verdict: Path | None = None,
    trusted: bool = False,
    run: bool = True,
) -> BundleVerification:
    """Verify a bundle here, in a child process that may crash, and on its device's kernels; every check counts.

    Args:
        folder: what `edgeq package` wrote, or a copy in an app's project.
        data: evaluation data, its metric and its labels file.
        gates: limits, and the gates that may stay unmeasured.
        progress: where progress is reported.
        device: whether and how the artifact runs on the device's kernels.
        digest: the expected digest of the bundle; None to accept any.
        verdict: its measurements from another machine; with it, `device` is the host.
        trusted: whether an artifact that could run code may be loaded.
        run: whether the artifact runs at all; else its files, its recorded gates and its sizes are checked.

    Raises:
        UsageError: the folder is not a bundle, an option matches nothing, or the data does not fit.
        IntegrityError: a file is missing, changed or broken, or the digest differs, before the run or after it.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read, the child process does not start, or the runtime or QEMU is missing.
    """
    validate_options(gates, command="verify")
    check_cost_options(gates)
    if data.evaluation is None and (data.metric or data.labels):
        raise UsageError("--metric and --labels need --eval-data, but none was given", "add --eval-data")
    with progress.task("check sizes and hashes"):
        bundle = read_bundle(folder, digest=digest)
        if run and not why_not_run(bundle.manifest.target.backend):
            _check_runtime(bundle)
        elsewhere = judge(bundle, read_golden(bundle), read_verdict(verdict, bundle)) if verdict else None
    if run:
        seen = _observations(bundle, read_golden(bundle), data, device, progress, trusted=trusted)
        seen = dataclasses.replace(seen, verified=with_bundle_cost(bundle, gates, device, seen.verified, progress))
    else:
        seen = _not_run(NOT_RUN)
    result = _judged(bundle, _with_elsewhere(seen, elsewhere) if elsewhere else seen, gates, elsewhere)
    read_bundle(folder, digest=bundle.digest)  # what was run was opened by its name: another run may have replaced it
    return result


def _check_runtime(bundle: Bundle) -> None:
    """Check that the runtime of a bundle is installed; raises an EnvironmentProblem."""
    try:
        check_extras((bundle.manifest.target.runtime, bundle.manifest.target.backend))
    except EnvironmentProblem as err:
        fix = f"{err.fix}; `edgeq verify --no-run` checks the files and the recorded gates alone"
        raise EnvironmentProblem(f"the files are as listed, but were not run: {err.what}", fix) from err


def _observations(
    bundle: Bundle, golden: GoldenSet, data: DataConfig, device: DeviceConfig, progress: Progress, *, trusted: bool
) -> Seen:
    """Run the artifact, on the device's kernels too where that was asked for."""
    # the runtime's imports take seconds, in which the data is opened here
    with device_setting(bundle.manifest, device, progress) as setting, HostRuntime(trusted=trusted) as runtime:
        evaluation = open_evaluation(bundle, data, progress) if data.evaluation is not None else None
        serving_s = device.timeout_s if device.on == devices.ON else None
        return run_bundle(bundle, golden, evaluation, runtime, setting, progress, serving_s=serving_s)


def _judged(bundle: Bundle, seen: Seen, gates: GateOptions, elsewhere: JudgedMeasurement | None) -> BundleVerification:
    """Hold what was seen to the manifest's promises and to the limits of this run."""
    download_bytes = download_size_bytes(bundle.folder) if "download" in dict(gates.limits) else 0
    verdicts = (
        promises.files_gate(bundle),
        *promises.packaged_gates(bundle.manifest, elsewhere.settled if elsewhere else {}),
        *(settled(gate, gates) for gate in seen.gates),
        *limit_gates(bundle, seen.verified, gates, download_bytes=download_bytes),
    )
    return BundleVerification(
        folder=bundle.folder,
        manifest=bundle.manifest,
        digest=bundle.digest,
        checked=CheckReport(gates=verdicts, warnings=(*remarks(bundle.manifest, seen.verified), *seen.notes)),
        verified=seen.verified,
        golden=seen.golden,
        score=seen.score,
        outputs=seen.outputs,
    )


def _with_elsewhere(seen: Seen, elsewhere: JudgedMeasurement) -> Seen:
    """Take what was measured elsewhere for what was not measured here."""
    names = {gate.name for gate in elsewhere.gates}
    kept = (gate for gate in seen.gates if gate.name not in names or gate.outcome != "unverified")
    verified = dataclasses.replace(seen.verified, device=elsewhere.measures, emulation=elsewhere.emulation)
    return dataclasses.replace(seen, gates=(*kept, *elsewhere.gates), verified=verified)


# --- What running a bundle's artifact on this host shows, beside what its manifest and golden samples say.


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What running the artifact showed, and the gates and remarks that follow from it.

    Attributes:
        outputs: for the golden samples, [samples, …] each, of the real device, or else of this host.
    """

    gates: tuple[Gate, ...]
    verified: VerifyReport
    notes: tuple[str, ...] = ()
    golden: GoldenComparison | None = None
    score: ScoreComparison | None = None
    outputs: Outputs = ()


def run_bundle(
    bundle: Bundle,
    golden: GoldenSet,
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting | None,
    progress: Progress,
    *,
    serving_s: float | None,
) -> Seen:
    """Run the golden samples first: a limit is on a cold load, as `edgeq package` measures it, not on a second one.

    `serving_s` is how long serving them on the GPU may take; None where that is not asked for.
    """
    why = why_not_run(bundle.manifest.target.backend)
    if why:
        return _not_run(NOT_RUN, promises.elsewhere_gate(why))
    box = devices.box_gates(bundle.manifest, runtime)
    if not all(gate.passed for gate in box):
        return _not_run(f"host {host_arch()}", *box)
    try:
        seen = _run(bundle, golden, evaluation, runtime, setting, progress)
        gates, verified = (*box, *seen.gates), seen.verified
        if serving_s is not None:
            gate, measures = devices.served(bundle, golden, timeout_s=serving_s)
            gates, verified = (*gates, gate), dataclasses.replace(verified, device=measures)
        return dataclasses.replace(seen, gates=gates, verified=verified)
    except (VerificationError, UnsupportedError) as err:
        return _not_run(f"host {host_arch()}", _why_not(bundle, runtime, err))


def _run(
    bundle: Bundle,
    golden: GoldenSet,
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting | None,
    progress: Progress,
) -> Seen:
    manifest, samples = bundle.manifest, golden_dataset(bundle, golden)
    verified, _ = verify(_spec(bundle, samples, progress, "golden samples"), runtime)
    golden_runs = run_golden(manifest, samples, runtime)
    score = _score(bundle, evaluation, runtime, progress) if evaluation else None
    # TorchScript archives state nothing, and were run on what the manifest says
    takes = _loaded(bundle, runtime).inputs or promises.signature(manifest.inputs)
    device = on_device(bundle, golden, golden_runs, evaluation, runtime, setting) if setting else None
    measured = _measured(manifest, golden_runs)
    compared = compare_golden(golden, measured)
    score_gates, notes = promises.score_gates(score) if score else ((), ())
    verdicts = (
        promises.run_gate(verified),
        promises.signature_gate(manifest, takes, promises.signature(verified.outputs)),
        outputs_gate(verified),
        *sizes_gates(manifest.scheme, verified),
        promises.golden_gate(compared),
        *score_gates,
        *(device.gates if device else ()),
    )
    if device is not None:
        verified = dataclasses.replace(verified, emulation=device.emulation, device=device.measures)
    return Seen(
        gates=verdicts,
        verified=verified,
        notes=notes,
        golden=compared,
        score=score,
        outputs=device.outputs if device else measured.outputs,
    )


def _measured(manifest: Manifest, runs: Sequence[tuple[Batch, Outputs]]) -> GoldenSet:
    taken = [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in runs]
    return golden_set(taken, (), scheme=manifest.scheme)


def _not_run(host: str, *gates: Gate) -> Seen:
    return Seen(gates=gates, verified=VerifyReport(host=host, outputs=(), findings=()))


def _why_not(bundle: Bundle, runtime: HostRuntime, err: VerificationError | UnsupportedError) -> Gate:
    """Return the gate of an artifact that did not run; of inputs that it does not take, the runtime only has codes."""
    manifest = bundle.manifest
    try:
        stated = _loaded(bundle, runtime)
    except EdgeqError:  # a damaged artifact, or a child that crashed: the first error says more
        return promises.not_run_gate(err)
    if stated.inputs and not promises.fits(stated.inputs, promises.signature(manifest.inputs)):
        return promises.signature_gate(manifest, stated.inputs, stated.outputs)
    return promises.not_run_gate(err)


def _loaded(bundle: Bundle, runtime: HostRuntime) -> Loaded:
    target, threads = bundle.manifest.target, bundle.manifest.threads
    return runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=threads)


def _spec(bundle: Bundle, samples: Dataset, progress: Progress, what: str) -> VerifySpec:
    """Return the verify step's input for a bundle, which holds neither the converted graph nor fp32."""
    manifest = bundle.manifest
    lowered = LoweredModel(
        path=bundle.artifact,
        runtime=manifest.target.runtime,
        runtime_version=manifest.runtime.exported_with,
        bytecode_version=manifest.runtime.bytecode_version,
        passes=manifest.passes,
        operators=(),
        undelegated=manifest.layers.undelegated,
        layers=(),
        delegated_macs=None,
    )
    return VerifySpec(
        lowered=lowered,
        inputs=input_specs(manifest),
        graph=None,
        fp32=None,
        output_steps=(),
        samples=samples,
        is_evaluation=False,
        metric=None,
        metric_name=TOP1,
        scheme=manifest.scheme,
        backend=manifest.target.backend,
        threads=manifest.threads,
        progress=progress,
        label=f"{manifest.target.name}, {what}",
        language=language_of(bundle),
    )


def _score(bundle: Bundle, evaluation: Evaluation, runtime: HostRuntime, progress: Progress) -> ScoreComparison:
    recorded = bundle.manifest.accuracy
    spec = dataclasses.replace(
        _spec(bundle, evaluation.samples, progress, "evaluation data"),
        is_evaluation=True,
        metric=evaluation.metric,
        metric_name=evaluation.metric_name,
        # the times that count are those of the golden samples
        warmup=0,
        runs=1,
    )
    fidelity = verify(spec, runtime)[0].fidelity
    known = recorded.score if recorded is not None and recorded.inputs == "evaluation" else None
    return ScoreComparison(
        metric=evaluation.metric_name,
        samples=evaluation.samples.count,
        score=fidelity.score if fidelity else None,
        recorded=None if known is None else float(known),
        same_data=dataset_sha256(evaluation.samples) == bundle.manifest.provenance.evaluation_sha256,
        same_metric=recorded is not None and recorded.metric == evaluation.metric_name,
    )


def golden_self_test(folder: Path, progress: Progress, *, trusted: bool = False) -> None:
    """Load a bundle in a child process that may crash, and compare its outputs for the golden samples.

    Raises:
        VerificationError: it does not load, or its outputs differ.
        EnvironmentProblem: the child process does not start, or was killed.
    """
    try:
        result = verify_bundle(folder, data=DataConfig(), gates=GateOptions(), progress=progress, trusted=trusted)
    except (Killed, MemoryError) as err:
        what = f"the self-test did not finish: {first_line(err)}"
        raise EnvironmentProblem(what, "free memory, and update again") from err
    failed: list[Gate] = [gate for gate in result.checked.gates if not gate.passed]
    if failed:
        failures = "; ".join(f"{gate.name}: {gate.detail or gate.measured}" for gate in failed)
        raise VerificationError(failures, "release a corrected bundle")
