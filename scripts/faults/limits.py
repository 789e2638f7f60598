"""Each store's limit minus one byte, the limit itself, and one byte more: the gate is right every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .tally import Outcome, Row, Trials

_APPS = (0, 1, 123_456_789)  # bytes of the app without the model
_TARGETS = {"android": "android-arm64-xnnpack", "ios": "ios-arm64-xnnpack", "any": "android-arm64-xnnpack"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    preset: str
    app_bytes: int | None
    over: int


@contextlib.contextmanager
def _open(_root: Path, _count: int | None) -> Iterator[Trials]:
    from edgeq.check.stores import store_limits

    cases = [
        _Case(preset=preset, app_bytes=app, over=over)
        for preset, limit in store_limits().items()
        for app in (tuple(a for a in _APPS if a < limit.limit_bytes) if limit.counts_app else (None,))
        for over in (-1, 0, 1)
    ]
    yield Trials(run=lambda number: _trial(cases[number]), most=len(cases))


def _trial(case: _Case) -> Outcome:
    from edgeq.check.stores import store_gate, store_limits
    from edgeq.core.errors import ExitCode
    from edgeq.core.targets import load_target

    limit = store_limits()[case.preset]
    counted = limit.limit_bytes + case.over - (case.app_bytes or 0)
    # what the store does not count is far too much, or nothing: it must make no difference
    other = 0 if case.over > 0 else 100 * limit.limit_bytes
    size, download = (other, counted) if limit.basis == "compressed download" else (counted, other)
    gate = store_gate(case.preset, case.app_bytes, size, download, load_target(_TARGETS[limit.platform]))
    expected = "failed" if case.over > 0 else "ok"
    right = gate.outcome == expected and (expected == "ok" or gate.exit_code == ExitCode.SIZE)
    wrong = "" if right else f"{case}: {gate.outcome}, {gate.measured}"
    return Outcome(seen=f"{case.over:+d} byte: {gate.outcome}", wrong=wrong)


ROWS = (Row(name="limits", full=None, open=_open),)
