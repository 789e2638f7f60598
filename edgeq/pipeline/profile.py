"""What the gates on instructions and on predicted latency need: counts of the new artifact and of the shipped one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgeq.bundle.golden import model_inputs, read_golden
from edgeq.bundle.reader import read_bundle
from edgeq.core.config import DeviceConfig, GateOptions, Progress
from edgeq.core.devices import DeviceProfile, Prediction, devices_with_core, load_device
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.manifest import Bundle, Manifest
from edgeq.core.profiles import profile_files
from edgeq.core.results.artifact import Artifact, Inputs
from edgeq.core.results.measured import Cost, CountReport, LatencyPrediction, VerifyReport
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.safe_load import check_torchscript
from edgeq.core.samples import Dataset, Sample, batches, varying_sizes
from edgeq.core.system import check_extras
from edgeq.core.targets import NPU, TargetProfile, load_target, why_not_emulated
from edgeq.pipeline.evaluation import input_specs
from edgeq.verify.emulate.counting import count, find_core
from edgeq.verify.emulate.install import Installed, ensure_installed, find_wheels
from edgeq.verify.emulate.runner import Arrays
from edgeq.verify.emulate.support import wants_emulation


def is_needed(options: GateOptions) -> bool:
    """Whether a gate needs counts."""
    return options.shipped is not None or options.device is not None


def with_cost(
    artifact: Artifact,
    inputs: Inputs,
    gates: GateOptions,
    device: DeviceConfig,
    target: TargetProfile,
    progress: Progress,
) -> Artifact:
    """Return the artifact with its cost, where a gate needs that and the target's kernels are emulated.

    Raises:
        EdgeqError: as `count_bundle`, or the prediction's UsageError.
    """
    if not is_needed(gates) or not wants_emulation(target, device) or target.backend == NPU:
        return artifact
    wheels, _ = find_wheels(target.runtime, target.app.runtimes)
    if not wheels:
        return artifact
    varies = varying_sizes(inputs.model.inputs) and artifact.observed  # the first has the largest sizes
    batch = artifact.observed[0].batch if varies else next(iter(batches(inputs.samples, inputs.model.inputs)))
    runtime = ensure_installed(wheels[0], progress)
    cost = cost_of(
        gates,
        runtime,
        device.cpu or target.device.cpu,
        artifact.lowered.path,
        batch.inputs,
        threads=target.device.threads,
        timeout_s=device.timeout_s,
        progress=progress,
    )
    return dataclasses.replace(artifact, verified=dataclasses.replace(artifact.verified, cost=cost))


def with_bundle_cost(
    bundle: Bundle, gates: GateOptions, device: DeviceConfig, verified: VerifyReport, progress: Progress
) -> VerifyReport:
    """Return a bundle's report with its cost, where a gate needs that and its target runs on ARM64.

    The cores are those of --cpu, or those of the shipped target of its name.

    Raises:
        EdgeqError: as `count_bundle`.
    """
    manifest = bundle.manifest
    backend = manifest.target.backend
    if not is_needed(gates) or manifest.target.arch != "arm64" or backend == NPU or why_not_emulated(backend):
        return verified
    runtime = installed_runtime(manifest, progress)
    cost = cost_of(
        gates,
        runtime,
        device.cpu or cores_of(manifest),
        bundle.artifact,
        first_sample(bundle),
        threads=manifest.threads,
        timeout_s=device.timeout_s,
        progress=progress,
    )
    return dataclasses.replace(verified, cost=cost)


def cost_of(
    gates: GateOptions,
    runtime: Installed,
    cpus: tuple[str, ...],
    artifact: Path,
    sample: Arrays,
    *,
    threads: int,
    timeout_s: float,
    progress: Progress,
) -> Cost:
    """Count an artifact, and the shipped one on the same cores, and predict the device's latency.

    Raises:
        EdgeqError: as `verify.emulate.counting.count` and `count_bundle`.
    """
    profile = None if gates.device is None else load_device(gates.device)
    compared = cpus if gates.shipped is not None else ()
    cores = tuple(dict.fromkeys((*compared, *((profile.core,) if profile else ()))))
    counts = count_on(runtime, cores, artifact, sample, progress=progress, timeout_s=timeout_s)
    shipped: tuple[CountReport, ...] = ()
    if gates.shipped is not None:
        shipped = count_bundle(gates.shipped, compared, progress, timeout_s=timeout_s)
    prediction = None if profile is None else _predicted(profile, counts, threads, runtime.wheel.runtime)
    return Cost(counts=counts, shipped=shipped, prediction=prediction)


def _predicted(
    profile: DeviceProfile, counts: tuple[CountReport, ...], threads: int, runtime: str
) -> LatencyPrediction:
    total = next(one.total for one in counts if one.cpu == profile.core)
    prediction = profile.predict(total, threads, runtime=runtime)
    return LatencyPrediction(
        device=profile.name,
        threads=threads,
        estimate_ms=prediction.estimate_ms,
        low_ms=prediction.low_ms,
        high_ms=prediction.high_ms,
        extrapolated=prediction.extrapolated,
    )


# --- What a bundle costs on its device's cores: instructions counted under emulation, and the latency that follows.


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A latency that was predicted for a device."""

    device: str
    threads: int
    latency: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreProfile:
    """What one inference costs on one core, and on the devices that have it."""

    counted: CountReport
    predicted: tuple[Predicted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleProfile:
    """A bundle on each core that was asked for."""

    folder: Path
    manifest: Manifest
    runtime: str
    cores: tuple[CoreProfile, ...]


def profile_bundle(
    folder: Path,
    *,
    cpus: tuple[str, ...],
    device: str | None,
    threads: int | None,
    progress: Progress,
    timeout_s: float,
    operators: bool,
    trusted: bool = False,
) -> BundleProfile:
    """Count one inference of a bundle's first golden sample on each core, operator by operator.

    Args:
        folder: what `edgeq package` wrote.
        cpus: cores; none for the device's, or for those of the shipped target of the bundle's name.
        device: a device's name or .toml file; None for every shipped device that has one of the cores.
        threads: for the prediction; None for those of the manifest.
        progress: where progress is reported.
        timeout_s: for each core.
        operators: whether to tell the operators apart, which takes a second run.
        trusted: whether an artifact that opens files by name may run.

    Raises:
        UsageError: the folder is not a bundle, a core or device is unknown, or it has fewer cores than threads.
        UnsupportedError: no ARM64 target, or no wheel holds its runtime.
        EdgeqError: as `verify.emulate.counting.count`.
    """
    bundle, sample = _read(folder, progress, trusted=trusted)
    profile = None if device is None else load_device(device)
    cores = _cores(cpus, profile, bundle.manifest)
    runtime = installed_runtime(bundle.manifest, progress)
    counted = count_on(
        runtime, cores, bundle.artifact, sample, progress=progress, timeout_s=timeout_s, operators=operators
    )
    found = tuple(
        CoreProfile(counted=one, predicted=_predictions(one, profile, bundle.manifest, threads)) for one in counted
    )
    return BundleProfile(folder=folder, manifest=bundle.manifest, runtime=runtime.wheel.title, cores=found)


def count_bundle(
    folder: Path, cpus: tuple[str, ...], progress: Progress, *, timeout_s: float = 600.0, trusted: bool = False
) -> tuple[CountReport, ...]:
    """Count one inference of a bundle's first golden sample on each core.

    Raises:
        EdgeqError: as `profile_bundle`.
    """
    bundle, sample = _read(folder, progress, trusted=trusted)
    cores = _cores(cpus, None, bundle.manifest)
    runtime = installed_runtime(bundle.manifest, progress)
    return count_on(runtime, cores, bundle.artifact, sample, progress=progress, timeout_s=timeout_s)


def _read(folder: Path, progress: Progress, *, trusted: bool) -> tuple[Bundle, Arrays]:
    with progress.task("check sizes and hashes"):
        bundle = read_bundle(folder)
        check_extras((bundle.manifest.target.runtime,))
        # the emulated runtime would open them on this host
        if bundle.manifest.target.runtime == "torchscript" and not trusted:
            check_torchscript(bundle.artifact)
        return bundle, first_sample(bundle)


def _cores(cpus: tuple[str, ...], profile: DeviceProfile | None, manifest: Manifest) -> tuple[str, ...]:
    """Return the cores to count on; raises UsageError for one that is unknown, or that the device has not."""
    cores = cpus or ((profile.core,) if profile else cores_of(manifest))
    if profile is not None and profile.core not in cores:
        what = f"device {profile.name} has the core {profile.core}, which is not among --cpu {','.join(cores)}"
        raise UsageError(what, f"add {profile.core} to --cpu, or omit --cpu")
    for core in cores:
        find_core(core)
    return cores


def count_on(
    runtime: Installed,
    cores: tuple[str, ...],
    artifact: Path,
    sample: Arrays,
    *,
    progress: Progress,
    timeout_s: float,
    operators: bool = False,
) -> tuple[CountReport, ...]:
    """Count one inference on each core.

    Raises:
        EdgeqError: as `verify.emulate.counting.count`.
    """
    reports = []
    with progress.task(f"count instructions on {', '.join(cores)}", len(cores), "cores") as task:
        for core in cores:
            reports.append(count(runtime, core, artifact, sample, operators=operators, timeout_s=timeout_s))
            task.advance()
    return tuple(reports)


def installed_runtime(manifest: Manifest, progress: Progress) -> Installed:
    """Return the ARM64 runtime that a bundle's device has, installed.

    Raises:
        UnsupportedError: no ARM64 target, or no wheel holds its runtime.
        EdgeqError: as `verify.emulate.build.ensure_installed`.
    """
    target = manifest.target
    if target.arch != "arm64":
        what = f"target {target.name} runs on {target.arch}; instructions are counted for ARM64 cores"
        raise UnsupportedError(what, "measure it on this host: edgeq verify")
    if target.backend in (NPU, *ETHOS_U):
        what = f"target {target.name} runs on an NPU; instructions are counted for ARM64 cores"
        other = "android-arm64-ort" if target.backend == NPU else "linux-arm64-xnnpack"
        raise UnsupportedError(what, f"package for {other} to count what its CPU would do")
    wheels, missing = find_wheels(target.runtime, (manifest.runtime.oldest_in_field,))
    if not wheels:
        what = f"no ARM64 wheel is known for {target.runtime} {missing[0]}, the oldest in the field"
        raise UnsupportedError(what, "package for a newer runtime version")
    return ensure_installed(wheels[0], progress)


def cores_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the cores that stand for the devices of a bundle's target.

    Raises:
        UsageError: none are known.
    """
    name = manifest.target.name
    cpus = load_target(name).device.cpu if name in profile_files() else ()
    if not cpus:
        raise UsageError(f"no CPU model is known for target {name}", "give one, such as --cpu cortex-a76")
    return cpus


def first_sample(bundle: Bundle) -> Arrays:
    """Return the first golden sample as the model takes it: one batch of its own.

    Raises:
        IntegrityError: the golden file is broken.
    """
    inputs = next(iter(model_inputs(read_golden(bundle), bundle.manifest)))
    sample = Sample(inputs=inputs, raw=inputs, label=None, name="golden sample", digest="")
    data = Dataset(origin=str(bundle.golden), count=1, read=(sample,).__getitem__)
    return next(iter(batches(data, input_specs(bundle.manifest)))).inputs


def _predictions(
    counted: CountReport, device: DeviceProfile | None, manifest: Manifest, asked: int | None
) -> tuple[Predicted, ...]:
    found = [device] if device is not None else [load_device(name) for name in devices_with_core(counted.cpu)]
    # the manifest's threads are for the phones of its target; a device with fewer cores takes what it has
    return tuple(
        Predicted(
            device=one.name,
            threads=used,
            latency=one.predict(counted.total, used, runtime=manifest.target.runtime),
        )
        for one in found
        if one.core == counted.cpu
        for used in (asked or min(manifest.threads, one.cores),)
    )
