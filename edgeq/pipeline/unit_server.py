"""The process beside a Dask worker that makes its units: `python -P -m edgeq.pipeline.unit_server FD`.

Dask's workers are daemons, which may have no children, and live long. This process is a child of the operating
system's kind, imports torch once in a fork server, and forks a process for each unit: a crash ends that unit only. It
ends with its socket, and so when the worker is killed.

While a unit measures its times, the other units of this machine and user are stopped, whichever worker they belong to.
A file lock says who measures: the kernel releases it with the process, and then every server wakes its own unit.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from edgeq.pipeline.cache import dependencies_of, job_facts
from edgeq.pipeline.package import build_missing
from edgeq.pipeline.plan import Plan
from edgeq.pipeline.workers import crashed, report_outcome, signal_tree
from edgeq.verify.children import PRELOADED, calm_openmp

_WAKE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A model's units that share what is built, as a worker gets them.

    Attributes:
        name: the model, for messages.
        plan: of these units only.
        project: the folder of the project's files on the worker.
        module_folders: where modules are looked for before the worker's own folders, in the project.
        work: an empty folder for the results.
        threads: for torch.
    """

    name: str
    plan: Plan
    project: Path
    module_folders: tuple[str, ...]
    work: Path
    threads: int = 1


def serve(descriptor: int) -> None:
    """Make one part after the other until the socket ends."""
    pipe = Connection(descriptor)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    while True:
        try:
            part = pipe.recv()
        except EOFError:
            return
        with _lock() as measuring:
            fcntl.flock(measuring, fcntl.LOCK_SH)  # while another unit measures, none starts
        here, there = context.Pipe()
        process = context.Process(target=_make, args=(there, part), name=part.name)
        process.start()
        there.close()
        with _Machine(process.pid or 0) as machine:
            outcome, is_stopped = None, False
            while True:
                ready = wait([pipe, here], timeout=_WAKE_S)
                machine.wake()
                if pipe in ready:  # the worker has died, or nobody wants the result any more
                    is_stopped = True
                    signal_tree(process.pid or 0, signal.SIGKILL)
                    with contextlib.suppress(EOFError):
                        pipe.recv()
                        break
                    return
                if here in ready:
                    try:
                        message = here.recv()
                    except (EOFError, ConnectionResetError):
                        break
                    if message[0] == "alone":
                        machine.measure()
                        here.send("go")
                    elif message[0] == "not alone":
                        machine.release()
                    elif message[0] == "done":
                        outcome = message[1]
                    else:
                        pipe.send(message)
        process.join()
        here.close()
        ended = ("stopped",) if is_stopped else ("done", outcome or crashed(part.name, process.exitcode or 0))
        pipe.send(ended)


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    """Open the file whose lock says who measures."""
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    descriptor = os.open(folder / "measuring", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _folder() -> Path:
    """Return one folder for all workers of this user on this machine, whatever their TMPDIR."""
    return Path(f"/tmp/edgeq-units-{os.getuid()}")  # noqa: S108  # its owner is checked


class _Machine:
    """This machine's units: each has a file with its process ID, and who measures holds the lock."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._folder = _folder()
        self._open = contextlib.ExitStack()
        self._lock = self._open.enter_context(_lock())
        self._measures = False

    def __enter__(self) -> _Machine:
        (self._folder / f"{self._pid}.unit").touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        (self._folder / f"{self._pid}.unit").unlink(missing_ok=True)
        self._open.close()

    def measure(self) -> None:
        """Wait for the lock, and stop the other units."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._measures = True
        for pid in self._others():
            signal_tree(pid, signal.SIGSTOP)

    def release(self) -> None:
        """Wake the other units, and release the lock."""
        if self._measures:
            for pid in self._others():
                signal_tree(pid, signal.SIGCONT)
            self._measures = False
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def wake(self) -> None:
        """Wake this unit unless another one measures: the one that stopped it may have been killed."""
        if self._measures:
            return
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            signal_tree(self._pid, signal.SIGCONT)
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _others(self) -> Iterator[int]:
        for path in self._folder.glob("*.unit"):
            pid = int(path.stem)
            if pid == self._pid:
                continue
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # of a server that was killed
                path.unlink(missing_ok=True)
                continue
            if b"multiprocessing" in words:  # not another process that has its number now
                yield pid


def _make(pipe: Connection, part: Part) -> None:
    os.chdir(part.project)
    own = [path for path in sys.path if path]
    sys.path[:] = [*(str(part.project / folder) for folder in part.module_folders), *own]
    report_outcome(pipe, part.threads, lambda progress: _made(part, progress))


def _made(part: Part, progress: Any) -> Any:
    facts = job_facts(part.plan.job)
    differing = sorted(name for name in facts if facts[name] != part.plan.facts.get(name))
    if differing:
        return ("differs", {name: (_short(facts[name]), _short(part.plan.facts.get(name))) for name in differing})
    plan, _ = build_missing(part.plan, part.work, progress)
    keeps = part.plan.job.cache
    return ("made", plan, {key: dependencies_of(key, part.plan.job.build) if keeps else None for key in plan.finished})


def _short(value: Any) -> Any:
    return value if not isinstance(value, dict) else {key: str(inner)[:80] for key, inner in value.items()}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the worker's terminal is the worker's
    calm_openmp()
    serve(int(sys.argv[1]))
