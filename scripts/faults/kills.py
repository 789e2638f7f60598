"""kill -9 at every call that changes a file, then at random times: nothing torn, and the next run recovers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from .operations import OPERATIONS, Operation
from .processes import KILL, KILLED, Stage, difference, equal, kill_at, moment, run, spread, stage, tree, undisturbed_s
from .tally import Outcome, Row, Trials


@contextlib.contextmanager
def _open(operation: Operation, root: Path, count: int | None) -> Iterator[Trials]:
    staged = stage(operation, root)
    wanted = count or staged.calls
    seconds = undisturbed_s(staged) if wanted > staged.calls else 0.0
    yield Trials(run=lambda number: _trial(staged, number, wanted, seconds))


def _trial(staged: Stage, number: int, count: int, seconds: float) -> Outcome:
    work, operation = staged.copy(), staged.operation
    call = spread(number, staged.calls, count)
    if call <= staged.calls:
        status = run(work, operation, number=call, how=KILL)
    else:
        status = kill_at(work, operation, moment(number, seconds))
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
    return Outcome(seen="recovered" if status == KILLED else "ended before the kill, whole")


ROWS = tuple(
    Row(name=f"kills.{name}", full=one.full, open=functools.partial(_open, one), needs_shim=True)
    for name, one in OPERATIONS.items()
)
