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
from edgeq.report.progress import Budgeted, Interruptible, Lines, Pace, Quiet, format_seconds


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
            wait_until(lines, r"rank: 7 of 28 measurements$")
        count = len(lines)
        time.sleep(0.2)
        assert len(lines) == count  # nothing is under way


def test_a_short_run_shows_nothing_and_a_longer_one_what_is_open() -> None:
    lines: list[str] = []
    with contextlib.closing(Lines(lines.append, quiet_s=0.2)) as progress:
        with progress.task("look around"):
            pass
        with progress.task("read the weights"):
            wait_until(lines, "] read the weights$")
        with progress.task("write"):
            assert lines[-1].endswith("] write")
    assert not any("look around" in line for line in lines)


def left_by_second(rates: list[float], total: int) -> list[float | None]:
    pace, done, found = Pace(total, 0.0), 0.0, []
    for second, rate in enumerate(rates, 1):
        done += rate
        if int(done) > pace.done:
            pace.advance(int(done) - pace.done, float(second))
        found.append(pace.left_s(float(second)))
    return found


def test_the_rest_is_estimated_once_enough_is_known_and_only_while_the_rate_holds() -> None:
    steady = left_by_second([2.0] * 50, 100)
    assert steady[:4] == [None] * 4  # 5 s
    assert steady[9] == pytest.approx(40, abs=3)
    assert steady[39] == pytest.approx(10, abs=1)
    slow = left_by_second([0.1] * 300, 128)
    assert slow[:129] == [None] * 129, "a tenth of the step"
    assert slow[150] == pytest.approx((128 - 15) / 0.1, rel=0.2)
    # a machine that becomes busy: a quarter of the pace after 60 s, when "68 s left" would be wrong for minutes
    busy = left_by_second([1.0] * 60 + [0.25] * 60, 128)
    assert busy[59] == pytest.approx(68, abs=4)
    assert busy[85] is None
    assert left_by_second([1.0, 1.0] + [0.0] * 30, 10)[20] is None, "it stands still"
    assert left_by_second([1.0] * 20, 10)[-1] == 0, "more steps than announced"


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
