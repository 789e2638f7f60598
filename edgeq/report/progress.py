"""Progress of a run on stderr: bars on a terminal, otherwise lines, or nothing."""

from __future__ import annotations

import bisect
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeq.core.config import SAMPLES, Progress, Task
from edgeq.core.errors import OutOfTimeError
from edgeq.core.units import safe_lines

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_NARROW, _WIDE = 60, 100  # columns


class _Silent:
    """A task that is not shown."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class _Lone:
    """Where one model is made at a time, nothing else of the run computes."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Continue immediately."""
        yield


class Pace:
    """How fast a step goes, and how long its rest takes where that can be said.

    It can be said after a tenth of the step and 5 s, while the last quarter of the time was about as fast as the whole.
    """

    _LEAST_SHARE, _LEAST_S, _STEADY = 0.1, 5.0, 1.5

    def __init__(self, total: int | None, now: float) -> None:
        self.done = 0
        self.total = total
        self._start = now
        self._marks = [(now, 0)]  # time and steps done, at most one in 0.5 s

    def advance(self, steps: int, now: float) -> None:
        """Count steps that are done."""
        self.done += steps
        if now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, self.done))

    def left_s(self, now: float) -> float | None:
        """Return the seconds that the rest takes; None where nothing supports a figure."""
        took_s = now - self._start
        if not self.total or took_s < self._LEAST_S or self.done < max(2, self._LEAST_SHARE * self.total):
            return None
        at, before = self._marks[bisect.bisect(self._marks, (now - took_s / 4, self.done)) - 1]
        whole, recent = self.done / took_s, (self.done - before) / (now - at)
        if max(whole, recent) > self._STEADY * min(whole, recent):
            return None
        return max(0, self.total - self.done) / ((whole + recent) / 2)


class Quiet(_Lone):
    """Shows nothing."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:  # noqa: ARG002  # the protocol's
        """Open a step silently."""
        yield _Silent()


_BEAT_S = 15.0  # between two lines of a long step: CI ends a job that says nothing for minutes

_NOTEBOOK_BEAT_S = 1.0


class Lines(_Lone):
    """Writes a line when a step starts, with the seconds since the run began, and one every 15 s of a long step."""

    def __init__(self, write: Callable[[str], None], beat_s: float = _BEAT_S, quiet_s: float = 0.0) -> None:
        """Write by `write`; a thread says every `beat_s` seconds what is under way, until `close`.

        Args:
            write: prints a line.
            beat_s: seconds between two lines of a long step.
            quiet_s: nothing is written in the first seconds, so that a short run shows nothing.
        """
        self._start = time.monotonic()
        self._write = write
        self._quiet_s = quiet_s
        self._is_quiet = quiet_s > 0
        self._changing = threading.Lock()  # of what is open, and whether it is said
        self._open: list[_LineTask] = []
        self._closed = threading.Event()
        self._beat_s = beat_s
        self._thread = threading.Thread(target=self._beat, name="edgeq progress", daemon=True)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:
        """Write the step's line."""
        if not self._thread.is_alive() and not self._closed.is_set():
            self._thread.start()
        task = _LineTask(self, description, total, unit)
        with self._changing:
            self._open.append(task)
            if not self._is_quiet:
                self.say(description)
        try:
            yield task
        finally:
            with self._changing:
                self._open.remove(task)

    def say(self, text: str) -> None:
        """Write a line with the seconds since the run began."""
        self._write(f"[{time.monotonic() - self._start:5.1f}s] {text}")

    def close(self) -> None:
        """End the thread, so that no line of it comes after this."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        if self._is_quiet and not self._closed.wait(self._quiet_s):
            with self._changing:
                self._is_quiet = False
                for task in self._open:
                    self.say(task.description)
        while not self._closed.wait(self._beat_s):
            for task in tuple(self._open)[-1:]:  # the innermost: what it is a part of waits for it
                if time.monotonic() - task.start >= self._beat_s:
                    self.say(f"  {task.description}: {task.state()}")


class _LineTask:
    """A step of `Lines`."""

    def __init__(self, lines: Lines, description: str, total: int | None, unit: str) -> None:
        self.description = description
        self.start = time.monotonic()
        self._lines = lines
        self._unit = unit
        self._pace = Pace(total, self.start)

    def advance(self, steps: int = 1) -> None:
        self._pace.advance(steps, time.monotonic())

    def note(self, text: str) -> None:
        self._lines.say(f"  {text}")

    def state(self) -> str:
        """Return how far the step is, and how long it will take."""
        now, pace = time.monotonic(), self._pace
        if not pace.total or not pace.done:
            return f"under way for {now - self.start:.0f} s"
        left_s = pace.left_s(now)
        left = "" if left_s is None else f", about {format_seconds(left_s)} left"
        return f"{pace.done} of {pace.total} {self._unit}{left}"


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it: 42 s, 3 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Interruptible:
    """Progress whose steps raise KeyboardInterrupt again after a signal whose first one was lost.

    Python drops an exception that arrives in a callback which a library calls from native code, such as a hook of the
    garbage collector or an observer's. The run would continue to its end.
    """

    def __init__(self, progress: Progress, came: Sequence[int]) -> None:
        """Wrap `progress`; `came` holds the signals so far."""
        self._progress = progress
        self._came = came

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:
        """Open a step of the wrapped progress."""
        self._check()
        with self._progress.task(description, total, unit) as task:
            yield _CheckedTask(task, self._check)
            self._check()

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Return the wrapped progress's span."""
        return self._progress.alone()

    def _check(self) -> None:
        if self._came:
            raise KeyboardInterrupt


class _CheckedTask:
    def __init__(self, task: Task, check: Callable[[], None]) -> None:
        self._task = task
        self._check = check

    def advance(self, steps: int = 1) -> None:
        self._check()
        self._task.advance(steps)

    def note(self, text: str) -> None:
        self._task.note(text)


class Budgeted:
    """Progress whose steps end with an error when the time is over."""

    def __init__(self, progress: Progress, end: float, budget: str) -> None:
        """Wrap `progress`; `end` is by `time.monotonic`, and `budget` what the user gave."""
        self._progress = progress
        self._end = end
        self._budget = budget

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:
        """Open a step of the wrapped progress.

        Raises:
            OutOfTimeError: the time is over.
        """
        self._check()
        with self._progress.task(description, total, unit) as task:
            yield _CheckedTask(task, self._check)  # a step that came to its end counts

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Return the wrapped progress's span."""
        return self._progress.alone()

    def _check(self) -> None:
        if time.monotonic() > self._end:
            what = f"--time-budget {self._budget} was over"
            raise OutOfTimeError(what, "give a longer --time-budget, or name the --scheme")


class _Bar:
    def __init__(self, bars: RichProgress, task_id: TaskID, description: str, unit: str, pace: Pace) -> None:
        self._bars = bars
        self._task_id = task_id
        self._unit = unit
        self._pace = pace
        self._description = description

    def note(self, text: str) -> None:
        self._bars.update(self._task_id, description=f"{self._description}: {text}")

    def advance(self, steps: int = 1) -> None:
        self._pace.advance(steps, time.monotonic())
        done, total = self._pace.done, self._pace.total
        count = f"{done} {self._unit}" if total is None else f"{done}/{total} {self._unit}"
        self._bars.update(self._task_id, completed=done, count=count)


class Bars(_Lone):
    """Draws a bar for each open step, and removes it when the step ends."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None, unit: str = SAMPLES) -> Iterator[Task]:
        """Draw a bar; it pulses if `total` is None."""
        pace = Pace(total, time.monotonic())
        task_id = self._bars.add_task(description, total=total, count="", pace=pace)
        try:
            yield _Bar(self._bars, task_id, description, unit, pace)
        finally:
            self._bars.remove_task(task_id)


@contextlib.contextmanager
def shown_progress(write: Callable[[str], None], *, lines: bool = False, quiet_s: float = 0.0) -> Iterator[Progress]:
    """Yield bars where stderr is a terminal, in a notebook's cell one line that changes, else lines.

    Bars are wiped when the block ends.

    Args:
        write: prints a line.
        lines: whether to print lines on a terminal too.
        quiet_s: lines begin after that many seconds.
    """
    line = _notebook_line()
    if line is not None:
        start = time.monotonic()
        try:
            with contextlib.closing(Lines(line, beat_s=_NOTEBOOK_BEAT_S)) as shown:
                yield shown
        finally:
            line(f"took {format_seconds(time.monotonic() - start)}")
        return
    if lines or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        with contextlib.closing(Lines(write, quiet_s=quiet_s)) as shown:
            yield shown
        return
    with _rich_bars() as bars:
        yield Bars(bars)


def _notebook_line() -> Callable[[str], None] | None:
    """Return what shows a line in a notebook's cell, in place of the one before; None outside of a notebook."""
    loaded: Any = sys.modules.get("IPython")
    if loaded is None or not hasattr(loaded.get_ipython(), "kernel"):  # IPython in a terminal has none
        return None
    handle = loaded.display.display({"text/plain": ""}, raw=True, display_id=True)

    def show(text: str) -> None:
        handle.update({"text/plain": safe_lines(text)}, raw=True)

    return show


def _rich_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
    from rich.progress import Task as RichTask
    from rich.table import Column
    from rich.text import Text

    class Times(ProgressColumn):
        """How long a step has taken, and how long it will take where that can be said."""

        def render(self, task: RichTask) -> Text:
            """Return both."""
            left_s = task.fields["pace"].left_s(time.monotonic())
            left = "" if left_s is None or task.finished else f", {_clock(left_s)} left"
            return Text(f"{_clock(task.elapsed or 0)}{left}")

    console = Console(stderr=True)
    words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    # a narrower terminal keeps the words and the times, and does without the bar, a very narrow one without the count
    bar = (BarColumn(bar_width=20),) if console.width >= _WIDE else ()
    count = (TextColumn("{task.fields[count]}", markup=False),) if console.width >= _NARROW else ()
    # four times a second: drawing must not take the time of the work
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=words),
        *bar,
        *count,
        Times(),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=4,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
