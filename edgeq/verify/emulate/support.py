"""Which targets are run on their device's kernels, and whether this host can do that."""

from __future__ import annotations

import importlib.metadata

from edgeq.core.config import DeviceConfig
from edgeq.core.errors import UsageError
from edgeq.core.socs import find_soc
from edgeq.core.system import check_extras
from edgeq.core.targets import NPU, TargetProfile, why_not_emulated
from edgeq.verify.emulate.cpus import find_cpu
from edgeq.verify.emulate.install import find_compiler, find_wheels, is_native, runtime_folder
from edgeq.verify.emulate.selftest import Npu

OPTED_OUT = "not run on the device's kernels: --on host"


def has_device(target: TargetProfile) -> bool:
    """Whether there are ARM64 CPU models that stand for the target's devices."""
    return _can_be_emulated(target) and bool(target.device.cpu)


def _can_be_emulated(target: TargetProfile) -> bool:
    return target.arch == "arm64" and not why_not_emulated(target.backend)


def wants_emulation(target: TargetProfile, options: DeviceConfig) -> bool:
    """Whether a target is to be run on its device's kernels.

    --on host does not leave an NPU out: a file that is right on a CPU may be useless there.
    """
    return (options.on == "emulator" or target.backend == NPU) and (
        has_device(target) or bool(options.cpu and _can_be_emulated(target))
    )


def not_emulated(target: TargetProfile, options: DeviceConfig) -> str:
    """Return why a target that has a device is not run on its kernels; "" otherwise."""
    return OPTED_OUT if has_device(target) and options.on == "host" and not wants_emulation(target, options) else ""


def check_tools(options: DeviceConfig, targets: tuple[TargetProfile, ...]) -> None:
    """Check before a long run that the targets can be emulated here.

    Raises:
        UsageError: as `check_options`, or an unknown CPU.
        UnsupportedError: QEMU emulates the CPU wrongly or not at all.
        EnvironmentProblem: QEMU is missing, or the compiler where a runtime must be compiled.
    """
    check_options(options, targets)
    for target in targets:
        if not wants_emulation(target, options):
            continue
        if target.backend == NPU:
            find_npus(options.cpu or target.device.cpu)
            continue
        for name in () if is_native() else options.cpu or target.device.cpu:
            find_cpu(name)
        wheels, _ = find_wheels(target.runtime, target.app.runtimes)
        if not all(runtime_folder(wheel).exists() for wheel in wheels):
            find_compiler()


def find_npus(names: tuple[str, ...]) -> tuple[Npu, ...]:
    """Return the NPUs of SoCs in Qualcomm's emulator.

    Raises:
        UsageError: an unknown SoC.
        EnvironmentProblem: onnxruntime-qnn is not installed.
    """
    socs = [find_soc(name) for name in names]
    check_extras((NPU,))
    version = importlib.metadata.version("onnxruntime-qnn")
    return tuple(Npu(soc=soc, version=version) for soc in socs)


def check_options(options: DeviceConfig, targets: tuple[TargetProfile, ...]) -> None:
    """Refuse options that do not apply to any target.

    Raises:
        UsageError: --cpu without a target that can be emulated, or with --on host; a real device, which needs a whole
            bundle.
    """
    if options.on not in ("emulator", "host"):
        what = f"--on {options.on}: a real device runs finished bundles"
        raise UsageError(what, f"package without it, then run: edgeq verify BUNDLE --on {options.on}")
    if not options.cpu:
        return
    if options.on == "host":
        raise UsageError("--cpu selects emulated CPUs, but --on host turns emulation off", "omit one of them")
    if not any(_can_be_emulated(target) for target in targets):
        raise UsageError(
            ("--cpu applies to targets whose ARM64 kernels edgeq emulates, but no such target is given"), "omit --cpu"
        )
