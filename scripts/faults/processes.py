"""An operation in a forked child, with a shim in front of libc that kills it, or lets one of its calls fail."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from .operations import SHIM, Operation

KILL, SHORT = -1, -2  # as in shim.c
KILLED = 128 + signal.SIGKILL
Tree = dict[str, bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """An operation, ready to be run again and again.

    Attributes:
        first: the folder with the state before it.
        before, after: what `target` holds before and after an undisturbed run.
        calls: how many system calls of that run change files.
    """

    operation: Operation
    first: Path
    before: Tree
    after: Tree
    calls: int

    def copy(self) -> Path:
        """Return a fresh copy of the state before."""
        work = self.first.with_name("work")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.first, work, symlinks=True)
        return work


def stage(operation: Operation, root: Path) -> Stage:
    """Prepare an operation, and run it once undisturbed.

    Raises:
        SystemExit: it failed, or changed nothing.
    """
    first, work = root / "first", root / "work"
    first.mkdir()
    operation.prepare(first)
    shutil.copytree(first, work, symlinks=True)
    read, write = os.pipe()
    code = run(work, operation, number=-1, report=write)
    os.close(write)
    calls = int(os.read(read, 64) or b"0")
    os.close(read)
    if code or not calls:
        raise SystemExit(f"error: the undisturbed run ended with {code} after {calls} calls")
    return Stage(
        operation=operation,
        first=first,
        before=tree(first / "target"),
        after=tree(work / "target"),
        calls=calls,
    )


def undisturbed_s(staged: Stage) -> float:
    """Return how long an undisturbed run takes; the first one, which read everything from the disk, took longer."""
    work = staged.copy()
    start = time.monotonic()
    run(work, staged.operation)
    return time.monotonic() - start


def run(work: Path, operation: Operation, *, number: int = 0, how: int = 0, report: int | None = None) -> int:
    """Run in a fork; return its exit status, 137 for a kill.

    Args:
        work: the folder that it runs in.
        operation: what runs.
        number: which call is to fail; 0 for none, -1 to count them.
        how: KILL, SHORT, or an errno.
        report: file descriptor that gets the number of calls.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(_in_child(work, operation, number, how, report))
    return _status(pid)


def _status(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def kill_at(work: Path, operation: Operation, seconds: float) -> int:
    """Run in a fork, and kill it after `seconds` if it still runs; return its exit status, 137 for a kill."""
    pid = os.fork()
    if pid == 0:
        os._exit(_in_child(work, operation, 0, 0, None))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return _status(pid)


def _in_child(work: Path, operation: Operation, number: int, how: int, report: int | None) -> int:
    from edgeq.cli.main import explain

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
    shim = ctypes.CDLL(os.environ[SHIM])
    try:
        if number:
            shim.fault_arm(ctypes.c_long(number), ctypes.c_int(how))
        operation.run(work)
        calls = shim.fault_disarm()
    except BaseException as err:  # every kind becomes an exit status
        shim.fault_disarm()
        return int(explain(err).exit_code)
    if report is not None:
        os.write(report, str(calls).encode())
    return 0


def spread(number: int, calls: int, count: int) -> int:
    """Return which call the trial of a number kills: each in turn, or evenly spread ones where tries are fewer."""
    return number + 1 if count >= calls else 1 + number * calls // count


def moment(number: int, seconds: float) -> float:
    """Return the random time at which the trial of a number kills."""
    return random.Random(f"kill-{number}").uniform(0, seconds)


def tree(root: Path) -> Tree:
    """Return every file below a folder with its bytes, links with where they lead, folders with None."""
    return {
        str(path.relative_to(root)): (
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(root.rglob("*"))
    }


def promised(found: Tree) -> Tree:
    """Leave out what a store may learn or keep for the next try, and hidden rubbish that the next run removes."""
    state = json.loads(found.get("state.json") or b"{}")
    for name in ("seen", "trying", "patching"):
        state.pop(name, None)
    named = {str(slot["release"]) for slot in (state.get("current"), state.get("previous")) if slot}
    kept = {
        name: data
        for name, data in found.items()
        if not name.startswith(("trusted", "download", "trust.json", "device.json"))
        and not any(
            part in (".edgeq.lock", ".edgeq.update.lock", ".edgeq-work") or (part[0] == "." and part.endswith(".tmp"))
            for part in name.split("/")
        )
        and not (name.startswith("slots/") and name.split("/")[1] not in named)
    }
    if set(kept) <= {"state.json", "slots"} and not named:
        return {}
    return {**kept, "state.json": json.dumps(state).encode()} if "state.json" in kept else kept


def equal(left: Tree, right: Tree, operation: Operation) -> bool:
    """Say whether two trees are the same, but for times that were measured."""
    return left.keys() == right.keys() and all(
        data == right[name] for name, data in left.items() if Path(name).name not in operation.measured
    )


def difference(left: Tree, right: Tree) -> str:
    """Say what differs, in words."""
    more, fewer = sorted(set(right) - set(left)), sorted(set(left) - set(right))
    other = sorted(name for name in set(left) & set(right) if left[name] != right[name])
    return f"more {more[:4]}, fewer {fewer[:4]}, other {other[:4]}"
