"""The emulated part of a run: which targets have a device, the machines that stand for it, and their results."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from edgeq.check.bundle import golden_gate
from edgeq.check.device import box_gate, device_gate
from edgeq.core.config import DeviceConfig, Progress
from edgeq.core.errors import EnvironmentProblem, ExitCode, UnsupportedError
from edgeq.core.manifest import Bundle, Manifest
from edgeq.core.results.artifact import Artifact, Inputs, Observed
from edgeq.core.results.measured import DeviceMeasures, DeviceRun, Emulation, VerifyReport
from edgeq.core.results.report import Gate, GoldenSet
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.samples import Batch, Dataset, Outputs, batch_size, batches, run_in_order, state_specs
from edgeq.core.targets import NPU, TargetProfile, why_not_emulated
from edgeq.core.units import counted
from edgeq.pipeline.evaluation import Evaluation, golden_batches, golden_dataset, input_specs
from edgeq.pipeline.profile import cores_of
from edgeq.verify.emulate.cpus import find_cpu
from edgeq.verify.emulate.emulate import Emulated, EmulateSpec, Subset, emulate, subset_size
from edgeq.verify.emulate.install import ensure_installed, find_wheels, is_native
from edgeq.verify.emulate.selftest import NATIVE, Machine, Npu, emulator_of, ensure_tested, hold_all
from edgeq.verify.emulate.support import find_npus, not_emulated, wants_emulation
from edgeq.verify.golden import compare_golden, golden_set
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import of_sample
from edgeq.verify.remote.device import Session, measure, open_session
from edgeq.verify.remote.link import is_link, parse_link
from edgeq.verify.serving import require_cuda, serve

Machines = tuple[Machine, ...] | tuple[Npu, ...]


def no_sdk(runtime: str, versions: tuple[str, ...]) -> Emulation:
    """Return the report of a target for which no runtime is available on a computer."""
    versions_text = ", ".join(versions)
    problem = f"no ARM64 wheel is known for {runtime} {versions_text}: the device's runtime cannot be run here"
    return Emulation(emulator="none", runs=(), problem=problem, is_unmeasured=True)


def machines(runtime: str, versions: tuple[str, ...], cpus: tuple[str, ...], progress: Progress) -> tuple[Machine, ...]:
    """Return each runtime version that can be had on each CPU model, installed and self-tested.

    On an ARM64 host the runtimes run natively, and the CPU models stand back.

    Raises:
        UsageError: an unknown CPU.
        UnsupportedError: a CPU that QEMU emulates wrongly, or not at all.
        EnvironmentProblem: QEMU, the compiler or the network is missing, or the self-test fails.
        IntegrityError: a wheel is not the one that is pinned.
    """
    wheels, _ = find_wheels(runtime, versions)
    models = (None,) if is_native() else tuple(find_cpu(name) for name in cpus)
    installed = [ensure_installed(wheel, progress) for wheel in wheels]
    found = tuple(Machine(runtime=one, cpu=cpu) for one in installed for cpu in models)
    ensure_tested(found, progress)
    return found


class Emulator:
    """Runs the artifacts of one job on their devices' kernels; targets with equal devices share a run."""

    def __init__(self, options: DeviceConfig, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        # each with the artifact that it was made from: alive, so that no later artifact can have its id
        self._done: dict[tuple[int, Machines, tuple[str, ...]], tuple[Artifact, Artifact]] = {}
        self._machines: dict[tuple[str, tuple[str, ...], tuple[str, ...]], tuple[Machine, ...]] = {}

    def prepare(self, targets: Sequence[TargetProfile]) -> None:
        """Install and self-test what the targets need, before anything slow starts.

        Raises:
            EdgeqError: as `machines`.
        """
        for target in targets:
            if wants_emulation(target, self._options):
                self._machines_of(target)

    def run(self, artifact: Artifact, inputs: Inputs, target: TargetProfile, scheme: str, label: str) -> Artifact:
        """Return the artifact with the results of the target's device.

        Raises:
            EdgeqError: as `verify.emulate.run.emulate`.
        """
        reason = not_emulated(target, self._options)
        if reason:
            return _with(artifact, not_emulated=reason)
        if not wants_emulation(target, self._options):
            return artifact
        found = self._machines_of(target)
        if not found:
            return _with(artifact, emulation=no_sdk(target.runtime, target.app.runtimes))
        key = (id(artifact), found, target.app.runtimes)
        if key not in self._done:
            emulated = self._emulated(artifact, inputs, found, scheme, label)
            self._done[key] = (artifact, _without_wheel(emulated, target))
        return self._done[key][1]

    def _machines_of(self, target: TargetProfile) -> Machines:
        cpus = self._options.cpu or target.device.cpu
        if target.backend == NPU:
            return find_npus(cpus)
        key = (target.runtime, target.app.runtimes, cpus)
        if key not in self._machines:
            self._machines[key] = machines(*key, self._progress)
        return self._machines[key]

    def _emulated(self, artifact: Artifact, inputs: Inputs, found: Machines, scheme: str, label: str) -> Artifact:
        spec = EmulateSpec(
            artifact=artifact.lowered.path,
            machines=found,
            emulator=emulator_of(found),
            observed=artifact.observed,
            output_steps=artifact.quantized.output_steps,
            metric=inputs.metric,
            labelled=inputs.is_evaluation and (inputs.samples.labelled or inputs.metric is not None),
            timeout_s=self._options.timeout_s,
            progress=self._progress,
            label=label,
            scheme=scheme,
        )
        emulated = emulate(spec)
        golden = artifact.golden
        if emulated.golden:
            golden = golden_set(
                emulated.golden[0], artifact.quantized.output_steps, scheme=scheme, made_on=emulated.report.runs[0].cpu
            )
        return dataclasses.replace(_with(artifact, emulation=emulated.report), golden=golden)


def _without_wheel(artifact: Artifact, target: TargetProfile) -> Artifact:
    """Note the runtimes in the field that could not be run."""
    emulation = artifact.verified.emulation
    if target.backend == NPU:  # its runtime is no wheel's for ARM64
        return artifact
    _, missing = find_wheels(target.runtime, target.app.runtimes)
    if emulation is None or not missing:
        return artifact
    return _with(artifact, emulation=dataclasses.replace(emulation, without_wheel=missing))


def _with(artifact: Artifact, *, emulation: Emulation | None = None, not_emulated: str = "") -> Artifact:
    verified: VerifyReport = dataclasses.replace(artifact.verified, emulation=emulation, not_emulated=not_emulated)
    return dataclasses.replace(artifact, verified=verified)


# --- The device's part of `verify_bundle`: a bundle on its device's kernels, held to its golden samples and the
# host.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSetting:
    """The machines that stand for a bundle's device, and how to use them.

    Attributes:
        emulator: description of what runs them.
        session: the stay on a real device; None for the emulator.
    """

    machines: Machines
    options: DeviceConfig
    progress: Progress
    emulator: str
    session: Session | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """What the device's kernels made of a bundle, and the gates that follow.

    Attributes:
        measures: a real device's times; None for the emulator, or where nothing ran.
        outputs: of the first machine for the golden samples, [samples, …] each; none where nothing ran.
    """

    emulation: Emulation
    gates: tuple[Gate, ...]
    measures: DeviceMeasures | None = None
    outputs: tuple[Any, ...] = ()


@contextmanager
def device_setting(manifest: Manifest, options: DeviceConfig, progress: Progress) -> Iterator[DeviceSetting | None]:
    """Yield what a bundle's kernels are run on besides this host: None, the emulator, or a real device.

    Raises:
        UsageError: no CPU is known for the target, or an unknown one was named.
        UnsupportedError: no wheel holds the target's runtime.
        EnvironmentProblem: QEMU, the compiler, the network or the device is missing.
    """
    check_box(manifest, options.on)
    if options.on == ON or (options.on == "host" and manifest.target.backend != NPU):
        yield None
    elif not is_link(options.on):
        yield _emulated(manifest, options, progress)
    else:
        with open_session(parse_link(options.on)) as session:
            # install the runtime on the real device, and self-test it
            target, board = manifest.target, session.board
            if target.backend in (NPU, *ETHOS_U):
                what = f"target {target.name} runs on an NPU, but edgeq's runners on real devices use CPUs"
                raise UnsupportedError(
                    what, "verify in the emulator: --on emulator" if target.backend == NPU else "omit --on"
                )
            if board.arch != target.arch:
                what = f"target {target.name} needs {target.arch}, but {board.title} is {board.arch}"
                raise EnvironmentProblem(what, f"choose a device with {target.arch}: --on ssh:HOST or --on adb:SERIAL")
            version = manifest.runtime.oldest_in_field
            wheels, _ = find_wheels(target.runtime, (version,), board.arch)
            if not wheels:
                what = f"edgeq has no {target.runtime} {version} for a device with {board.arch}"
                raise UnsupportedError(what, "verify on this host: omit --on")
            machine = Machine(runtime=ensure_installed(wheels[0], progress), cpu=None, device=board.title)
            with progress.task(f"self-test {machine.name}"):
                found = tuple(hold_all((machine,), session))
            yield DeviceSetting(
                machines=found, options=options, progress=progress, emulator=board.title, session=session
            )


def _emulated(manifest: Manifest, options: DeviceConfig, progress: Progress) -> DeviceSetting:
    """Return the machines that stand for a bundle's device, installed and self-tested.

    The CPU models are those of --cpu, or those that it was packaged with, or those of the shipped target of its name.

    Raises:
        UsageError: no CPU is known for the target, or an unknown one was named.
        UnsupportedError: no ARM64 target, or no wheel holds its runtime.
        EnvironmentProblem: QEMU, the compiler or the network is missing.
    """
    target = manifest.target
    if target.arch != "arm64":
        what = f"target {target.name} needs {target.arch}, but the emulator runs ARM64 kernels"
        raise UnsupportedError(what, "verify on this host: omit --on emulator")
    why = why_not_emulated(target.backend)
    if why:
        raise UnsupportedError(f"target {target.name} cannot be emulated: {why}", "omit --on emulator")
    if target.backend == NPU:
        npus = find_npus(options.cpu or _cpus(manifest))
        return DeviceSetting(machines=npus, options=options, progress=progress, emulator=emulator_of(npus))
    versions = (manifest.runtime.oldest_in_field,)
    found = machines(target.runtime, versions, options.cpu or _cpus(manifest), progress)
    if not found:
        what = f"no ARM64 wheel is known for {target.runtime} {versions[0]}, the oldest in the field"
        raise UnsupportedError(what, "verify on this host: omit --on emulator")
    return DeviceSetting(machines=found, options=options, progress=progress, emulator=emulator_of(found))


def _cpus(manifest: Manifest) -> tuple[str, ...]:
    # an ARM64 host packages on its own processor, which is no model
    emulated = [run.cpu for run in manifest.emulation.runs if run.cpu != NATIVE] if manifest.emulation else []
    return tuple(dict.fromkeys(emulated)) or cores_of(manifest)


def on_device(
    bundle: Bundle,
    golden: GoldenSet,
    golden_runs: Sequence[tuple[Batch, Outputs]],
    evaluation: Evaluation | None,
    runtime: HostRuntime,
    setting: DeviceSetting,
) -> OnDevice:
    """Run the golden samples, and a sub-set of the evaluation data, on every machine.

    Args:
        bundle: as it lies on disk.
        golden: its recorded inputs and outputs.
        golden_runs: each golden sample in a batch of its own, with the host's outputs.
        evaluation: labelled data, or None.
        runtime: the host's, with the artifact loaded.
        setting: the machines, and how to use them.

    Raises:
        EdgeqError: as `verify.emulate.run.emulate`.
    """
    manifest = bundle.manifest
    first = tuple(Observed(batch=batch, host=host, fp32=None, scored=False) for batch, host in golden_runs)
    more = _observed(evaluation.samples, manifest, runtime, setting.options) if evaluation else ()
    emulated = emulate(
        EmulateSpec(
            artifact=bundle.artifact,
            machines=setting.machines,
            emulator=setting.emulator,
            observed=(*first, *more),
            output_steps=(),
            metric=evaluation.metric if evaluation else None,
            labelled=evaluation is not None and (evaluation.samples.labelled or evaluation.metric is not None),
            timeout_s=setting.options.timeout_s,
            progress=setting.progress,
            label=bundle.manifest.target.name,
            scheme=manifest.scheme,
            threads=bundle.manifest.threads if setting.session else 1,
            launcher=setting.session,
        )
    )
    measured = [golden_set(samples[: len(first)], (), scheme=manifest.scheme) for samples in emulated.golden]
    return OnDevice(
        emulation=emulated.report,
        gates=_gates(manifest, golden, measured, emulated),
        measures=_measured(bundle, first[0], setting, emulated),
        outputs=measured[0].outputs if measured else (),
    )


def _measured(bundle: Bundle, first: Observed, setting: DeviceSetting, emulated: Emulated) -> DeviceMeasures | None:
    """Time the first golden sample where a real device ran it before."""
    timed = setting.machines[0]
    if setting.session is None or not emulated.report.runs or not isinstance(timed, Machine):
        return None

    with setting.progress.task(f"time {bundle.manifest.target.name} on {setting.emulator}"):
        return measure(
            setting.session,
            timed.runtime,
            bundle.artifact,
            first.batch.inputs,
            threads=bundle.manifest.threads,
            timeout_s=setting.options.timeout_s,
        )


def _gates(
    manifest: Manifest, golden: GoldenSet, measured: Sequence[GoldenSet], emulated: Emulated
) -> tuple[Gate, ...]:
    runs = emulated.report.runs
    return (
        device_gate(manifest.scheme, emulated.report),
        *(_golden_gate(run, golden, own) for run, own in zip(runs, measured, strict=False)),
        *(_score_gate(run) for run in runs if run.rescored is not None),
    )


def _observed(data: Dataset, manifest: Manifest, runtime: HostRuntime, options: DeviceConfig) -> tuple[Observed, ...]:
    """Run a sub-set of the data on the host."""
    specs = input_specs(manifest)
    limit = options.samples or subset_size(manifest.layers.macs or 0, manifest.scheme)
    subset = Subset(count=data.count, rows=batch_size(data, specs) or 1, limit=limit, first=0)
    needs_all = bool(state_specs(specs))  # a state is that of all steps before
    taken = (batch for index, batch in enumerate(batches(data, specs)) if needs_all or subset.keeps(index))
    return tuple(
        Observed(batch=fed, host=outputs, fp32=None)
        for index, (_, fed, outputs) in enumerate(run_in_order(taken, specs, lambda fed: runtime.run(fed.inputs)))
        if not needs_all or subset.keeps(index)
    )


def _golden_gate(run: DeviceRun, golden: GoldenSet, measured: GoldenSet) -> Gate:
    gate = golden_gate(compare_golden(golden, measured))
    return dataclasses.replace(gate, name=f"golden on {run.cpu}")


def _score_gate(run: DeviceRun) -> Gate:
    """Hold the score on the device's kernels to the host's, over the same samples (exit code 5)."""
    score, host = run.score or 0.0, run.host_score or 0.0
    worse = not score >= host or math.isnan(score)
    return Gate(
        name=f"score on {run.cpu}",
        outcome="failed" if worse else "ok",
        limit=f">= {host:.4g}, the host's",
        measured=f"{score:.4g} over {counted(run.scored, 'sample')}",
        detail=f"{counted(run.rescored, 'sample')} scored differently"
        if run.rescored
        else "every sample scored as on the host",
        exit_code=ExitCode.ACCURACY,
    )


# --- The GPU's part of `verify_bundle`: whether the box is one that the artifact runs on, and the serving check.


ON = "cuda"


def check_box(manifest: Manifest, on: str) -> None:
    """Check before anything runs that `--on cuda` is possible.

    Raises:
        UnsupportedError: the bundle is for no GPU.
        EnvironmentProblem: there is no CUDA device.
    """
    if on != ON:
        return

    if manifest.cuda is None:
        what = f"target {manifest.target.name} runs on {manifest.target.runtime}, not on CUDA"
        raise UnsupportedError(what, "omit --on cuda")
    require_cuda()


def box_gates(manifest: Manifest, runtime: HostRuntime) -> tuple[Gate, ...]:
    """Check this machine against the manifest's requirements (exit code 3); nothing for other runtimes."""
    if manifest.cuda is None:
        return ()
    version = importlib.metadata.version("torch").partition("+")[0]
    return (box_gate(manifest.cuda, version, runtime.gpu()),)


def served(
    bundle: Bundle, golden: GoldenSet, *, timeout_s: float, device: Literal["cuda", "cpu"] = "cuda"
) -> tuple[Gate, DeviceMeasures]:
    """Run the golden samples in a process that has torch and no edgeq.

    Args:
        bundle: as it lies on disk.
        golden: its recorded inputs and outputs.
        timeout_s: for all of it.
        device: where the artifact runs.

    Returns:
        What holds its outputs to the recorded ones (exit code 7), and its times.

    Raises:
        EdgeqError: as `verify.serving.serve`.
    """
    manifest = bundle.manifest
    compiled = manifest.compiled()
    artifact = bundle.folder / compiled.path if compiled and device == "cuda" else bundle.artifact
    widen = manifest.scheme == "storage-fp16" and device == "cpu"
    samples = golden_batches(manifest, golden_dataset(bundle, golden))
    inputs = [batch.inputs for batch in samples]
    result = serve(artifact, inputs, device=device, widen=widen, threads=manifest.threads, timeout_s=timeout_s)
    pairs = zip(samples, result.outputs, strict=True)
    taken = [(batch.samples[0], of_sample(batch, outputs, 0)) for batch, outputs in pairs]
    gate = golden_gate(compare_golden(golden, golden_set(taken, (), scheme=manifest.scheme)))
    return dataclasses.replace(gate, name=f"serving on {device}"), result.measures
