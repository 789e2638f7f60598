"""`verify_bundle`: a bundle as it lies on disk is read, run on this host, and held to what its manifest says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import CheckReport, GoldenSet, VerifyReport
from edgeq.device import check_cost_options
from edgeq.errors import ExitCode, UsageError
from edgeq.job import DataOptions, DeviceOptions, GateOptions, Progress
from edgeq.manifest import Manifest
from edgeq.pipeline import promises, verify_gpu
from edgeq.pipeline.cost import with_bundle_cost
from edgeq.pipeline.elsewhere import Elsewhere, judge, read_verdict
from edgeq.pipeline.evaluation import open_evaluation
from edgeq.pipeline.limits import limit_gates, remarks, settled
from edgeq.pipeline.promises import GoldenComparison, ScoreComparison
from edgeq.pipeline.run_bundle import Seen, run_bundle

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.verify.metrics import Outputs

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
    outputs: Outputs = ()

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
    verdict: Path | None = None,
    trusted: bool = False,
) -> BundleVerification:
    """Verify a bundle here, in a child process that may crash, and on its device's kernels; every check counts.

    Args:
        folder: what `edgeq package` wrote, or a copy in an app's project.
        data: evaluation data, its metric and its labels file.
        gates: limits, and what may stay unmeasured.
        progress: how it is told.
        device: whether and how the artifact runs on the device's kernels.
        digest: what the bundle's must be; None where nobody said.
        verdict: what was measured of it elsewhere; with it, `device` is the host.

        trusted: whether an artifact that could run code may be loaded.

    Raises:
        UsageError: the folder is no bundle, an option names nothing, or the data does not fit.
        IntegrityError: a file is missing, changed or broken, or the digest differs, before the run or after it.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read, the child process does not start, or QEMU is missing.
    """
    from edgeq.bundle.golden import read_golden
    from edgeq.bundle.reader import read_bundle

    _check_options(data, gates)
    with progress.task("check sizes and hashes"):
        bundle = read_bundle(folder, digest=digest)
        golden = read_golden(bundle)
        elsewhere = judge(bundle, golden, read_verdict(verdict, bundle)) if verdict else None
    seen = _seen(bundle, golden, data, device, progress, trusted=trusted)
    seen = dataclasses.replace(seen, verified=with_bundle_cost(bundle, gates, device, seen.verified, progress))
    result = _judged(bundle, _with_elsewhere(seen, elsewhere) if elsewhere else seen, gates, elsewhere)
    read_bundle(folder, digest=bundle.digest)  # what was run was opened by its name: another run may have replaced it
    return result


def _check_options(data: DataOptions, gates: GateOptions) -> None:
    from edgeq.check import validate_options

    validate_options(gates)
    check_cost_options(gates)
    if data.evaluation is None and (data.metric or data.labels):
        raise UsageError("--metric and --labels say how data is scored, and none is given", "add --eval-data")


def _seen(
    bundle: Bundle, golden: GoldenSet, data: DataOptions, device: DeviceOptions, progress: Progress, *, trusted: bool
) -> Seen:
    """Run the artifact, on the device's kernels too where that was asked for."""
    from edgeq.pipeline.verify_device import device_setting
    from edgeq.verify.host import HostRuntime

    # the runtime's imports take seconds, in which the data is opened here
    with device_setting(bundle.manifest, device, progress) as setting, HostRuntime(trusted=trusted) as runtime:
        evaluation = open_evaluation(bundle.manifest, data, progress) if data.evaluation is not None else None
        serving_s = device.timeout_s if device.on == verify_gpu.ON else None
        return run_bundle(bundle, golden, evaluation, runtime, setting, progress, serving_s=serving_s)


def _judged(bundle: Bundle, seen: Seen, gates: GateOptions, elsewhere: Elsewhere | None) -> BundleVerification:
    """Hold what was seen to the manifest's promises and to the limits of this run."""
    verdicts = (
        promises.files_gate(bundle),
        *promises.packaged_gates(bundle.manifest, elsewhere.settled if elsewhere else {}),
        *(settled(gate, gates) for gate in seen.gates),
        *limit_gates(bundle, seen.verified, gates),
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


def _with_elsewhere(seen: Seen, elsewhere: Elsewhere) -> Seen:
    """Take what was measured elsewhere for what was not measured here."""
    names = {gate.name for gate in elsewhere.gates}
    kept = (gate for gate in seen.gates if gate.name not in names or gate.outcome != "unverified")
    verified = dataclasses.replace(seen.verified, device=elsewhere.measures, emulation=elsewhere.emulation)
    return dataclasses.replace(seen, gates=(*kept, *elsewhere.gates), verified=verified)
