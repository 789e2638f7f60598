"""Running a model on one CPU model: the C++ runner of a runtime, under QEMU or natively, supervised by this process.

The results are read from files. A runner that fails says why on standard error; one that crashes, hangs or does not
recognize its core is an error here, never a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Protocol

from edgeq.core.errors import EdgeqError, EnvironmentProblem, UnsupportedError, UsageError, VerificationError
from edgeq.core.lazy import NDArray, np
from edgeq.verify.emulate.cpus import Cpu, make_root, qemu_path
from edgeq.verify.emulate.install import Installed
from edgeq.verify.host import executorch_error, onnx_error, signal_name


def run(work: Work, *, timeout_s: float = 600.0, folder: Path | None = None) -> Ran:
    """Run one process to its end.

    Raises:
        EdgeqError: as `run_all`.
    """
    return run_all((work,), timeout_s=timeout_s, folder=folder)[0]


def run_all(
    works: Sequence[Work],
    *,
    timeout_s: float,
    parallel: int | None = None,
    on_sample: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    launcher: Launcher | None = None,
) -> tuple[Ran, ...]:
    """Run several processes, as many at a time as there are cores.

    Args:
        works: one process each.
        timeout_s: for all of them together.
        parallel: how many at a time; None for the number of cores.
        on_sample: called after each sample.
        folder: where the scratch folder goes; None for the system's temporary files.
        launcher: starts the runners; None for this host, under QEMU or natively.

    Returns:
        What each left, in the order of `works`.

    Raises:
        UsageError: the inputs do not fit the model.
        UnsupportedError: the runtime lacks an operator or a delegate.
        VerificationError: the artifact is damaged, the runner crashed (with its signal), the runtime did not recognize
            the core, or the time limit was reached (`TooSlow`).
        EnvironmentProblem: QEMU or the ARM64 C library is missing.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-emulate-", dir=folder) as scratch:
        pool = _Pool(works, Path(scratch), timeout_s, on_sample, launcher or _Here(Path(scratch)))
        with contextlib.closing(pool):
            pool.drain(parallel or usable_cores())
        return tuple(_result(work, Path(scratch) / str(i)) for i, work in enumerate(works))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The processes under way, watched by one thread: so an interrupt ends them all."""

    def __init__(
        self,
        works: Sequence[Work],
        scratch: Path,
        timeout_s: float,
        on_sample: Callable[[], None],
        launcher: Launcher,
    ) -> None:
        self._launcher = launcher
        self._works = works
        self._scratch = scratch
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._on_sample = on_sample
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._done = 0

    def drain(self, parallel: int) -> None:
        waiting = iter(range(len(self._works)))
        while True:
            while len(self._running) < parallel and (index := next(waiting, None)) is not None:
                work = self._works[index]
                place = self._scratch / str(index)
                place.mkdir()
                write_samples(place / "inputs", work.samples)
                command, environment = self._launcher.command(work, place)
                with (place / "stderr").open("wb") as errors:
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=environment,
                        start_new_session=True,  # Ctrl-C is edgeq's to handle
                        cwd=place,
                    )
                self._running[index] = process
                self._selector.register(_stdout(process), selectors.EVENT_READ, index)
            if not self._running:
                return
            self._wait()

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        ready = self._selector.select(left) if left > 0 else []
        if not ready:
            total = sum(len(work.samples) for work in self._works)
            raise TooSlow(self._done, total, self._timeout_s, self._launcher.name)
        for key, _ in ready:
            said = os.read(key.fd, 65536)
            for _ in range(said.count(b"\n")):
                self._done += 1
                self._on_sample()
            if not said:
                self._finish(key.data)

    def _finish(self, index: int) -> None:
        process = self._running.pop(index)
        self._selector.unregister(_stdout(process))
        status = process.wait()
        _stdout(process).close()
        work, place = self._works[index], self._scratch / str(index)
        status = self._launcher.finish(work, place, status)
        if status:
            raise failure(work, status, place)

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
            _stdout(process).close()
        self._selector.close()


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise RuntimeError("the runner was started without a pipe")
    return process.stdout


class _Here:
    """Starts runners on this host."""

    name = "emulation"

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def command(self, work: Work, place: Path) -> tuple[list[str], dict[str, str]]:
        emulator: list[str] = []
        if work.cpu is not None:
            root = make_root(work.cpu, self._scratch)
            emulator = [qemu_path(), "-cpu", work.cpu.name, "-L", str(root), *work.qemu_options]
        # QEMU and the loader take options from the environment
        return [*emulator, str(work.runtime.runner), *arguments(work, work.model.absolute(), place)], {"LC_ALL": "C"}

    def finish(self, _work: Work, _place: Path, status: int) -> int:
        return status


def _result(work: Work, place: Path) -> Ran:
    try:
        report = json.loads((place / "report").read_text())
        core = Core(uarch=report["uarch"], midr=report["midr"], features=tuple(report["features"]))
        ran = Ran(
            outputs=read_samples(place / "outputs"),
            latencies_ms=tuple(tuple(times) for times in report["latencies_ms"]),
            load_ms=report["load_ms"],
            peak_memory_bytes=report["peak_memory_bytes"],
            threads=report["threads"],
            engine=report["engine"],
            core=core,
            stderr=(place / "stderr").read_text(errors="replace"),
            trace=(place / "trace").read_bytes() if work.trace else None,
        )
    except (OSError, ValueError, KeyError) as err:
        what = f"the runner of {work.runtime.wheel.title} ended without an error but left no results ({err})"
        raise VerificationError(what, "run `edgeq emulator install`, then this command again") from err
    _check_core(work, core)
    return ran


def _check_core(work: Work, core: Core) -> None:
    """Refuse results of kernels that were chosen for another core."""
    if work.cpu is None:
        return
    if core.uarch:
        kind, found, expected = "micro-architecture", core.uarch, work.cpu.uarch
    else:
        kind, found, expected = "part number", core.midr >> 4 & 0xFFF, work.cpu.part
    if found == expected:
        return
    what = (
        f"{work.runtime.wheel.title} did not recognize the emulated {work.cpu.name}: it detected the "
        f"{kind} 0x{found:08x} instead of 0x{expected:08x} and chose kernels for that"
    )
    raise VerificationError(what, "choose another --cpu, or another version of qemu-user")


# --- Why a runner gave no result: what its exit status, its signal and its last words mean.


_BAD_INPUTS = 3  # the exit statuses of src/runner.h

_BAD_MODEL = 4

_MISSING_OPERATOR = re.compile(r"(?:Missing operator: \[\d+\] |following ops cannot be found[^:]*: *)(\S+)", re.I)


class TooSlow(VerificationError):
    """The time limit was reached before the last sample (exit code 7)."""

    def __init__(self, done: int, total: int, timeout_s: float, name: str = "emulation") -> None:
        super().__init__(
            f"{name} did not end within {timeout_s:.3g} s: {done} of {total} samples were finished",
            "give it more time with --timeout, fewer samples with --samples, or verify on this host only: --on host",
        )
        self.done = done
        self.total = total


def failure(work: Work, status: int, place: Path) -> EdgeqError:
    """Return the error of a runner that failed.

    Args:
        work: what it had to do.
        status: the process's, negative for a signal.
        place: where its standard error lies.
    """
    said = (place / "stderr").read_text(errors="replace")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    on = f"{work.runtime.wheel.title} on {work.cpu.name if work.cpu else work.where}"
    if status < 0:
        return _crashed(on, -status, lines)
    told = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    if status == _BAD_INPUTS:
        return UsageError(f"{on}: {told}", "fix the data, or give --input to match the model")
    if status == _BAD_MODEL:
        return _refused(on, told, said)
    last = told or (lines[-1][:200] if lines else f"status {status}")
    return EnvironmentProblem(f"{on}: the runner did not start: {last}", "run `edgeq doctor`")


def _crashed(on: str, number: int, lines: list[str]) -> EdgeqError:
    last = f"; its last message: {lines[-1][:200]}" if lines else ""
    fix = "do not ship this artifact; report the crash and the model's architecture to the runtime's developers"
    if number == signal.SIGKILL:
        fix = "the system kills processes when memory runs out: free memory, or try a smaller model"
    return VerificationError(f"{on} crashed with {signal_name(number)}{last}", fix)


def _refused(on: str, told: str, said: str) -> EdgeqError:
    missing = tuple(dict.fromkeys(name.rstrip(",.") for name in _MISSING_OPERATOR.findall(said)))
    if missing:
        what = f"{on} lacks operators that the artifact uses: {', '.join(missing)}"
        return UnsupportedError(what, "choose a target with a newer runtime, or replace these operators")
    kind, meaning = onnx_error(told) or executorch_error(told)
    what = f"{on}: {meaning} ({told})" if meaning else f"{on}: {told}"
    return kind(what, "package the model again; if that does not help, choose another target")


# --- The container of samples that edgeq and its C++ runners exchange; `src/runner.h` has the other half.


Arrays = tuple[NDArray[Any], ...]

MAGIC = b"EDGEQT1\n"

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")

MAX_AXES = 16

_MAX_ARRAYS = 1024


def write_samples(path: Path, samples: Sequence[Arrays]) -> None:
    """Write samples, each with any number of arrays of any shape.

    Raises:
        ValueError: an array whose dtype no model takes, or with too many axes.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(samples)))
        for arrays in samples:
            file.write(struct.pack("<I", len(arrays)))
            for array in arrays:
                if array.dtype.name not in DTYPES or array.ndim > MAX_AXES:
                    raise ValueError(f"no runner takes {array.dtype} of {array.ndim} axes")
                plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                file.write(struct.pack("<BB", DTYPES.index(array.dtype.name), array.ndim))
                file.write(struct.pack(f"<{array.ndim}q", *array.shape))
                file.write(plain.tobytes())


def read_samples(path: Path) -> tuple[Arrays, ...]:
    """Read what a runner wrote.

    Raises:
        VerificationError: the file is truncated or not a container.
    """
    reader = _Reader(path.read_bytes(), path)
    if reader.take(len(MAGIC)) != MAGIC:
        raise reader.broken("it does not start with the magic bytes")
    samples = [_sample(reader) for _ in range(reader.number("<I"))]
    if reader.left:
        raise reader.broken(f"{reader.left} bytes too many")
    return tuple(samples)


def _sample(reader: _Reader) -> Arrays:
    count = reader.number("<I")
    if count > _MAX_ARRAYS:
        raise reader.broken(f"a sample of {count} arrays")
    return tuple(_array(reader) for _ in range(count))


def _array(reader: _Reader) -> NDArray[Any]:
    code, axes = reader.number("<B"), reader.number("<B")
    if code >= len(DTYPES) or axes > MAX_AXES:
        raise reader.broken(f"an array of type {code} and {axes} axes")
    shape = tuple(reader.number("<q") for _ in range(axes))
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    size = dtype.itemsize
    for length in shape:
        if length < 0:
            raise reader.broken("an array of negative size")
        size *= length  # Python's integers do not overflow
    return np.frombuffer(reader.take(size), dtype).reshape(shape)


class _Reader:
    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.broken("it is truncated")
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def broken(self, why: str) -> VerificationError:
        what = f"the runner's output {self._path.name} is not a container of samples: {why}"
        return VerificationError(what, "run again; if this repeats, run `edgeq emulator install`")


# --- What a runner process is told to do, what it leaves, and where it is started.


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one runner process.

    Attributes:
        runtime: where the runner and its libraries lie.
        cpu: the model to emulate; None runs natively, on an ARM64 host.
        model: the artifact.
        samples: for each sample its input arrays, in order.
        warmup, runs: inferences of each sample that are not timed, and that are.
        threads: of the runtime's pool. Under QEMU one is the fastest: run processes side by side instead.
        qemu_options: more options for QEMU, such as `-plugin`.
        trace: whether to record the runtime's event trace (ExecuTorch's ETDump).
        where: description of what runs it where no model is emulated.
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
        uarch: pytorch/cpuinfo's code of the micro-architecture; 0 where the runtime hides it (ONNX Runtime).
        midr: the main ID register.
        features: the instruction-set extensions that decide about kernels.
    """

    uarch: int
    midr: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The results of a runner.

    Attributes:
        outputs: of the last inference of each sample.
        latencies_ms: of each timed inference of each sample. Under QEMU they are not valid for the device.
        load_ms: likewise.
        peak_memory_bytes: how far the process's resident set rose; under QEMU it holds translated code too.
        stderr: messages of the runner and the runtime, for QEMU's plugins.
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
        """The current activity, as text."""

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
