"""`verify_bundle`: a bundle as it lies on disk is read, run on this host, and held to what its manifest says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import CheckReport, Gate, GoldenSet, LoweredModel, VerifyReport
from edgeq.device import check_cost_options
from edgeq.errors import EdgeqError, ExitCode, UnsupportedError, UsageError, VerificationError
from edgeq.job import DataOptions, DeviceOptions, GateOptions, Progress
from edgeq.manifest import Manifest
from edgeq.pipeline import promises
from edgeq.pipeline.cost import with_bundle_cost
from edgeq.pipeline.elsewhere import Elsewhere, judge, read_verdict
from edgeq.pipeline.evaluation import TOP1, Evaluation, input_specs, open_evaluation
from edgeq.pipeline.golden import golden_dataset, run_golden
from edgeq.pipeline.limits import limit_gates, remarks, settled
from edgeq.pipeline.promises import GoldenComparison, ScoreComparison
from edgeq.samples import Dataset
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.pipeline.verify_device import DeviceSetting
    from edgeq.verify.host import HostRuntime, Loaded
    from edgeq.verify.run import VerifySpec


ON_HOST = DeviceOptions(on="host")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleVerification:
    """What reading and running a bundle showed.

    Attributes:
        checked: every gate that was evaluated; its warnings are remarks that fail nothing.
        verified: what running the golden samples showed; nothing in it where the artifact does not run.
        golden: None where the artifact does not run.
        score: None where no data was given, or the artifact does not run.
        outputs: for the golden samples, [samples, …] each, of what was measured: the real device, or else this host;
            none where it does not run.
    """

    folder: Path
    manifest: Manifest
    digest: str
    checked: CheckReport
    verified: VerifyReport
    golden: GoldenComparison | None
    score: ScoreComparison | None
    outputs: tuple[Any, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code among the gates that failed."""
        return self.checked.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What running the artifact showed, and the gates and remarks that follow from it."""

    gates: tuple[Gate, ...]
    verified: VerifyReport
    notes: tuple[str, ...] = ()
    golden: GoldenComparison | None = None
    score: ScoreComparison | None = None
    outputs: tuple[Any, ...] = ()


def verify_bundle(
    folder: Path,
    *,
    data: DataOptions,
    gates: GateOptions,
    progress: Progress,
    device: DeviceOptions = ON_HOST,
    digest: str | None = None,
    verdict: Path | None = None,
) -> BundleVerification:
    """Verify a bundle of either runtime on this host, in a child process that may crash, and on its device's kernels.

    Every check is evaluated, whichever failed before it. An artifact that does not load, crashes its runtime or
    breaks a promise of its manifest is a gate that failed; the errors below are what leaves nothing to evaluate.

    Args:
        folder: what `edgeq package` wrote, or a copy in an app's project.
        data: evaluation data, its metric and its labels file; the calibration's part is not looked at.
        gates: limits, and what may stay unmeasured.
        progress: how it is told.
        device: whether and how the artifact runs on the device's kernels.
        digest: what the bundle's must be; None where nobody said.
        verdict: what was measured of it elsewhere; with it, `device` is the host.

    Raises:
        UsageError: the folder is no bundle, an option names nothing, or the data does not fit.
        IntegrityError: a file is missing or changed, the manifest, the golden file or the verdict is broken, or the
            digest differs.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read, the child process does not start, or QEMU is missing.
    """
    from edgeq.bundle.golden import read_golden
    from edgeq.bundle.reader import read_bundle
    from edgeq.check import validate_options
    from edgeq.pipeline.verify_device import device_setting
    from edgeq.verify.host import HostRuntime

    validate_options(gates)
    check_cost_options(gates)
    if data.evaluation is None and (data.metric or data.labels):
        raise UsageError("--metric and --labels say how data is scored, and none is given", "add --eval-data")
    with progress.task("check sizes and hashes"):
        bundle = read_bundle(folder, digest=digest)
        golden = read_golden(bundle)
        elsewhere = judge(bundle, golden, read_verdict(verdict, bundle)) if verdict else None
    # the runtime's imports take seconds, in which the data is opened here
    with device_setting(bundle.manifest, device, progress) as setting, HostRuntime() as runtime:
        evaluation = open_evaluation(bundle.manifest, data, progress) if data.evaluation is not None else None
        seen = _run(bundle, golden, evaluation, runtime, setting, progress)
    seen = dataclasses.replace(seen, verified=with_bundle_cost(bundle, gates, device, seen.verified, progress))
    if elsewhere is not None:
        seen = _with_elsewhere(seen, elsewhere)
    verdicts = (
        promises.files_gate(bundle),
        *promises.packaged_gates(bundle.manifest, elsewhere.settled if elsewhere else {}),
        *(settled(gate, gates) for gate in seen.gates),
        *limit_gates(bundle, seen.verified, gates),
    )
    return BundleVerification(
        folder=folder,
        manifest=bundle.manifest,
        digest=bundle.digest,
        checked=CheckReport(gates=verdicts, warnings=(*remarks(bundle.manifest, seen.verified), *seen.notes)),
        verified=seen.verified,
        golden=seen.golden,
        score=seen.score,
        outputs=seen.outputs,
    )


def _with_elsewhere(seen: _Seen, elsewhere: Elsewhere) -> _Seen:
    """Take what was measured elsewhere for what was not measured here."""
    names = {gate.name for gate in elsewhere.gates}
    kept = (gate for gate in seen.gates if gate.name not in names or gate.outcome != "unverified")
    verified = dataclasses.replace(seen.verified, device=elsewhere.measures, emulation=elsewhere.emulation)
    return dataclasses.replace(seen, gates=(*kept, *elsewhere.gates), verified=verified)


def _run(
    bundle: Bundle,
    golden: GoldenSet,
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting | None,
    progress: Progress,
) -> _Seen:
    """Run the golden samples first: a limit is on a cold load, as `edgeq package` measures it, not on a second one."""
    from edgeq.check.gates import outputs_gate
    from edgeq.pipeline.verify_device import on_device
    from edgeq.verify.golden import golden_set
    from edgeq.verify.rows import of_sample
    from edgeq.verify.run import host_arch, verify

    manifest, samples = bundle.manifest, golden_dataset(bundle, golden)
    why = why_not_run(manifest.target.backend)
    if why:
        return _Seen(gates=(promises.elsewhere_gate(why),), verified=_nothing_seen("nothing"))
    try:
        verified, _ = verify(_spec(bundle, samples, progress, "golden samples"), runtime)
        golden_runs = run_golden(manifest, samples, runtime)
        score = _score(bundle, evaluation, runtime, progress) if evaluation else None
        # TorchScript archives state nothing, and were run on what the manifest says
        takes = _loaded(bundle, runtime).inputs or promises.signature(manifest.inputs)
        device = on_device(bundle, golden, golden_runs, evaluation, runtime, setting) if setting else None
    except (VerificationError, UnsupportedError) as err:
        return _Seen(gates=(_why_not(bundle, runtime, err),), verified=_nothing_seen(f"host {host_arch()}"))
    taken = [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in golden_runs]
    measured = golden_set(taken, (), scheme=manifest.scheme)
    golden_gate, compared = promises.golden_gate(golden, measured)
    score_gates, notes = promises.score_gates(score) if score else ((), ())
    verdicts = (
        promises.run_gate(verified),
        promises.signature_gate(manifest, takes, promises.signature(verified.outputs)),
        outputs_gate(verified),
        golden_gate,
        *score_gates,
        *(device.gates if device else ()),
    )
    outputs = measured.outputs
    if device is not None:
        verified = dataclasses.replace(verified, emulation=device.emulation, device=device.measures)
        outputs = device.outputs
    return _Seen(gates=verdicts, verified=verified, notes=notes, golden=compared, score=score, outputs=outputs)


def _why_not(bundle: Bundle, runtime: HostRuntime, err: VerificationError | UnsupportedError) -> Gate:
    """Return the gate of an artifact that did not run; of inputs that it does not take, the runtime only has codes."""
    manifest = bundle.manifest
    try:
        stated = _loaded(bundle, runtime)
    except EdgeqError:  # a damaged artifact, or a child that crashed: the first error says more
        return promises.not_run_gate(err)
    if stated.inputs and stated.inputs != promises.signature(manifest.inputs):
        return promises.signature_gate(manifest, stated.inputs, stated.outputs)
    return promises.not_run_gate(err)


def _loaded(bundle: Bundle, runtime: HostRuntime) -> Loaded:
    target, threads = bundle.manifest.target, bundle.manifest.threads
    return runtime.load(bundle.artifact, runtime=target.runtime, backend=target.backend, threads=threads)


def _nothing_seen(host: str) -> VerifyReport:
    return VerifyReport(
        host=host,
        parity=None,
        fidelity=None,
        timing=None,
        kernels=None,
        peak_memory_bytes=None,
        load_ms=None,
        outputs=(),
        findings=(),
    )


def _spec(bundle: Bundle, samples: Dataset, progress: Progress, what: str) -> VerifySpec:
    """Return the verify step's input for a bundle, which holds neither the converted graph nor fp32."""
    from edgeq.verify.run import VerifySpec

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
    )


def _score(bundle: Bundle, evaluation: Evaluation, runtime: HostRuntime, progress: Progress) -> ScoreComparison:
    from edgeq.load.digest import dataset_sha256
    from edgeq.verify.run import verify

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
