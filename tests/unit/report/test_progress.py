"""Progress says how far a long step is, ends when the time is over, and loses no interrupt in a library."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time

import pytest

from edgeq.core.errors import OutOfTimeError
from edgeq.core.files import lock_dir, on_wait
from edgeq.report.progress import Budgeted, Interruptible, Lines, Quiet, format_seconds


def test_a_step_raises_an_interrupt_again_that_a_library_dropped() -> None:
    came: list[int] = []
    progress = Interruptible(Quiet(), came)
    with progress.task("calibrate", 2) as task:
        task.advance()
        came.append(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            task.advance()
        came.clear()
    came.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), progress.task("lower"):
        raise AssertionError("the step began")


def wait_until(lines: list[str], pattern: str) -> re.Match[str]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in tuple(lines):
            if found := re.search(pattern, line):
                return found
        time.sleep(0.01)
    raise AssertionError(f"{pattern!r} is not in {lines}")


def test_a_long_step_says_how_far_it_is_and_how_long_it_takes() -> None:
    lines: list[str] = []
    with contextlib.closing(Lines(lines.append, beat_s=0.05)) as progress:
        with progress.task("calibrate", 64) as task, progress.task("lower"):
            wait_until(lines, r"lower: under way for \d+ s$")
            assert not any("calibrate: " in line for line in lines), "the innermost step stands for the others"
        with progress.task("rank", 28, "measurements") as task:
            task.advance(7)
            wait_until(lines, r"rank: 7 of 28 measurements, about \d+ s left$")
        count = len(lines)
        time.sleep(0.2)
        assert len(lines) == count  # nothing is under way


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3540, "59 min"), (4800, "1 h 20 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, told: str) -> None:
    assert format_seconds(seconds) == told


def test_a_step_ends_when_the_time_is_over() -> None:
    progress = Budgeted(Quiet(), time.monotonic() + 0.2, "200ms")
    with progress.task("train", 100) as task:
        task.advance()
        time.sleep(0.25)
        with pytest.raises(OutOfTimeError, match="--time-budget 200ms was over"):
            task.advance()
    with pytest.raises(OutOfTimeError), progress.task("lower"):
        raise AssertionError("the step began")


def test_a_wait_for_another_run_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("edgeq.core.files._PATIENCE_S", 0.05)
    on_wait.append(told.append)
    try:
        with lock_dir(tmp_path, wait_s=0):
            waiting = threading.Thread(target=lambda: lock_dir(tmp_path, wait_s=10).__enter__(), daemon=True)
            waiting.start()
            wait_until(told, f"waiting for another edgeq, which writes to {tmp_path}")
        waiting.join(timeout=10)
        assert not waiting.is_alive()
        assert len(told) == 1
    finally:
        on_wait.remove(told.append)
