"""The self-test: a known artifact on each runtime and CPU model must give its known outputs.

`selftest/` holds the digits model for each runtime, with four inputs and the outputs of x86 kernels; correct ARM64
kernels give the same. Those for ExecuTorch and TorchScript are as edgeq 0.1.0 packaged them (tests/golden/0.1.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.core.config import Progress
from edgeq.core.errors import EnvironmentProblem, VerificationError
from edgeq.core.files import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgeq.core.lazy import np
from edgeq.core.socs import Soc
from edgeq.verify.emulate.cpus import Cpu, emulator_digest, qemu_version
from edgeq.verify.emulate.install import Installed, emulator_folder, runtime_digest
from edgeq.verify.emulate.runner import Launcher, Ran, Work, run_all
from edgeq.verify.metrics import Comparison

_FOLDER = Path(__file__).with_name("selftest")

_ARTIFACTS = {"executorch": "digits.pte", "torchscript": "digits.ptl", "onnx": "digits.ort", "litert": "digits.tflite"}

_TIMEOUT_S = 300.0

NATIVE = "native"

# outputs that are one int8 step off everywhere are at 34.9 dB; the kernels of every good CPU model give equal ones
_LEAST_SQNR_DB = 34.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A runtime on a CPU model.

    Attributes:
        cpu: None for a processor that needs no emulation.
        device: what that processor is called.
    """

    runtime: Installed
    cpu: Cpu | None
    device: str = NATIVE

    @property
    def cpu_name(self) -> str:
        """The model's name, or the device's."""
        return self.cpu.name if self.cpu else self.device

    @property
    def runtime_title(self) -> str:
        """Package and version, as text."""
        return self.runtime.wheel.title

    @property
    def name(self) -> str:
        """Runtime and CPU, as text."""
        return f"{self.runtime_title} on {self.cpu_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Npu:
    """The NPU of a Snapdragon in Qualcomm's own emulator.

    That the emulator equals a phone was not shown.

    Attributes:
        version: of onnxruntime-qnn.
    """

    soc: Soc
    version: str

    @property
    def cpu_name(self) -> str:
        """The SoC's name."""
        return self.soc.name

    @property
    def runtime_title(self) -> str:
        """Package and version, as text."""
        return f"onnxruntime-qnn {self.version}"


def emulator_of(machines: Sequence[Machine | Npu]) -> str:
    """Return what runs machines of this host: QEMU or Qualcomm's emulator with its version, or `native`."""
    if isinstance(machines[0], Npu):
        return f"HTP emulator of {machines[0].runtime_title}"
    is_native = all(isinstance(machine, Machine) and machine.cpu is None for machine in machines)
    return NATIVE if is_native else qemu_version()


def ensure_tested(machines: Sequence[Machine], progress: Progress) -> None:
    """Self-test each machine that has not yet passed with the present QEMU and C library.

    Raises:
        EnvironmentProblem: the emulation of a model gives wrong outputs, or does not run at all.
    """
    untested = [machine for machine in machines if not _has_passed(machine)]
    if not untested:
        return
    names = ", ".join(machine.name for machine in untested)
    with progress.task(f"self-test {names}", len(untested), "devices") as task:
        for machine in hold_all(untested):
            write_atomic(_mark(machine), canonical_json(_facts(machine)))
            task.advance()


def hold_all(machines: Sequence[Machine], launcher: Launcher | None = None) -> Iterator[Machine]:
    """Run the known artifact on each machine, and yield those with correct outputs.

    Args:
        machines: of one kind.
        launcher: starts their runners; None for this host.

    Raises:
        EnvironmentProblem: a machine gives wrong outputs, or does not run at all.
    """
    parallel = None if launcher is None else 1
    try:
        works = [_work(machine) for machine in machines]
        results = run_all(works, timeout_s=_TIMEOUT_S, parallel=parallel, launcher=launcher)
    except VerificationError as err:
        raise EnvironmentProblem(f"the self-test of the device's runtimes failed: {err.what}", err.fix) from err
    for machine, ran in zip(machines, results, strict=True):
        _hold(machine, ran)
        yield machine


def _work(machine: Machine) -> Work:
    with np.load(_FOLDER / "digits.npz") as arrays:
        inputs = arrays["inputs"]
    return Work(
        runtime=machine.runtime,
        cpu=machine.cpu,
        model=_FOLDER / _ARTIFACTS[machine.runtime.wheel.runtime],
        samples=tuple((row[None],) for row in inputs),
        where=machine.cpu_name,
    )


def _hold(machine: Machine, ran: Ran) -> None:
    """Compare with the known outputs."""
    name = _ARTIFACTS[machine.runtime.wheel.runtime]
    with np.load(_FOLDER / "digits.npz") as arrays:
        expected = arrays[f"outputs_{name.rpartition('.')[2]}"]
    sums = Comparison()
    for row, (output,) in zip(expected, ran.outputs, strict=True):
        sums.add((row[None],), (output,))
    if not sums.sqnr_db >= _LEAST_SQNR_DB:  # NaN fails too
        what = f"{machine.name} fails its self-test: {sums.sqnr_db:.1f} dB against known outputs"
        fix = "this QEMU emulates that CPU wrongly: choose another --cpu, or install a newer QEMU"
        raise EnvironmentProblem(what, fix if machine.cpu else "this device gives wrong results: try another device")


def _has_passed(machine: Machine) -> bool:
    try:
        return _mark(machine).read_bytes() == canonical_json(_facts(machine))
    except OSError:
        return False


def _mark(machine: Machine) -> Path:
    wheel = machine.runtime.wheel
    return emulator_folder() / "selftests" / f"{wheel.package}-{wheel.version}-{machine.cpu_name}.json"


def _facts(machine: Machine) -> dict[str, str]:
    artifact = _FOLDER / _ARTIFACTS[machine.runtime.wheel.runtime]
    return {
        "runtime": runtime_digest(machine.runtime.wheel),
        "artifact": sha256_file(artifact),
        "cpu": sha256_bytes(repr(machine.cpu).encode()),
        "emulator": emulator_digest(),
    }
