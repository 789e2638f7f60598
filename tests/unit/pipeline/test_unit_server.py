"""While one unit of a machine measures its times the others are stopped, and they wake when the measuring one dies."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

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
    with unit_server._locked(fcntl.LOCK_SH):
        pass  # the folder is there
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


def hold_and_tell(folder: str, pipe: Connection) -> None:
    unit_server._folder = lambda: Path(folder)
    pipe.send("started")
    with unit_server._locked(fcntl.LOCK_EX):
        pipe.send("locked")
        pipe.recv()
    pipe.send("released")


def test_the_lock_holds_though_its_file_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what cleans /tmp does: who waited for the file of old must not measure beside who made a new one."""
    monkeypatch.setattr(unit_server, "_folder", lambda: tmp_path / "units")
    context = multiprocessing.get_context("spawn")  # a fork would hold the lock too
    here, there = context.Pipe()
    waiting = context.Process(target=hold_and_tell, args=(str(tmp_path / "units"), there))
    with unit_server._locked(fcntl.LOCK_EX):
        waiting.start()
        assert here.recv() == "started"
        assert not here.poll(0.5)
        (tmp_path / "units" / "measuring").unlink()
        with unit_server._locked(fcntl.LOCK_EX):
            pass
    assert here.recv() == "locked"
    with pytest.raises(BlockingIOError), unit_server._locked(fcntl.LOCK_SH | fcntl.LOCK_NB):
        pass
    here.send("go on")
    assert here.recv() == "released"
    waiting.join()


def test_a_folder_that_another_user_may_have_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "units"
    monkeypatch.setattr(unit_server, "_folder", lambda: place)
    (tmp_path / "mine").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "mine")
    with pytest.raises(NotADirectoryError), unit_server._locked(fcntl.LOCK_SH):
        pass
    place.unlink()
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written to by another user"), unit_server._locked(fcntl.LOCK_SH):
        pass
    assert list(place.iterdir()) == []


def test_a_unit_starts_only_when_none_measures_and_can_then_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its start and its registration nobody may begin to measure."""
    monkeypatch.setattr(unit_server, "_folder", lambda: tmp_path / "units")
    seen: list[str] = []

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        class Process:
            pid, exitcode = os.getpid(), 0

            def __init__(self, args: tuple[Connection, object], **_: object) -> None:
                self.pipe = args[0]

            def start(self) -> None:
                try:
                    with unit_server._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                        seen.append("measured before it could be stopped")
                except BlockingIOError:
                    seen.append("locked")
                self.pipe.send(("done", "made"))

            def join(self) -> None:
                pass

    monkeypatch.setattr(unit_server, "fork_server", lambda _: Context())
    touch = Path.touch

    def registered(self: Path) -> None:
        with pytest.raises(BlockingIOError), unit_server._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            pass
        seen.append("registered")
        touch(self)

    monkeypatch.setattr(Path, "touch", registered)
    ours, theirs = multiprocessing.Pipe()
    plan = SimpleNamespace(job=SimpleNamespace(source="net"), units=())
    ours.send(SimpleNamespace(name="net", plan=plan, project=Path()))
    thread = threading.Thread(target=unit_server.serve, args=(os.dup(theirs.fileno()),))
    thread.start()
    assert ours.recv() == ("done", "made")
    theirs.close()
    ours.close()
    thread.join(timeout=10)
    assert seen == ["locked", "registered"]
