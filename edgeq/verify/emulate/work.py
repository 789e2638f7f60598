"""What a runner process is told to do, what it leaves, and where it is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from edgeq.verify.emulate.container import Arrays
from edgeq.verify.emulate.cpus import Cpu
from edgeq.verify.emulate.runtimes import Installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one runner process is to do.

    Attributes:
        runtime: where the runner and its libraries lie.
        cpu: the model to emulate; None runs natively, on an ARM64 host.
        model: the artifact.
        samples: for each sample its input arrays, in order.
        warmup, runs: inferences of each sample that are not timed, and that are.
        threads: of the runtime's pool. Under QEMU one is the fastest: run processes side by side instead.
        qemu_options: more options for QEMU, such as `-plugin`.
        trace: whether to record the runtime's event trace (ExecuTorch's ETDump).
        where: what runs it where no model is emulated, for people.
    """

    runtime: Installed
    cpu: Cpu | None
    model: Path
    samples: tuple[Arrays, ...]
    warmup: int = 0
    runs: int = 1
    threads: int = 1
    qemu_options: tuple[str, ...] = ()
    trace: bool = False
    where: str = "this host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The core that the runtime itself detected.

    Attributes:
        uarch: pytorch/cpuinfo's code of the micro-architecture.
        midr: the main ID register.
        features: the instruction-set extensions that decide about kernels.
    """

    uarch: int
    midr: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a runner left.

    Attributes:
        outputs: of the last inference of each sample.
        latencies_ms: of each timed inference of each sample. Under QEMU they say nothing about the device.
        load_ms: likewise.
        peak_memory_bytes: how far the process's resident set rose; under QEMU it holds translated code too.
        stderr: what the runner and the runtime said, for QEMU's plugins.
        trace: the event trace's bytes, where it was asked for.
    """

    outputs: tuple[Arrays, ...]
    latencies_ms: tuple[tuple[float, ...], ...]
    load_ms: float
    peak_memory_bytes: int
    threads: int
    engine: str
    core: Core
    stderr: str
    trace: bytes | None = None


class Launcher(Protocol):
    """Where runners are started: here, or on a device."""

    @property
    def name(self) -> str:
        """What is under way, for people."""

    def command(self, work: Work, place: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the command that runs a work to its end, its inputs lying in `place`, and its environment."""

    def finish(self, work: Work, place: Path, status: int) -> int:
        """Bring the results into `place`; return the runner's own status, negative for a signal."""


def arguments(work: Work, model: PurePath, place: PurePath) -> list[str]:
    """Return a runner's arguments.

    Args:
        work: what it is to do.
        model: where the artifact lies for it.
        place: where inputs lie, and results go.
    """
    options: dict[str, object] = {"model": model, "warmup": work.warmup, "runs": work.runs, "threads": work.threads}
    options |= {name: place / name for name in ("inputs", "outputs", "report")}
    trace = {"etdump": place / "trace"} if work.trace else {}
    return list(_flags(options | trace))


def _flags(options: dict[str, object]) -> Iterator[str]:
    for name, value in options.items():
        yield f"--{name}"
        yield str(value)
