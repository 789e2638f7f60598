"""The device's part of `verify_bundle`: a bundle on its device's kernels, held to its golden samples and the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import DeviceMeasures, DeviceRun, Emulation, Gate, GoldenSet
from edgeq.errors import EnvironmentProblem, ExitCode, UnsupportedError
from edgeq.job import DeviceOptions, Progress
from edgeq.pipeline.emulate import machines
from edgeq.pipeline.evaluation import Evaluation, input_specs
from edgeq.pipeline.profile import cores_of
from edgeq.pipeline.promises import golden_gate
from edgeq.pipeline.verify_gpu import ON as CUDA
from edgeq.pipeline.verify_gpu import check_box
from edgeq.samples import Batch, Dataset, batch_size, batches
from edgeq.target import why_not_emulated
from edgeq.units import counted

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.manifest import Manifest
    from edgeq.verify.emulate.run import Emulated, EmulateSpec
    from edgeq.verify.emulate.selftest import Machine
    from edgeq.verify.emulate.subset import Observed
    from edgeq.verify.host import HostRuntime
    from edgeq.verify.metrics import Outputs
    from edgeq.verify.remote.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSetting:
    """The machines that stand for a bundle's device, and how to use them.

    Attributes:
        emulator: what runs them, in words.
        session: the stay on a real device; None for the emulator.
    """

    machines: tuple[Machine, ...]
    options: DeviceOptions
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
def device_setting(manifest: Manifest, options: DeviceOptions, progress: Progress) -> Iterator[DeviceSetting | None]:
    """Yield what a bundle's kernels are run on besides this host: None, the emulator, or a real device.

    Raises:
        UsageError: no CPU is known for the target, or an unknown one was named.
        UnsupportedError: no wheel holds the target's runtime.
        EnvironmentProblem: QEMU, the compiler, the network or the device is missing.
    """
    from edgeq.verify.remote.link import is_link, parse_link
    from edgeq.verify.remote.session import open_session

    check_box(manifest, options.on)
    if options.on in ("host", CUDA):
        yield None
    elif not is_link(options.on):
        yield _emulated(manifest, options, progress)
    else:
        with open_session(parse_link(options.on)) as session:
            yield _remote(manifest, options, session, progress)


def _remote(manifest: Manifest, options: DeviceOptions, session: Session, progress: Progress) -> DeviceSetting:
    """Return the runtime on a real device, installed and self-tested."""
    from edgeq.verify.emulate.build import ensure_installed
    from edgeq.verify.emulate.runtimes import find_wheels
    from edgeq.verify.emulate.selftest import Machine, hold_all

    target, board = manifest.target, session.board
    if board.arch != target.arch:
        what = f"target {target.name} runs on {target.arch}, and {board.title} is {board.arch}"
        raise EnvironmentProblem(what, f"name a device with {target.arch}: --on ssh:HOST or --on adb:SERIAL")
    version = manifest.runtime.oldest_in_field
    wheels, _ = find_wheels(target.runtime, (version,), board.arch)
    if not wheels:
        what = f"edgeq has no {target.runtime} {version} for a device with {board.arch}"
        raise UnsupportedError(what, "verify on this host: leave --on out")
    machine = Machine(runtime=ensure_installed(wheels[0], progress), cpu=None, device=board.title)
    with progress.task(f"self-test {machine.name}"):
        found = tuple(hold_all((machine,), session))
    return DeviceSetting(machines=found, options=options, progress=progress, emulator=board.title, session=session)


def _emulated(manifest: Manifest, options: DeviceOptions, progress: Progress) -> DeviceSetting:
    """Return the machines that stand for a bundle's device, installed and self-tested.

    The CPU models are those of --cpu, or those that it was packaged with, or those of the shipped target of its name.

    Raises:
        UsageError: no CPU is known for the target, or an unknown one was named.
        UnsupportedError: no ARM64 target, or no wheel holds its runtime.
        EnvironmentProblem: QEMU, the compiler or the network is missing.
    """
    from edgeq.verify.emulate.selftest import emulator_of

    target = manifest.target
    if target.arch != "arm64":
        what = f"target {target.name} runs on {target.arch}, and the emulator runs ARM64 kernels"
        raise UnsupportedError(what, "verify on this host: leave --on emulator out")
    why = why_not_emulated(target.backend)
    if why:
        raise UnsupportedError(f"target {target.name} cannot be emulated: {why}", "leave --on emulator out")
    versions = (manifest.runtime.oldest_in_field,)
    found = machines(target.runtime, versions, options.cpu or _cpus(manifest), progress)
    if not found:
        what = f"no ARM64 wheel is known for {target.runtime} {versions[0]}, the oldest in the field"
        raise UnsupportedError(what, "verify on this host: leave --on emulator out")
    return DeviceSetting(machines=found, options=options, progress=progress, emulator=emulator_of(found))


def _cpus(manifest: Manifest) -> tuple[str, ...]:
    from edgeq.verify.emulate.selftest import NATIVE

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
    from edgeq.verify.emulate.run import emulate
    from edgeq.verify.emulate.subset import Observed
    from edgeq.verify.golden import golden_set

    manifest = bundle.manifest
    first = tuple(Observed(batch=batch, host=host, fp32=None, scored=False) for batch, host in golden_runs)
    more = _observed(evaluation.samples, manifest, runtime, setting.options) if evaluation else ()
    emulated = emulate(_spec(bundle, (*first, *more), evaluation, setting))
    measured = [golden_set(samples[: len(first)], (), scheme=manifest.scheme) for samples in emulated.golden]
    return OnDevice(
        emulation=emulated.report,
        gates=_gates(manifest, golden, measured, emulated),
        measures=_measured(bundle, first[0], setting, emulated),
        outputs=measured[0].outputs if measured else (),
    )


def _spec(
    bundle: Bundle, observed: tuple[Observed, ...], evaluation: Evaluation | None, setting: DeviceSetting
) -> EmulateSpec:
    from edgeq.verify.emulate.run import EmulateSpec

    return EmulateSpec(
        artifact=bundle.artifact,
        machines=setting.machines,
        emulator=setting.emulator,
        observed=observed,
        output_steps=(),
        metric=evaluation.metric if evaluation else None,
        labelled=evaluation is not None and (evaluation.samples.labelled or evaluation.metric is not None),
        timeout_s=setting.options.timeout_s,
        progress=setting.progress,
        label=bundle.manifest.target.name,
        threads=bundle.manifest.threads if setting.session else 1,
        launcher=setting.session,
    )


def _measured(bundle: Bundle, first: Observed, setting: DeviceSetting, emulated: Emulated) -> DeviceMeasures | None:
    """Time the first golden sample where a real device ran it before."""
    if setting.session is None or not emulated.report.runs:
        return None
    from edgeq.verify.remote.measure import measure

    with setting.progress.task(f"time {bundle.manifest.target.name} on {setting.emulator}"):
        return measure(
            setting.session,
            setting.machines[0].runtime,
            bundle.artifact,
            first.batch.inputs,
            threads=bundle.manifest.threads,
            timeout_s=setting.options.timeout_s,
        )


def _gates(
    manifest: Manifest, golden: GoldenSet, measured: Sequence[GoldenSet], emulated: Emulated
) -> tuple[Gate, ...]:
    from edgeq.check.device import device_gate

    runs = emulated.report.runs
    return (
        device_gate(manifest.scheme, emulated.report),
        *(_golden_gate(run, golden, own) for run, own in zip(runs, measured, strict=False)),
        *(_score_gate(run) for run in runs if run.rescored is not None),
    )


def _observed(data: Dataset, manifest: Manifest, runtime: HostRuntime, options: DeviceOptions) -> tuple[Observed, ...]:
    """Run a sub-set of the data on the host."""
    from edgeq.verify.emulate.subset import Observed, Subset, subset_size

    specs = input_specs(manifest)
    limit = options.samples or subset_size(manifest.layers.macs or 0, manifest.scheme)
    subset = Subset(count=data.count, rows=batch_size(data, specs) or 1, limit=limit, first=0)
    return tuple(
        Observed(batch=batch, host=runtime.run(batch.inputs), fp32=None)
        for index, batch in enumerate(batches(data, specs))
        if subset.keeps(index)
    )


def _golden_gate(run: DeviceRun, golden: GoldenSet, measured: GoldenSet) -> Gate:
    gate, _ = golden_gate(golden, measured)
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
        detail=f"{counted(run.rescored, 'sample')} scored otherwise" if run.rescored else "every sample as on the host",
        exit_code=ExitCode.ACCURACY,
    )
