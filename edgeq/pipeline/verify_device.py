"""The emulated part of `verify_bundle`: a bundle on its device's kernels, held to its golden samples and the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeq.artifacts import DeviceRun, Emulation, Gate, GoldenSet
from edgeq.errors import ExitCode, UnsupportedError, UsageError
from edgeq.job import DeviceOptions, Progress
from edgeq.pipeline.emulate import machines
from edgeq.pipeline.evaluation import Evaluation, input_specs
from edgeq.pipeline.promises import golden_gate
from edgeq.profiles import profile_files
from edgeq.samples import Batch, Dataset, batch_size, batches
from edgeq.target import load_target, why_not_run

if TYPE_CHECKING:
    from edgeq.bundle.reader import Bundle
    from edgeq.manifest import Manifest
    from edgeq.verify.emulate.run import Emulated
    from edgeq.verify.emulate.selftest import Machine
    from edgeq.verify.emulate.subset import Observed
    from edgeq.verify.host import HostRuntime
    from edgeq.verify.metrics import Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSetting:
    """The machines that stand for a bundle's device, and how to use them."""

    machines: tuple[Machine, ...]
    options: DeviceOptions
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """What the device's kernels made of a bundle, and the gates that follow."""

    emulation: Emulation
    gates: tuple[Gate, ...]


def device_setting(manifest: Manifest, options: DeviceOptions, progress: Progress) -> DeviceSetting:
    """Return the machines that stand for a bundle's device, installed and self-tested.

    The CPU models are those of --cpu, or those that it was packaged with, or those of the shipped target of its name.

    Raises:
        UsageError: no CPU is known for the target, or an unknown one was named.
        UnsupportedError: no ARM64 target, or no wheel holds its runtime.
        EnvironmentProblem: QEMU, the compiler or the network is missing.
    """
    target = manifest.target
    if target.arch != "arm64":
        what = f"target {target.name} runs on {target.arch}, and the emulator runs ARM64 kernels"
        raise UnsupportedError(what, "verify on this host: leave --on emulator out")
    why = why_not_run(target.backend)
    if why:
        raise UnsupportedError(f"target {target.name} cannot be emulated: {why}", "leave --on emulator out")
    versions = (manifest.runtime.oldest_in_field,)
    found = machines(target.runtime, versions, options.cpu or _cpus(manifest), progress)
    if not found:
        what = f"no ARM64 wheel is known for {target.runtime} {versions[0]}, the oldest in the field"
        raise UnsupportedError(what, "verify on this host: leave --on emulator out")
    return DeviceSetting(machines=found, options=options, progress=progress)


def _cpus(manifest: Manifest) -> tuple[str, ...]:
    if manifest.emulation is not None:
        return tuple(dict.fromkeys(run.cpu for run in manifest.emulation.runs))
    name = manifest.target.name
    cpus = load_target(name).device.cpu if name in profile_files() else ()
    if not cpus:
        raise UsageError(f"no CPU model is known for target {name}", "name one, such as --cpu cortex-a76")
    return cpus


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
    from edgeq.verify.emulate.run import EmulateSpec, emulate
    from edgeq.verify.emulate.subset import Observed

    manifest, options = bundle.manifest, setting.options
    first = tuple(Observed(batch=batch, host=host, fp32=None, scored=False) for batch, host in golden_runs)
    more = _observed(evaluation.samples, manifest, runtime, options) if evaluation else ()
    spec = EmulateSpec(
        artifact=bundle.artifact,
        machines=setting.machines,
        observed=(*first, *more),
        output_steps=(),
        metric=evaluation.metric if evaluation else None,
        labelled=evaluation is not None and (evaluation.samples.labelled or evaluation.metric is not None),
        timeout_s=options.timeout_s,
        progress=setting.progress,
        label=manifest.target.name,
    )
    emulated = emulate(spec)
    return OnDevice(emulation=emulated.report, gates=_gates(manifest, golden, len(first), emulated))


def _gates(manifest: Manifest, golden: GoldenSet, count: int, emulated: Emulated) -> tuple[Gate, ...]:
    from edgeq.check.device import device_gate
    from edgeq.verify.golden import golden_set

    runs = emulated.report.runs
    measured = [golden_set(samples[:count], (), scheme=manifest.scheme) for samples in emulated.golden]
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
        measured=f"{score:.4g} over {run.scored} samples",
        detail=f"{run.rescored} samples scored otherwise" if run.rescored else "every sample as on the host",
        exit_code=ExitCode.ACCURACY,
    )
