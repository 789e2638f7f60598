"""Running a model on one CPU model: the C++ runner of a runtime, under QEMU or natively, watched from here.

The results are read from files. A runner that fails says why on standard error; one that crashes, hangs or takes a
core for another one is an error here, never a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from edgeq.errors import VerificationError
from edgeq.verify.emulate.container import read_samples, write_samples
from edgeq.verify.emulate.cpus import make_root, qemu_path
from edgeq.verify.emulate.failure import TooSlow, failure
from edgeq.verify.emulate.work import Core, Launcher, Ran, Work, arguments


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
        VerificationError: the artifact is damaged, the runner crashed (with its signal), the runtime took the core
            for another one, or the time was up (`TooSlow`).
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
                self._start(index)
            if not self._running:
                return
            self._wait()

    def _start(self, index: int) -> None:
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
        what = f"the runner of {work.runtime.wheel.title} ended well but left no results ({err})"
        raise VerificationError(what, "run `edgeq emulator install`, and then again") from err
    _check_core(work, core)
    return ran


def _check_core(work: Work, core: Core) -> None:
    """Refuse results of kernels that were chosen for another core."""
    if work.cpu is None or core.uarch == work.cpu.uarch:
        return
    what = (
        f"{work.runtime.wheel.title} took the emulated {work.cpu.name} for another core: it detected the "
        f"micro-architecture 0x{core.uarch:08x} instead of 0x{work.cpu.uarch:08x}, and chose kernels for that"
    )
    raise VerificationError(what, "choose another --cpu, or another version of qemu-user")
