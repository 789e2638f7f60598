"""`verify_bundle`: a bundle as it lies on disk is read, run on this host, and held to what its manifest says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import CheckReport, Gate, GoldenSet, VerifyReport
from edgeq.device import check_cost_options
from edgeq.errors import ExitCode, UsageError
from edgeq.job import DataOptions, DeviceOptions, GateOptions, Progress
from edgeq.manifest import Manifest
from edgeq.pipeline import promises
from edgeq.pipeline.cost import with_bundle_cost
from edgeq.pipeline.evaluation import open_evaluation
from edgeq.pipeline.promises import GoldenComparison, ScoreComparison
from edgeq.pipeline.run_bundle import Seen, run_bundle
from edgeq.target import why_not_run

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle

ON_HOST = DeviceOptions(on="host")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleVerification:
    """What reading and running a bundle showed.

    Attributes:
        checked: every gate that was evaluated; its warnings are remarks that fail nothing.
        verified: what running the golden samples showed; nothing in it where the artifact does not run.
        golden: None where the artifact does not run.
        score: None where no data was given, or the artifact does not run.
    """

    folder: Path
    manifest: Manifest
    digest: str
    checked: CheckReport
    verified: VerifyReport
    golden: GoldenComparison | None
    score: ScoreComparison | None

    @property
    def exit_code(self) -> ExitCode:
        """The lowest code among the gates that failed."""
        return self.checked.exit_code


def verify_bundle(
    folder: Path,
    *,
    data: DataOptions,
    gates: GateOptions,
    progress: Progress,
    device: DeviceOptions = ON_HOST,
    digest: str | None = None,
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

    Raises:
        UsageError: the folder is no bundle, an option names nothing, or the data does not fit.
        IntegrityError: a file is missing or changed, the manifest or the golden file is broken, or the digest differs.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read, the child process does not start, or QEMU is missing.
    """
    from edgeq.bundle.archive import download_size_bytes
    from edgeq.bundle.golden import read_golden
    from edgeq.bundle.reader import read_bundle

    _check_options(data, gates)
    with progress.task("check sizes and hashes"):
        bundle = read_bundle(folder, digest=digest)
        golden = read_golden(bundle)
        download_bytes = download_size_bytes(folder)
    seen = _seen(bundle, golden, data, device, progress)
    seen = dataclasses.replace(seen, verified=with_bundle_cost(bundle, gates, device, seen.verified, progress))
    return _judged(bundle, seen, download_bytes, gates)


def _check_options(data: DataOptions, gates: GateOptions) -> None:
    from edgeq.check import validate_options

    validate_options(gates)
    check_cost_options(gates)
    if data.evaluation is None and (data.metric or data.labels):
        raise UsageError("--metric and --labels say how data is scored, and none is given", "add --eval-data")


def _seen(bundle: Bundle, golden: GoldenSet, data: DataOptions, device: DeviceOptions, progress: Progress) -> Seen:
    """Run the artifact, on the device's kernels too where that was asked for."""
    from edgeq.pipeline.verify_device import device_setting
    from edgeq.verify.host import HostRuntime

    # the runtime's imports take seconds, in which the data is opened here
    with device_setting(bundle.manifest, device, progress) as setting, HostRuntime() as runtime:
        evaluation = open_evaluation(bundle.manifest, data, progress) if data.evaluation is not None else None
        return run_bundle(bundle, golden, evaluation, runtime, setting, progress)


def _judged(bundle: Bundle, seen: Seen, download_bytes: int, gates: GateOptions) -> BundleVerification:
    """Hold what was seen to the manifest's promises and to the limits of this run."""
    verdicts = (
        promises.files_gate(bundle),
        *promises.packaged_gates(bundle.manifest),
        *(_settled(gate, gates) for gate in seen.gates),
        *_limit_gates(bundle, seen.verified, download_bytes, gates),
    )
    return BundleVerification(
        folder=bundle.folder,
        manifest=bundle.manifest,
        digest=bundle.digest,
        checked=CheckReport(gates=verdicts, warnings=(*_remarks(bundle.manifest, seen.verified), *seen.notes)),
        verified=seen.verified,
        golden=seen.golden,
        score=seen.score,
    )


def _limit_gates(bundle: Bundle, verified: VerifyReport, download_bytes: int, options: GateOptions) -> tuple[Gate, ...]:
    from edgeq.check.instructions import instruction_gates
    from edgeq.check.limits import Measured, limit_gate
    from edgeq.verify.run import host_arch

    measured = Measured(
        size_bytes=bundle.manifest.file("artifact").size_bytes,
        download_bytes=download_bytes,
        verified=verified,
        limit_on=options.limit_on,
        host_arch=host_arch(),
        target_arch=bundle.manifest.target.arch,
        target_platform=bundle.manifest.target.platform,
    )
    judged = [limit_gate(name, limit, measured) for name, limit in options.limits]
    judged += instruction_gates(options.shipped, verified)
    return tuple(_settled(gate, options) for gate in judged)


def _settled(gate: Gate, options: GateOptions) -> Gate:
    if gate.name == "accuracy_drop":
        gate = dataclasses.replace(gate, detail="a bundle holds no fp32 model; package again with this limit")
    allowed = gate.outcome == "unverified" and gate.name in options.allow_unmeasured
    return dataclasses.replace(gate, outcome="allowed") if allowed else gate


def _remarks(manifest: Manifest, verified: VerifyReport) -> tuple[str, ...]:
    from edgeq.verify.run import host_arch

    said = []
    if why_not_run(manifest.target.backend) or (verified.emulation is not None and verified.emulation.runs):
        pass
    elif manifest.target.platform in ("android", "ios"):
        said.append(f"run on the host's kernels ({host_arch()}), not the phone's")
    elif manifest.target.arch != host_arch():
        said.append(f"run on the host's kernels ({host_arch()}), not those of {manifest.target.arch}")
    if manifest.model.weights == "random":
        said.append("the weights are random: install and release will refuse this bundle")
    return tuple(said)
