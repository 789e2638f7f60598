"""What every command prints with: results on stdout, all else on stderr; a reader that went away is not an error."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import edgeq
from edgeq.core.config import Progress
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.units import is_safe, safe_lines

if TYPE_CHECKING:
    import edgeq.report.progress

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


# --- Progress, with what the steps print kept out of the results.


@contextlib.contextmanager
def open_progress(*, quiet: bool, verbose: bool = False) -> Iterator[Progress]:
    """Yield what suits the place that stderr goes to; bars are wiped when the block ends.

    What the steps, the user's code among them, print in the block goes to stderr.
    """

    with results_only():
        if quiet:
            yield edgeq.report.progress.Quiet()
        else:
            with edgeq.report.progress.shown_progress(note, lines=verbose) as progress:
                yield progress


# --- The time that is written into signed and published files.


def clock() -> datetime.datetime:
    """Return the time of this machine, which clients' clocks have too."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def now() -> datetime.datetime:
    """Return the time: SOURCE_DATE_EPOCH if set, so that what is written can be written again byte by byte.

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
        raise UsageError(what, "set it to a number, or unset it") from err
