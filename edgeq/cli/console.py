"""Output of all commands: results on stdout, all else on stderr; a closed pipe is not an error."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import edgeq
from edgeq.core.config import Progress
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.files import on_wait
from edgeq.core.units import is_safe, safe_lines

if TYPE_CHECKING:
    import edgeq.report.progress

SCHEMA_VERSION = 1


_STDOUT, _STDERR = 1, 2


# the colours of a verdict, as edgeq.report.text gives them on a terminal: bold, green, bold red, and their end
_STYLE = re.compile(r"(\x1b\[(?:0|1|32|1;31)m)")


def say(text: str) -> None:
    """Print a result on stdout, without characters that would move a terminal's cursor or hide text."""
    try:
        print(_safe(text, sys.stdout), flush=True)
    except BrokenPipeError:
        silence_stdout()


def _safe(text: str, stream: TextIO) -> str:
    # every second part is a style
    parts = enumerate(_STYLE.split(text))
    return "".join(part if i % 2 and stream.isatty() else safe_lines(part) for i, part in parts)


def say_json(value: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout. NaN is refused: the caller replaces it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # escaped, and not replaced as in other output: whoever parses it gets what there was
    say("".join(char if is_safe(char) else json.dumps(char)[1:-1] for char in text))


def note(text: str) -> None:
    """Print a remark on stderr."""
    try:
        print(_safe(text, sys.stderr), file=sys.stderr, flush=True)
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # lives as long as the process


def say_error(err: EdgeqError, *, as_json: bool) -> None:
    """Print an error: two lines on stderr, and with --json also a document on stdout."""
    for one in err.findings:
        say_problem(one.named, one.fix)
    if as_json:
        error = {"what": err.named, "fix": err.fix, "kind": type(err).__name__, "exit_code": int(err.exit_code)}
        say_json({"schema_version": 1, "error": error})


def say_problem(what: str, fix: str) -> None:
    """Print an error's two lines on stderr."""
    note(f"error: {_one_line(what)}\n  fix: {_one_line(fix)}")


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """Redirect to stderr what models, metrics and native libraries print in the block.

    On stdout their lines would break the JSON, and a closed pipe would end the run.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # closed by whoever started edgeq
        yield
        return
    try:
        try:
            os.dup2(_STDERR, _STDOUT)
        except OSError:  # closed as well
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, _STDOUT)
            os.close(null)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C's own printf still holds
        os.dup2(kept, _STDOUT)
        os.close(kept)


def silence_stdout() -> None:
    """Discard further output, so that the interpreter does not report a broken pipe at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _one_line(text: str) -> str:
    # file names and libraries' messages may hold line breaks and terminal escapes
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


# --- Progress, with what the steps print kept out of the results.


INTERRUPTS: list[int] = []  # the signals that are to end this run


@contextlib.contextmanager
def open_progress(*, quiet: bool, verbose: bool = False, quiet_s: float = 0.0) -> Iterator[Progress]:
    """Yield progress bars or lines, depending on stderr; bars are wiped at the end, lines begin after `quiet_s`.

    Output of the steps and of user code in the block goes to stderr.
    """
    with results_only(), contextlib.ExitStack() as stack:
        if not quiet:
            on_wait.append(note)
            stack.callback(on_wait.remove, note)
        if quiet:
            yield edgeq.report.progress.Interruptible(edgeq.report.progress.Quiet(), INTERRUPTS)
        else:
            with edgeq.report.progress.shown_progress(note, lines=verbose, quiet_s=quiet_s) as progress:
                yield edgeq.report.progress.Interruptible(progress, INTERRUPTS)


# --- The time that is written into signed and published files.


def clock() -> datetime.datetime:
    """Return this machine's time, which clients' clocks are assumed to share."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def now() -> datetime.datetime:
    """Return the time: SOURCE_DATE_EPOCH if set, so that output is reproducible byte by byte.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is not a time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return clock()
    try:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    except (ValueError, OverflowError, OSError) as err:
        what = f"SOURCE_DATE_EPOCH must be seconds since 1970, got {text!r}"
        raise UsageError(what, "set SOURCE_DATE_EPOCH to a number, or unset it") from err
