"""Why a runner gave no result: what its exit status, its signal and its last words mean."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from edgeq.errors import EdgeqError, EnvironmentProblem, UnsupportedError, UsageError, VerificationError
from edgeq.verify.emulate.work import Work
from edgeq.verify.host import executorch_error, signal_name

_BAD_INPUTS = 3  # the exit statuses of src/runner.h
_BAD_MODEL = 4
_MISSING_OPERATOR = re.compile(r"(?:Missing operator: \[\d+\] |following ops cannot be found[^:]*: *)(\S+)", re.I)


class TooSlow(VerificationError):
    """The time limit came before the last sample (exit code 7)."""

    def __init__(self, done: int, total: int, timeout_s: float, name: str = "emulation") -> None:
        super().__init__(
            f"{name} did not end within {timeout_s:.3g} s: {done} of {total} samples were done",
            "give it more time with --timeout, fewer samples with --samples, or verify on this host only: --on host",
        )
        self.done = done
        self.total = total


def failure(work: Work, status: int, place: Path) -> EdgeqError:
    """Say why a runner ended.

    Args:
        work: what it was to do.
        status: the process's, negative for a signal.
        place: where its standard error lies.
    """
    said = (place / "stderr").read_text(errors="replace")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    on = f"{work.runtime.wheel.title} on {work.cpu.name if work.cpu else work.where}"
    if status < 0:
        return _crashed(on, -status, lines)
    told = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    if status == _BAD_INPUTS:
        return UsageError(f"{on}: {told}", "mend the data, or give --input to match the model")
    if status == _BAD_MODEL:
        return _refused(on, told, said)
    last = told or (lines[-1][:200] if lines else f"status {status}")
    return EnvironmentProblem(f"{on}: the runner did not start: {last}", "run `edgeq doctor`")


def _crashed(on: str, number: int, lines: list[str]) -> EdgeqError:
    last = f"; it last said: {lines[-1][:200]}" if lines else ""
    fix = "the artifact must not ship; report the model's architecture to its runtime"
    if number == signal.SIGKILL:
        fix = "the system ends processes when memory runs out: free some, or try a smaller model"
    return VerificationError(f"{on} crashed with {signal_name(number)}{last}", fix)


def _refused(on: str, told: str, said: str) -> EdgeqError:
    missing = tuple(dict.fromkeys(name.rstrip(",.") for name in _MISSING_OPERATOR.findall(said)))
    if missing:
        what = f"{on} lacks operators that the artifact uses: {', '.join(missing)}"
        return UnsupportedError(what, "choose a target with a newer runtime, or replace these operators")
    kind, meaning = executorch_error(told)
    what = f"{on}: {meaning} ({told})" if meaning else f"{on}: {told}"
    return kind(what, "package the model again; if that does not help, choose another target")
