"""The one error tree: every class has its exit code, every message says what happened and what to do next."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Literal, Self

Outcome = Literal["ok", "failed", "unverified", "allowed"]


class ExitCode(IntEnum):
    """Exit codes, stable across releases."""

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
        what: one line, what happened and what was expected.
        fix: one line, what to do next.
        model: whose it is, by its name in edgeq.toml; "" of the file as a whole, or where none is known.
        key: of the option that it is about, as edgeq.toml has it (`data.calibration`); "" without one.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix
        self.model = ""
        self.key = ""

    @property
    def named(self) -> str:
        """What happened, with the model in front where it does not name it itself."""
        return f"{self.model}: {self.what}" if self.model and f"model {self.model!r}" not in self.what else self.what

    @property
    def findings(self) -> tuple[EdgeqError, ...]:
        """The error itself, or all that were found."""
        return (self,)

    def about(self, *, model: str = "", key: str = "") -> Self:
        """Say which model and option the error, or each of its findings, is about where it does not say so itself."""
        for one in self.findings:
            one.model = one.model or model
            one.key = one.key or key
        return self


_MOST_SHOWN = 20  # a file of thousands of unknown keys needs no more


class Findings(EdgeqError):
    """Several errors that were found before anything was built."""

    def __init__(self, findings: Sequence[EdgeqError], exit_code: ExitCode | None = None) -> None:
        """Make the error of at least two; the exit code is the lowest of theirs if none is given."""
        shown = findings[:_MOST_SHOWN]
        told = "; ".join(f"({number}) {one.named}" for number, one in enumerate(shown, 1))
        fixes = "; ".join(f"({number}) {one.fix}" for number, one in enumerate(shown, 1))
        more = f"; and {len(findings) - len(shown)} more" if len(findings) > len(shown) else ""
        super().__init__(f"{len(findings)} errors: {told}{more}", fixes)
        self._findings = tuple(findings)
        self.exit_code = exit_code or min(one.exit_code for one in findings)

    @property
    def findings(self) -> tuple[EdgeqError, ...]:
        """The errors, each with what to do."""
        return self._findings


class FoundErrors:
    """Collects the errors of checks that do not depend on each other, so that all are shown at once.

    `with found.of("data.calibration"): …` keeps an error of the block, which is about that option, and continues.
    """

    def __init__(self) -> None:
        self.errors: list[EdgeqError] = []

    @contextlib.contextmanager
    def of(self, key: str, *, model: str = "") -> Iterator[None]:
        """Keep what is raised in the block."""
        try:
            yield
        except EdgeqError as err:
            self.errors += err.about(model=model, key=key).findings

    @property
    def exit_code(self) -> ExitCode | None:
        """The lowest of theirs; None if there are none."""
        return min((one.exit_code for one in self.errors), default=None)

    def raise_all(self) -> None:
        """Raise the only error, or all of several as `Findings`; do nothing if there are none."""
        raise_findings(self.errors)


def raise_findings(findings: Sequence[EdgeqError], exit_code: ExitCode | None = None) -> None:
    """Raise the only error, or all of several as `Findings`; do nothing if there are none.

    Args:
        findings: errors, some perhaps twice.
        exit_code: of several; None for the lowest of theirs.
    """
    unique = list({(one.named, one.fix): one for one in findings}.values())
    if len(unique) == 1:
        raise unique[0]
    if unique:
        raise Findings(unique, exit_code)


def of_all(errors: Sequence[EdgeqError], models: Sequence[str]) -> list[EdgeqError]:
    """Return the errors of models; one that all of several have is there once, about none of them."""
    kinds: dict[tuple[str, str, str], list[EdgeqError]] = {}
    for one in errors:
        kinds.setdefault((one.what, one.fix, one.key), []).append(one)
    found = []
    for same in kinds.values():
        shared = len(models) > 1 and {one.model for one in same} >= {*models}
        if shared:
            same[0].model = ""
        found += same[:1] if shared else same
    return found


class UsageError(EdgeqError):
    """An option, file or data set from the user is not usable (exit code 2)."""

    exit_code = ExitCode.USAGE


class UnsupportedError(EdgeqError):
    """The target, scheme or runtime does not support the request (exit code 3)."""

    exit_code = ExitCode.UNSUPPORTED


class OutOfTimeError(UnsupportedError):
    """The time budget of a run was over before a scheme was finished (exit code 3)."""


class AccuracyError(EdgeqError):
    """Training gave no usable result (exit code 5)."""

    exit_code = ExitCode.ACCURACY


class VerificationError(EdgeqError):
    """The artifact could not be run, or its behavior differs from its claims (exit code 7)."""

    exit_code = ExitCode.VERIFICATION


class IntegrityError(EdgeqError):
    """Bytes differ from the recorded ones (exit code 8)."""

    exit_code = ExitCode.INTEGRITY


class EnvironmentProblem(EdgeqError):
    """A tool, a runtime, the network or disk space is missing (exit code 9)."""

    exit_code = ExitCode.ENVIRONMENT


# what people call a scheme
_MEANT = {
    "int8": "static-int8",
    "8bit": "static-int8",
    "ptq": "static-int8",
    "qat": "qat-int8",
    "half": "fp16",
    "float16": "fp16",
    "float": "fp32",
    "float32": "fp32",
}

_MOST_OFFERED = 6


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for what was probably meant by `name`, or "" if nothing is near.

    A part of a name stands for all names that have it (`android` for the targets on Android, `metric` for
    `data.metric`), a usual word for its scheme; else the name with the most similar letters is offered.
    """
    known = list(known)
    if (meant := _MEANT.get(name.lower())) in known:
        return f" Did you mean '{meant}'?"
    if match := difflib.get_close_matches(name, known, n=1, cutoff=0.85):  # a slip of one letter or two
        return f" Did you mean '{match[0]}'?"
    parts = [one for one in known if name.lower() in re.split(r"[-.:@/]", one.lower())]
    if len(parts) > 1:
        rest = f" and {len(parts) - _MOST_OFFERED} more" if len(parts) > _MOST_OFFERED else ""
        return f" Did you mean one of {', '.join(map(repr, parts[:_MOST_OFFERED]))}{rest}?"
    match = parts or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def first_line(err: BaseException, limit: int = 300) -> str:
    """Return the first line of an exception's text that says what is wrong, for messages that quote a library."""
    return telling_line(str(err))[:limit] or type(err).__name__


# OpenVINO's errors begin with places in its source, one a line
_PLACES = re.compile(r"(?:RuntimeError: )?(?:Exception from src/|Check '|While validating node |FrontEnd API failed)")


def telling_line(text: str) -> str:
    """Return the first line of a library's error that says what is wrong, else the last place; "" of an empty text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if not _PLACES.match(line)), lines[-1] if lines else "")


# --- Whose line it was: libraries raise from deep inside, people want the line of their own model.


# the demo's model stands for a user's
_OWN = Path(__file__).resolve().parent.parent

_DEMO = _OWN / "demo"

_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3")


def user_line(err: BaseException) -> str:
    """Return " at file.py:12 in Head.forward" of the innermost frame that is the user's own code, or ""."""
    users = [(frame, line) for frame, line in traceback.walk_tb(err.__traceback__) if _is_users(frame)]
    return _words(*users[-1]) if users else ""


def calling_line(library: str = "") -> str:
    """Return the same of the code that is running now.

    Args:
        library: a folder. Where no code is the user's own, that of another installed package is named, if one is given.
    """
    # what called edgeq is no part of what it runs
    inner = itertools.dropwhile(lambda one: _is_edgeq(one[0]), traceback.walk_stack(sys._getframe(1)))
    frames = list(itertools.takewhile(lambda one: not _is_edgeq(one[0]), inner))
    users = [one for one in frames if _is_users(one[0])]
    if library and not users:
        users = [one for one in frames if _is_of_package(one[0].f_code.co_filename, library)]
    return _words(*users[0]) if users else ""


def _is_edgeq(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename).resolve()
    return path.is_relative_to(_OWN) and not path.is_relative_to(_DEMO)


def _is_of_package(filename: str, library: str) -> bool:
    """Whether a file is of an installed package, and not in `library`."""
    return not filename.startswith(f"{library}/") and any(part in filename for part in _LIBRARIES[:2])


def traced_line(stack: str | None) -> str:
    """Return the same for a formatted Python stack, as torch stores it for each node of a graph."""
    frames = re.findall(r'File "(.+)", line (\d+), in (\S+)', stack or "")
    user = next(((name, line, where) for name, line, where in reversed(frames) if _is_users_file(name)), None)
    return f" at {user[0]}:{user[1]} in {user[2]}" if user else ""


def _words(frame: FrameType, line: int) -> str:
    return f" at {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"


def _is_users(frame: FrameType) -> bool:
    return _is_users_file(frame.f_code.co_filename)


def _is_users_file(filename: str) -> bool:
    """Whether a frame's file is neither Python's, a library's, edgeq's, nor generated code."""
    if filename.startswith("<") or any(part in filename for part in _LIBRARIES):
        return False
    path = Path(filename).resolve()
    return not path.is_relative_to(_OWN) or path.is_relative_to(_DEMO)
