"""edgeq in a process of its own, to be watched, interrupted and killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .conftest import Result


def start(*args: str, **variables: str) -> subprocess.Popen[str]:
    """Start `edgeq` in a process of its own, which is a group of its own too."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgeq", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> Result:
    out, err = process.communicate(timeout=seconds)
    return Result(code=process.returncode, out=out, err=err)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the progress on standard error until a line holds `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the run ended before {text!r}")


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, by /proc."""
    found: set[int] = set()
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    front = {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found


def alive(pids: Sequence[int] | set[int]) -> set[int]:
    """Return which of the processes still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


def wait_until_dead(pids: set[int], seconds: float = 60) -> set[int]:
    """Return which of the processes still run after some seconds."""
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return alive(pids)
