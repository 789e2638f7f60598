"""ENOSPC, EIO, EACCES and short writes at each call that changes a file: a named error; the target as it was."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Iterator
from pathlib import Path

from .operations import OPERATIONS, Operation
from .processes import SHORT, Stage, difference, equal, promised, run, stage, tree
from .tally import Outcome, Row, Trials

FAULTS = (("ENOSPC", errno.ENOSPC), ("EIO", errno.EIO), ("EACCES", errno.EACCES), ("short write", SHORT))
_NAMED = (0, 2, 7, 8, 9)  # exit codes: done all the same, or an error that says what is wrong
_DAYS = {"cold-package"}  # four faults at each of its calls would take days


@contextlib.contextmanager
def _open(operation: Operation, root: Path, _count: int | None) -> Iterator[Trials]:
    staged = stage(operation, root)
    yield Trials(run=lambda number: _trial(staged, number), most=len(FAULTS) * staged.calls)


def _trial(staged: Stage, number: int) -> Outcome:
    fault, how = FAULTS[number % len(FAULTS)]
    call = number // len(FAULTS) + 1
    work = staged.copy()
    code = run(work, staged.operation, number=call, how=how)
    before, left, after = (promised(one) for one in (staged.before, tree(work / "target"), staged.after))
    is_done = equal(left, after, staged.operation)
    same = "as before" if left == before else "done" if is_done else "changed"
    seen = f"{fault}: exit {code}, {same}"
    if code in _NAMED and same != "changed" and not (code == 0 and same == "as before"):
        return Outcome(seen=seen)
    return Outcome(
        seen=seen, wrong=f"{fault} at call {call} of {staged.calls}: exit {code}, {difference(before, left)}"
    )


ROWS = tuple(
    Row(name=f"errors.{name}", full=None, open=functools.partial(_open, one), needs_shim=True)
    for name, one in OPERATIONS.items()
    if name not in _DAYS
)
