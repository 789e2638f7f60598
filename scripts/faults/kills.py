"""kill -9 at every call that changes a file, then at random times: nothing torn, and the next run recovers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from .operations import OPERATIONS, Operation
from .processes import KILL, Stage, difference, equal, kill_at, moment, run, spread, stage, tree
from .tally import Outcome, Row, Trials


@contextlib.contextmanager
def _open(operation: Operation, root: Path, count: int | None) -> Iterator[Trials]:
    staged = stage(operation, root)
    yield Trials(run=lambda number: _trial(staged, number, count or staged.calls))


def _trial(staged: Stage, number: int, count: int) -> Outcome:
    work, operation = staged.copy(), staged.operation
    call = spread(number, staged.calls, count)
    if call <= staged.calls:
        run(work, operation, number=call, how=KILL)
    else:
        kill_at(work, operation, moment(number, staged.seconds))
    where = f"killed at call {call} of {staged.calls}" if call <= staged.calls else "killed at a random time"
    try:
        state = operation.read(work)
    except Exception as err:  # whatever it is, the state is torn
        return Outcome(seen="torn", wrong=f"{where}: torn: {type(err).__name__}: {err}")
    code = run(work, operation)
    left = tree(work / "target")
    if code or not equal(left, staged.after, operation):
        told = f"{where}: {state}, then exit {code}: {difference(staged.after, left)}"
        return Outcome(seen="not recovered", wrong=told)
    return Outcome(seen="recovered")


ROWS = tuple(
    Row(name=f"kills.{name}", full=one.full, open=functools.partial(_open, one), needs_shim=True)
    for name, one in OPERATIONS.items()
)
