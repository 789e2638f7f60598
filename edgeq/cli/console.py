"""What every command prints with: results on stdout, all else on stderr; a reader that went away is no error."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeq.core.config import Progress, Task
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.units import is_safe, safe_lines

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


SCHEMA_VERSION = 1


_STDOUT, _STDERR = 1, 2


def say(text: str) -> None:
    """Print a result on stdout, without characters that would move a terminal's cursor or hide text."""
    try:
        print(safe_lines(text), flush=True)
    except BrokenPipeError:
        silence_stdout()


def say_json(value: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout. NaN is refused: the caller says what it stands for."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # escaped, and not replaced as in other output: whoever parses it gets what there was
    say("".join(char if is_safe(char) else json.dumps(char)[1:-1] for char in text))


def note(text: str) -> None:
    """Print a remark on stderr."""
    try:
        print(safe_lines(text), file=sys.stderr, flush=True)
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # lives as long as the process


def say_error(err: EdgeqError, *, as_json: bool) -> None:
    """Print an error: two lines on stderr, and for machines a document on stdout too."""
    say_problem(err.what, err.fix)
    if as_json:
        error = {"what": err.what, "fix": err.fix, "kind": type(err).__name__, "exit_code": int(err.exit_code)}
        say_json({"schema_version": 1, "error": error})


def say_problem(what: str, fix: str) -> None:
    """Print an error's two lines on stderr."""
    note(f"error: {_one_line(what)}\n  fix: {_one_line(fix)}")


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """Send to stderr what is printed in the block: models, metrics and native libraries print as they like.

    Printed on stdout, a line of theirs would spoil the JSON, and a reader that went away would end the run.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # closed by whoever started edgeq
        yield
        return
    try:
        _redirect(_STDOUT, _STDERR)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C's own printf still holds
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _redirect(descriptor: int, to: int) -> None:
    try:
        os.dup2(to, descriptor)
    except OSError:  # closed as well
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def silence_stdout() -> None:
    """Send what is still to be printed nowhere, so that the interpreter does not complain on its way out."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _one_line(text: str) -> str:
    # file names and libraries' messages may hold line breaks and terminal escapes
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


# --- How a run tells what it does: bars on a terminal, lines elsewhere, nothing with --quiet. All on stderr.


_NARROW = 60


class _Silent:
    """A task of which nobody wants to hear."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class _Line(_Silent):
    """A task whose notes are lines."""

    def __init__(self, start: float) -> None:
        self._start = start

    def note(self, text: str) -> None:
        note(f"[{time.monotonic() - self._start:5.1f}s]   {text}")


class _Lone:
    """Where one model is made at a time, nothing else of the run computes."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Go on at once."""
        yield


class Quiet(_Lone):
    """Says nothing."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002  # the protocol's
        """Open a step without a word."""
        yield _Silent()


class Lines(_Lone):
    """Prints a line when a step starts, with the seconds since the run began."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:  # noqa: ARG002  # the protocol's
        """Print the step's line."""
        note(f"[{time.monotonic() - self._start:5.1f}s] {description}")
        yield _Line(self._start)


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
    """Draws a bar for each open step, and takes it away when the step is done."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Draw a bar; it only pulses where `total` is None."""
        task_id = self._bars.add_task(description, total=total, count="")
        try:
            yield _Bar(self._bars, task_id, description, total)
        finally:
            self._bars.remove_task(task_id)


@contextlib.contextmanager
def open_progress(*, quiet: bool, verbose: bool = False) -> Iterator[Progress]:
    """Yield what suits the place that stderr goes to; bars are wiped when the block ends.

    What the steps, the user's code among them, print in the block goes to stderr.
    """
    with results_only():
        if quiet:
            yield Quiet()
        elif verbose or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield Lines()
        else:
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


# --- The time that is written into signed and published files.


def clock() -> datetime.datetime:
    """Return the time of this machine, which clients' clocks have too."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def now() -> datetime.datetime:
    """Return the time: SOURCE_DATE_EPOCH if set, so that what is written can be written again byte by byte.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is no time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return clock()
    try:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    except (ValueError, OverflowError, OSError) as err:
        what = f"SOURCE_DATE_EPOCH must be seconds since 1970, got {text!r}"
        raise UsageError(what, "set it to a number, or unset it") from err
