"""The search for the fewest bytes in float that keep the accuracy: layers are ranked, assignments converted and run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifacts import Attempt, QuantizedModel, Scores, Search, Sensitivity
from edgeq.errors import first_line
from edgeq.job import Task
from edgeq.quantize.qat_state import load_state, save_state, state_key, state_path
from edgeq.quantize.sensitivity import RANK_SAMPLES, Subject, measurements, rank, simulated
from edgeq.quantize.spec import QuantizeSpec, SearchSpec
from edgeq.samples import Dataset

_MOST_PRUNED = 12  # layers that are put back into int8 one by one at the end, the largest first
_FLOAT_TIMES = 4  # bytes of a float weight for each byte in int8

Finish = Callable[[Sequence[str]], QuantizedModel]


@dataclass(slots=True)
class _Notebook:
    """What was measured already; written after every measurement, so that a killed search goes on from there."""

    path: Path | None
    key: str
    task: Task
    values: dict[str, Any]

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.values:
            self.values[name] = measure()
            if self.path is not None:
                try:
                    save_state(self.path, self.key, {"values": self.values})
                except OSError as err:  # the search itself goes on
                    self.task.note(f"the state of the search was not kept: {err.strerror or first_line(err)}")
        return self.values[name]


def mixed(subject: Subject, spec: QuantizeSpec, finish: Finish) -> QuantizedModel:
    """Return the smallest model that keeps the limits on the search samples, or the nearest to them.

    Args:
        subject: the calibrated graph; it is used up.
        spec: what the method was given; `spec.search` is there.
        finish: quantizes all layers but those named.

    Raises:
        UnsupportedError: no layer can be left in float, or what `finish` raises.
    """
    asked = spec.search
    if asked is None:
        raise TypeError("mixed-int8 needs SearchSpec")
    key = _key(subject, spec, asked)
    simulation = simulated(subject)
    with spec.progress.task(f"rank the layers for {spec.label}", measurements(simulation)) as task:
        book = _notebook(key, asked, task)
        ranking = rank(simulation, evenly(spec.calibration, RANK_SAMPLES), spec.inputs, task, book.recall)
    with spec.progress.task(f"search {spec.label}") as task:
        book.task = task
        run = _Run(ranking, spec, asked, finish, book)
        chosen = run.best()
        found = Search(
            limits=asked.limits,
            samples=asked.samples.count,
            ranking=ranking,
            attempts=tuple(run.attempts),
            chosen=run.attempts.index(chosen),
        )
        return dataclasses.replace(finish(chosen.kept), search=found, search_state=book.path)


def evenly(samples: Dataset, most: int) -> Dataset:
    """Return at most `most` samples, from all parts of the set."""
    count = min(most, samples.count)
    rows = [i * samples.count // count for i in range(count)]
    return dataclasses.replace(samples, count=count, read=lambda i: samples.read(rows[i]))


def _key(subject: Subject, spec: QuantizeSpec, asked: SearchSpec) -> str:
    facts = {
        "limits": list(asked.limits),
        "size": asked.size_limit,
        "keep": list(spec.keep_fp32),
        "made_of": list(asked.identity),
        "backend": spec.backend,
    }
    return state_key(dict(subject.prepared.state_dict()), facts)


def _notebook(key: str, asked: SearchSpec, task: Task) -> _Notebook:
    path = state_path(asked.state_folder, key) if asked.state_folder is not None else None
    saved = load_state(path, key) if path is not None else None
    values = saved["values"] if saved is not None else {}
    if values:
        task.note(f"resumed after {len(values)} measurements")
    return _Notebook(path=path, key=key, task=task, values=values)


class _Run:
    """Tries assignments, each converted and run on the search samples."""

    def __init__(
        self, ranking: Sequence[Sensitivity], spec: QuantizeSpec, asked: SearchSpec, finish: Finish, book: _Notebook
    ) -> None:
        self._asked, self._finish, self._book = asked, finish, book
        self._bytes = {item.layer: item.weight_bytes for item in ranking}
        self._int8_bytes = spec.model.fp32_bytes - (_FLOAT_TIMES - 1) * sum(self._bytes.values())
        # the most noise for a byte first, so that few bytes of float take away much of it
        self._order = sorted(self._bytes, key=lambda name: -_noise(ranking, name) / max(1, self._bytes[name]))
        self.attempts: list[Attempt] = []

    def best(self) -> Attempt:
        """Return the attempt that keeps the limits with the fewest bytes, or the nearest."""
        most = self._affordable()
        if not self._try(()).meets and most and self._try(self._order[:most]).meets:
            self._prune(self._bisect(most))
        meeting = [attempt for attempt in self.attempts if attempt.meets]
        if meeting:
            return min(meeting, key=lambda attempt: (attempt.size_bytes, len(attempt.kept)))
        return min(self.attempts, key=lambda attempt: (self._short(attempt.scores), attempt.size_bytes))

    def _affordable(self) -> int:
        """Return how many layers of the order may be in float, one always left in int8."""
        limit, count = self._asked.size_limit, 0
        for count in range(len(self._order)):
            if limit is not None and self._size(self._order[: count + 1]) > limit:
                return count
        return count

    def _bisect(self, most: int) -> Attempt:
        low, high = 0, most  # that of `high` meets the limits, that of `low` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._try(self._order[:middle]).meets else (middle, high)
        return self._try(self._order[:high])

    def _prune(self, found: Attempt) -> None:
        """Put back into int8 what is not needed, the largest layer first."""
        kept = found.kept
        for layer in sorted(kept, key=lambda name: -self._bytes[name])[:_MOST_PRUNED]:
            fewer = tuple(name for name in kept if name != layer)
            if fewer and self._try(fewer).meets:
                kept = fewer

    def _try(self, layers: Sequence[str]) -> Attempt:
        kept = tuple(sorted(layers))
        known = next((attempt for attempt in self.attempts if attempt.kept == kept), None)
        if known is not None:
            return known
        scores = Scores(**self._book.recall(f"kept:{'|'.join(kept)}", lambda: self._scored(kept)))
        size = self._size(kept)
        fits = self._asked.size_limit is None or size <= self._asked.size_limit
        attempt = Attempt(kept=kept, size_bytes=size, scores=scores, meets=fits and self._short(scores) <= 0)
        self.attempts.append(attempt)
        self._book.task.note(f"{len(kept)} layers in float: {_words(scores)}, {'ok' if attempt.meets else 'too far'}")
        return attempt

    def _scored(self, kept: tuple[str, ...]) -> dict[str, float | None]:
        return dataclasses.asdict(self._asked.score(self._finish(kept).graph))

    def _size(self, kept: Sequence[str]) -> int:
        return self._int8_bytes + (_FLOAT_TIMES - 1) * sum(self._bytes[name] for name in kept)

    def _short(self, scores: Scores) -> float:
        """Return by how much the worst limit is missed, relative to the limit; at most 0 where all are kept."""
        return max(_missed(name, limit, scores) for name, limit in self._asked.limits)


def _missed(name: str, limit: float, scores: Scores) -> float:
    if name == "accuracy_drop":
        missed = math.inf if scores.drop_pp is None else scores.drop_pp - limit
    elif name == "agreement":
        missed = math.inf if scores.agreement is None else limit - 100 * scores.agreement
    else:
        missed = limit - scores.sqnr_db
    return math.inf if math.isnan(missed) else missed / max(abs(limit), 1e-9)


def _noise(ranking: Sequence[Sensitivity], layer: str) -> float:
    """Return the power of what quantizing a layer alone adds to the outputs, relative to theirs."""
    (item,) = (item for item in ranking if item.layer == layer)
    return float(10 ** (-item.alone_db / 10)) if item.alone_db > -math.inf else math.inf


def _words(scores: Scores) -> str:
    drop = "" if scores.drop_pp is None else f", drop {scores.drop_pp:.2f} pp"
    return f"SQNR {scores.sqnr_db:.1f} dB{drop}"
