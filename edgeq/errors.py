"""The one error tree: every class has its exit code, every message says what happened and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a process that ran edgeq may rely on; kept stable across releases."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED = 3
    SIZE = 4
    ACCURACY = 5
    LATENCY = 6
    VERIFICATION = 7
    INTEGRITY = 8
    ENVIRONMENT = 9
    INTERRUPTED = 130


class EdgeqError(Exception):
    """Base of all errors that edgeq raises on purpose.

    Attributes:
        what: one line, what was expected and what came.
        fix: one line, what to do next.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix


class UsageError(EdgeqError):
    """An option, a file or data that people gave is not usable (exit code 2)."""

    exit_code = ExitCode.USAGE


class UnsupportedError(EdgeqError):
    """Known, but this target, scheme or runtime cannot do it (exit code 3)."""

    exit_code = ExitCode.UNSUPPORTED


class AccuracyError(EdgeqError):
    """Training came to nothing that could be judged (exit code 5)."""

    exit_code = ExitCode.ACCURACY


class VerificationError(EdgeqError):
    """The artifact could not be run, or does not do what it claims (exit code 7)."""

    exit_code = ExitCode.VERIFICATION


class IntegrityError(EdgeqError):
    """Bytes are not those that were recorded (exit code 8)."""

    exit_code = ExitCode.INTEGRITY


class EnvironmentProblem(EdgeqError):
    """A tool, a runtime, the network or disk space is missing (exit code 9)."""

    exit_code = ExitCode.ENVIRONMENT


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or "" when none is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def first_line(err: BaseException, limit: int = 300) -> str:
    """Return the first non-empty line of an exception's text, for messages that quote a library."""
    for line in str(err).splitlines():
        if line.strip():
            return line.strip()[:limit]
    return type(err).__name__
