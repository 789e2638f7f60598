"""Rows of numbered trials, and the count of their outcomes, from which a stopped session resumes."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

SAVE_EVERY_S = 5.0
SHOWN = 20  # of the trials that went wrong, the first so many are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one trial.

    Attributes:
        seen: the kind of outcome, which is counted.
        wrong: why it was not as it should be; empty if it was.
    """

    seen: str
    wrong: str = ""


Trial = Callable[[int], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """An open row.

    Attributes:
        run: the trial of a number, counted from 0.
        most: how many there are; None for as many as one likes.
    """

    run: Trial
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test.

    Attributes:
        name: what is typed; `kills.update` is of the kind `kills`.
        full: the number of trials that issue 7 asks for; None for all that there are.
        open: makes what the trials need in an empty folder; its argument is the maximum number of trials.
        needs_shim: whether faults come from the shim in front of libc.
    """

    name: str
    full: int | None
    open: Callable[[Path, int | None], AbstractContextManager[Trials]]
    needs_shim: bool = False


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a row has shown so far; `seconds` are those of all its trials together."""

    row: str
    done: int = 0
    wanted: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mb: float = 0.0

    def add(self, number: int, outcome: Outcome, took_s: float) -> None:
        """Count one trial."""
        self.done = number + 1
        self.seen[outcome.seen] += 1
        if outcome.wrong:
            self.wrong += 1
            self.examples = [*self.examples, f"trial {number}: {outcome.wrong}"][:SHOWN]
        self.seconds += took_s
        self.slowest_s = max(self.slowest_s, took_s)
        self.peak_mb = max(self.peak_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)

    def words(self) -> str:
        """Return the result in a line, and a line for each trial that went wrong."""
        seen = ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))
        each_ms = 1e3 * self.seconds / max(1, self.done)
        verdict = f"{self.wrong} WRONG" if self.wrong else "all as it should be"
        line = f"{self.row}: {self.done} of {self.wanted}: {verdict}: {seen}"
        line += f"; {each_ms:.1f} ms each, slowest {self.slowest_s:.2f} s, peak {self.peak_mb:.0f} MB"
        return "\n".join([line, *(f"  {example}" for example in self.examples)])


def run_row(row: Row, work: Path, count: int | None, results: Path | None) -> Tally:
    """Run the trials of a row that its result file does not have yet.

    Args:
        row: what to run.
        work: an empty folder.
        count: how many trials; None for as many as the row has, or issue 7 asks for.
        results: folder of the result files, `ROW.json`; None to keep none.
    """
    wanted = row.full if count is None else count
    path = results / f"{row.name}.json" if results else None
    tally = _load(path) or Tally(row=row.name)
    if wanted is not None and tally.done >= wanted:
        return tally
    with row.open(work, wanted) as trials:
        tally.wanted = min(n for n in (wanted, trials.most) if n is not None)
        for _ in _saving(tally, path):
            start = time.monotonic()
            outcome = trials.run(tally.done)
            tally.add(tally.done, outcome, time.monotonic() - start)
    return tally


def _saving(tally: Tally, path: Path | None) -> Iterator[None]:
    """Yield until all are done, and write the count down now and then, and at the end."""
    saved = time.monotonic()
    try:
        while tally.done < tally.wanted:
            yield
            if path and time.monotonic() - saved > SAVE_EVERY_S:
                _save(tally, path)
                saved = time.monotonic()
    finally:
        if path:
            _save(tally, path)


def _save(tally: Tally, path: Path) -> None:
    from edgeq.core.files import canonical_json, write_atomic

    told = {field.name: getattr(tally, field.name) for field in dataclasses.fields(tally)}  # asdict spoils a Counter
    write_atomic(path, canonical_json(told))


def _load(path: Path | None) -> Tally | None:
    if path is None or not path.exists():
        return None
    told = json.loads(path.read_text())
    return Tally(**{**told, "seen": Counter(told["seen"])})
