"""While one unit of a machine measures its times the others are stopped, and they wake when the measuring one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.pipeline import unit_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the state of a process is read from /proc")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def measure_and_stay(pid: int, folder: str) -> None:
    unit_server._folder = lambda: Path(folder)
    machine = unit_server._Machine(pid)
    machine.__enter__()
    machine.measure()
    time.sleep(600)


def test_others_stop_while_one_measures_and_wake_when_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_server, "_folder", lambda: tmp_path / "units")
    context = multiprocessing.get_context("spawn")
    units = [context.Process(target=time.sleep, args=(600,)) for _ in range(2)]
    for unit in units:
        unit.start()
    first, second = (unit.pid or 0 for unit in units)
    measuring = None
    # a process that was just started may not yet run what it was started for
    assert wait_for(
        lambda: all(b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (first, second))
    )
    try:
        with unit_server._Machine(first) as one, unit_server._Machine(second) as two:
            one.measure()
            assert wait_for(lambda: state(second) == "T")
            assert state(first) != "T"
            two.wake()  # it stays while the other one measures
            assert state(second) == "T"
            one.release()
            assert wait_for(lambda: state(second) != "T")
        # one that measures in a server of its own, which is killed
        with unit_server._Machine(second) as two:
            measuring = context.Process(target=measure_and_stay, args=(first, str(tmp_path / "units")))
            measuring.start()
            assert wait_for(lambda: state(second) == "T")
            os.kill(measuring.pid or 0, signal.SIGKILL)
            measuring.join()
            two.wake()
            assert wait_for(lambda: state(second) != "T")
    finally:
        for process in (*units, measuring):
            if process is not None:
                os.kill(process.pid or 0, signal.SIGCONT) if process.is_alive() else None
                process.kill()
                process.join()


def test_a_number_that_another_program_has_now_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_server, "_folder", lambda: tmp_path)
    (tmp_path / f"{os.getppid()}.unit").touch()
    (tmp_path / "4194304.unit").touch()  # beyond any process
    assert list(unit_server._Machine(1)._others()) == []
    assert not (tmp_path / "4194304.unit").exists()
