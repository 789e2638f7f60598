"""The self-test: a known artifact on each runtime and CPU model must give the outputs that it gave elsewhere.

`selftest/` holds the digits model for both runtimes, as edgeq 0.1.0 packaged it (tests/golden/0.1.0), with four
inputs and the outputs of x86 kernels; correct ARM64 kernels give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeq._io import canonical_json, sha256_bytes, sha256_file, write_atomic
from edgeq.errors import EnvironmentProblem, VerificationError
from edgeq.job import Progress
from edgeq.verify.emulate.cpus import Cpu, emulator_digest
from edgeq.verify.emulate.runner import Ran, Work, run_all
from edgeq.verify.emulate.runtimes import Installed, emulator_folder, runtime_digest
from edgeq.verify.metrics import Comparison

_FOLDER = Path(__file__).with_name("selftest")
_ARTIFACTS = {"executorch": "digits.pte", "torchscript": "digits.ptl"}
_TIMEOUT_S = 300.0
# outputs that are one int8 step off everywhere are at 34.9 dB; the kernels of every good CPU model give equal ones
_LEAST_SQNR_DB = 34.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A runtime on a CPU model.

    Attributes:
        cpu: None for this host's own, where it is an ARM64 one.
    """

    runtime: Installed
    cpu: Cpu | None

    @property
    def cpu_name(self) -> str:
        """The model's name, or `native`."""
        return self.cpu.name if self.cpu else "native"

    @property
    def name(self) -> str:
        """Runtime and CPU, for people."""
        return f"{self.runtime.wheel.title} on {self.cpu_name}"


def ensure_tested(machines: Sequence[Machine], progress: Progress) -> None:
    """Self-test each machine that did not pass before with this very QEMU and C library.

    Raises:
        EnvironmentProblem: the emulation of a model gives wrong outputs, or does not run at all.
    """
    untested = [machine for machine in machines if not _has_passed(machine)]
    if not untested:
        return
    names = ", ".join(machine.name for machine in untested)
    with progress.task(f"self-test {names}", len(untested)) as task:
        try:
            results = run_all([_work(machine) for machine in untested], timeout_s=_TIMEOUT_S)
        except VerificationError as err:
            what = f"the self-test of the emulated ARM64 runtimes failed: {err.what}"
            raise EnvironmentProblem(what, err.fix) from err
        for machine, ran in zip(untested, results, strict=True):
            _hold(machine, ran)
            write_atomic(_mark(machine), canonical_json(_facts(machine)))
            task.advance()


def _work(machine: Machine) -> Work:
    with np.load(_FOLDER / "digits.npz") as arrays:
        inputs = arrays["inputs"]
    return Work(
        runtime=machine.runtime,
        cpu=machine.cpu,
        model=_FOLDER / _ARTIFACTS[machine.runtime.wheel.runtime],
        samples=tuple((row[None],) for row in inputs),
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
        raise EnvironmentProblem(what, "this QEMU computes wrongly for that CPU: choose another --cpu, or a newer QEMU")


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
