"""The process beside a Dask worker that makes its units: `python -P -m edgeq.pipeline.unit_server FD`.

Dask's workers are daemons, which may have no children, and live long. This process is a child of the operating
system's kind, imports once, in a fork server, what its units need, and forks a process for each unit: a crash ends that
unit only. It ends with its socket, and so when the worker is killed.

While a unit measures its times, the other units of this machine and user are stopped, whichever worker they belong to.
A file lock says who measures: the kernel releases it with the process, and then every server wakes its own unit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from edgeq.pipeline.cache import dependencies_of, job_facts
from edgeq.pipeline.package import complete
from edgeq.pipeline.plan import Kept, Made, Part, Plan
from edgeq.pipeline.portable import PLACE, below
from edgeq.pipeline.tracking import current_state, looked_at
from edgeq.pipeline.workers import crashed, fork_server, imports_of, outcome_of, report_outcome, signal_tree
from edgeq.verify.children import calm_openmp

_WAKE_S = 0.5


def serve(descriptor: int) -> None:
    """Make one part after the other until the socket ends."""
    pipe = Connection(descriptor)
    while True:
        try:
            part = pipe.recv()
        except EOFError:
            return
        context = fork_server(
            imports_of([part.plan.job.source], [unit.target for unit in part.plan.units], part.project)
        )
        here, there = context.Pipe()
        with contextlib.ExitStack() as running:
            # while another unit measures none starts, and none measures before this one can be stopped
            with _locked(fcntl.LOCK_SH):
                process = context.Process(target=_make, args=(there, part), name=part.name)
                process.start()
                machine = running.enter_context(_Machine(process.pid or 0))
            there.close()
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
def _locked(kind: int) -> Iterator[None]:
    descriptor = _acquired(kind)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquired(kind: int) -> int:
    """Return the open file whose lock says who measures, locked.

    Raises:
        BlockingIOError: another one has it, and `kind` says not to wait.
        PermissionError: somebody else made the folder, or a link in its place.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            _folder().mkdir(0o700)
        place = os.open(_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(place)
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
                raise PermissionError(f"{_folder()} can be written to by another user")
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(_LOCK_NAME, flags, 0o600, dir_fd=place)
        finally:
            os.close(place)
        try:
            fcntl.flock(descriptor, kind)
            with contextlib.suppress(FileNotFoundError):
                # what cleans /tmp may have taken the file away meanwhile: then this lock is nobody else's
                if os.path.samestat((_folder() / _LOCK_NAME).stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


_LOCK_NAME = "measuring"


def _folder() -> Path:
    """Return one folder for all workers of this user on this machine, whatever their TMPDIR."""
    return Path(f"/tmp/edgeq-units-{os.getuid()}")  # noqa: S108  # its owner is checked


class _Machine:
    """This machine's units: each has a file with its process ID, and who measures holds the lock."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._folder = _folder()
        self._lock: int | None = None  # while this unit measures

    def __enter__(self) -> _Machine:
        (self._folder / f"{self._pid}.unit").touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        (self._folder / f"{self._pid}.unit").unlink(missing_ok=True)

    def measure(self) -> None:
        """Wait for the lock, and stop the other units."""
        self._lock = _acquired(fcntl.LOCK_EX)
        for pid in self._others():
            signal_tree(pid, signal.SIGSTOP)

    def release(self) -> None:
        """Wake the other units, and release the lock."""
        if self._lock is not None:
            for pid in self._others():
                signal_tree(pid, signal.SIGCONT)
            os.close(self._lock)
            self._lock = None

    def wake(self) -> None:
        """Wake this unit unless another one measures: the one that stopped it may have been killed."""
        if self._lock is not None:
            return
        with contextlib.suppress(BlockingIOError), _locked(fcntl.LOCK_SH | fcntl.LOCK_NB):
            signal_tree(self._pid, signal.SIGCONT)

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
    sys.dont_write_bytecode = True  # the folder stays as the coordinator's is
    own = [path for path in sys.path if path]
    sys.path[:] = [*(str(part.project / folder) for folder in part.module_folders), *own]
    report_outcome(pipe, part.threads, part.work, lambda progress: _made(part, progress))


def _made(part: Part, progress: Any) -> Made:
    job, root = part.plan.job, str(Path.cwd())
    facts = job_facts(job)
    differing = sorted(name for name in facts if facts[name] != part.plan.facts.get(name))
    if differing:
        pairs = {name: (_short(facts[name]), _short(part.plan.facts.get(name))) for name in differing}
        return Made(outcome=None, differing=pairs)
    outcome = outcome_of(part.work, lambda: complete(part.plan, part.work, progress, raises=False))
    seen, kept = looked_at(), {}
    for key in outcome.finished if isinstance(outcome, Plan) and job.cache else ():
        dependencies = dependencies_of(key, job.build)
        if dependencies is not None:
            is_bound = dependencies.pop(PLACE, None) is not None
            kept[key] = Kept(dependencies=below(dependencies, root), is_bound=is_bound)
            seen |= dependencies  # of a result that this worker had
    for name in list(seen):
        kind, _, rest = name.partition(":")
        if kind == "stat":  # owners differ
            seen[f"shape:{rest}"] = current_state(f"shape:{rest}")
    return Made(outcome=outcome, looked_at=below(seen, root), kept=kept)


def _short(value: Any) -> Any:
    return value if not isinstance(value, dict) else {key: str(inner)[:80] for key, inner in value.items()}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the worker's terminal is the worker's
    calm_openmp()
    serve(int(sys.argv[1]))
