"""Progress of a run on stderr: bars on a terminal, otherwise lines, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgeq.core.config import Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_NARROW = 60  # columns


class _Silent:
    """A task that is not shown."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class _Line(_Silent):
    """A task whose notes are lines."""

    def __init__(self, start: float, write: Callable[[str], None]) -> None:
        self._start = start
        self._write = write

    def note(self, text: str) -> None:
        self._write(f"[{time.monotonic() - self._start:5.1f}s]   {text}")


class _Lone:
    """Where one model is made at a time, nothing else of the run computes."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Continue immediately."""
        yield


class Quiet(_Lone):
    """Shows nothing."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002  # the protocol's
        """Open a step silently."""
        yield _Silent()


class Lines(_Lone):
    """Writes a line when a step starts, with the seconds since the run began."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._start = time.monotonic()
        self._write = write

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002  # the protocol's
        """Write the step's line."""
        self._write(f"[{time.monotonic() - self._start:5.1f}s] {description}")
        yield _Line(self._start, self._write)


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
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Open a step of the wrapped progress."""
        self._check()
        with self._progress.task(description, total) as task:
            yield _InterruptibleTask(task, self._check)
            self._check()

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Return the wrapped progress's span."""
        return self._progress.alone()

    def _check(self) -> None:
        if self._came:
            raise KeyboardInterrupt


class _InterruptibleTask:
    def __init__(self, task: Task, check: Callable[[], None]) -> None:
        self._task = task
        self._check = check

    def advance(self, steps: int = 1) -> None:
        self._check()
        self._task.advance(steps)

    def note(self, text: str) -> None:
        self._task.note(text)


class _Bar:
    def __init__(self, bars: RichProgress, task_id: TaskID, description: str, total: int | None) -> None:
        self._bars = bars
        self._task_id = task_id
        self._total = total
        self._done = 0
        self._description = description

    def note(self, text: str) -> None:
        self._bars.update(self._task_id, description=f"{self._description}: {text}")

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        self._bars.update(self._task_id, completed=self._done, count=count)


class Bars(_Lone):
    """Draws a bar for each open step, and removes it when the step ends."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Draw a bar; it pulses if `total` is None."""
        task_id = self._bars.add_task(description, total=total, count="")
        try:
            yield _Bar(self._bars, task_id, description, total)
        finally:
            self._bars.remove_task(task_id)


@contextlib.contextmanager
def shown_progress(write: Callable[[str], None], *, lines: bool = False) -> Iterator[Progress]:
    """Yield bars where stderr is a terminal, else lines; bars are wiped when the block ends.

    Args:
        write: prints a line.
        lines: whether to print lines on a terminal too.
    """
    # a notebook's stderr is no terminal
    if lines or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines(write)
        return
    with _rich_bars() as bars:
        yield Bars(bars)


def _rich_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    console = Console(stderr=True)
    words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    text = TextColumn("{task.description}", markup=False, table_column=words)
    # a narrow terminal keeps the words and the time, and does without the bar
    bar = () if console.width < _NARROW else (BarColumn(bar_width=20), TextColumn("{task.fields[count]}", markup=False))
    # four times a second: drawing must not take the time of the work
    return Progress(
        SpinnerColumn(),
        text,
        *bar,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=4,
    )
