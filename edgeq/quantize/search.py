"""The search for the fewest bytes in float that keep the accuracy: layers are ranked, assignments converted and run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import Attempt, QuantizedModel, Scores, Search, Sensitivity
from edgeq.errors import first_line
from edgeq.job import Task
from edgeq.quantize.assignments import Assignments, costs
from edgeq.quantize.qat_state import load_state, save_state, state_key, state_path
from edgeq.quantize.remedies import Remedy
from edgeq.quantize.sensitivity import RANK_SAMPLES, Subject, measurements, rank, simulated
from edgeq.quantize.spec import QuantizeSpec, SearchSpec
from edgeq.samples import Dataset
from edgeq.units import counted

if TYPE_CHECKING:
    from edgeq.quantize.simulate import Simulation

_FLOAT_TIMES = 4  # bytes of a float weight for each byte in int8

Finish = Callable[[Sequence[str], bool], QuantizedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A calibrated model to search on.

    Attributes:
        spec: what it was calibrated by.
        subject: the calibrated graph; it is used up.
        finish: quantizes all layers but those named, and measures them one by one where it is the final one.
        remedies: in what it differs from what was asked for.
    """

    spec: QuantizeSpec
    subject: Subject
    finish: Finish
    remedies: tuple[str, ...] = ()


@dataclass(slots=True)
class _Notebook:
    """What was measured already; written after every measurement, so that a killed search goes on from there."""

    path: Path | None
    key: str
    task: Task
    values: dict[str, Any]
    prefix: str = ""

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        name = self.prefix + name
        if name not in self.values:
            self.values[name] = measure()
            if self.path is not None:
                try:
                    save_state(self.path, self.key, {"values": self.values})
                except OSError as err:  # the search itself goes on
                    self.task.note(f"the state of the search was not kept: {err.strerror or first_line(err)}")
        return self.values[name]


def mixed(
    spec: QuantizeSpec, ground_of: Callable[[QuantizeSpec], Ground], remedies: Sequence[Remedy]
) -> QuantizedModel:
    """Return the smallest model that keeps the limits on the search samples, or the nearest to them.

    Where int8 as it was asked for is not enough, remedies come first, each on top of those that helped, since they
    cost no bytes; then layers are left in float.

    Args:
        spec: what the method was given; `spec.search` is there.
        ground_of: calibrates a model.
        remedies: changes for all layers.

    Raises:
        UnsupportedError: no layer can be left in float, or what `ground_of` and its `finish` raise.
    """
    asked = spec.search
    if asked is None:
        raise TypeError("mixed-int8 needs SearchSpec")
    first = ground_of(spec)
    key = _key(first.subject, spec, asked)
    simulation = simulated(first.subject)
    sizes = {layer: simulation.weight_elements(layer) for layer in simulation.layers}
    with spec.progress.task(f"search {spec.label}") as task:
        book = _notebook(key, asked, task)
        trials = _Trials(sizes, spec, asked, book)
        remedied = _remedied(first, ground_of, remedies, trials)
    ranking, chosen = _best(first, simulation, remedied, trials, book)
    ground = remedied if chosen.remedies else first
    search = trials.search(ranking, chosen)
    return dataclasses.replace(ground.finish(chosen.kept, True), search=search, search_state=book.path)


def _best(
    first: Ground, simulation: Simulation, remedied: Ground, trials: _Trials, book: _Notebook
) -> tuple[tuple[Sensitivity, ...], Attempt]:
    """Return the best attempt, and the ranking that led to it."""
    rankings = {}
    if remedied is not first:
        rankings[remedied.remedies] = _searched(remedied, simulated(remedied.subject), trials, book)
    # what helps where all is int8 may spoil what little is left in it: then without
    best = trials.best()
    if not best.meets or best.kept or not rankings:
        below = trials.float_weights(best.kept) if best.meets and rankings else math.inf
        rankings[first.remedies] = _searched(first, simulation, trials, book, below)
    best = trials.best(tuple(rankings))
    return rankings[best.remedies], best


def _searched(
    ground: Ground, simulation: Simulation, trials: _Trials, book: _Notebook, below: float = math.inf
) -> tuple[Sensitivity, ...]:
    """Search on one ground, for fewer than `below` weights in float; return the layers' ranking there."""
    ranking = _ranking(ground, simulation, book)
    with ground.spec.progress.task(f"search {ground.spec.label}") as task:
        book.task = task
        Assignments(costs(ranking), lambda kept: trials.run(ground, kept), trials.fits).search(below)
    return ranking


def _remedied(
    ground: Ground, ground_of: Callable[[QuantizeSpec], Ground], remedies: Sequence[Remedy], trials: _Trials
) -> Ground:
    """Return what to search on: as asked for, or with the remedies that brought the scores nearer to the limits."""
    best = trials.run(ground, ())
    for remedy in remedies:
        changed = None if best.meets else remedy.apply(ground.spec)
        if changed is None:
            continue
        other = dataclasses.replace(ground_of(changed), remedies=(*ground.remedies, remedy.name))
        attempt = trials.run(other, ())
        if trials.short(attempt.scores) < trials.short(best.scores):
            ground, best = other, attempt
    return ground


def _ranking(ground: Ground, simulation: Simulation, book: _Notebook) -> tuple[Sensitivity, ...]:
    spec = ground.spec
    with spec.progress.task(f"rank the layers for {spec.label}", measurements(simulation)) as task:
        book.task, book.prefix = task, f"{'+'.join(ground.remedies)}:"
        samples = evenly(spec.calibration, RANK_SAMPLES)
        ranking = rank(simulation, samples, spec.inputs, task, book.recall)
    book.prefix = ""
    return ranking


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
        task.note(f"resumed after {counted(len(values), 'measurement')}")
    return _Notebook(path=path, key=key, task=task, values=values)


class _Trials:
    """Assignments that were converted and run on the search samples, each once."""

    def __init__(self, sizes: Mapping[str, int], spec: QuantizeSpec, asked: SearchSpec, book: _Notebook) -> None:
        self._asked, self._book = asked, book
        self.sizes = sizes
        self._int8_bytes = spec.model.fp32_bytes - (_FLOAT_TIMES - 1) * sum(sizes.values())
        self.attempts: list[Attempt] = []

    def run(self, ground: Ground, layers: Sequence[str]) -> Attempt:
        """Return what leaving these layers in float comes to."""
        kept = tuple(sorted(layers))
        known = [one for one in self.attempts if (one.kept, one.remedies) == (kept, ground.remedies)]
        if known:
            return known[0]

        def score() -> dict[str, float | None]:
            return dataclasses.asdict(self._asked.score(ground.finish(kept, False).graph))

        name = f"{'+'.join(ground.remedies)}:kept:{'|'.join(kept)}"
        scores, size = Scores(**self._book.recall(name, score)), self.size_bytes(kept)
        meets = self.fits(kept) and self.short(scores) <= 0
        attempt = Attempt(kept=kept, size_bytes=size, scores=scores, meets=meets, remedies=ground.remedies)
        self.attempts.append(attempt)
        self._book.task.note(
            f"{counted(len(kept), 'layer')} in float: {_words(scores)}, {'ok' if meets else 'too far'}"
        )
        return attempt

    def best(self, remedies: Collection[tuple[str, ...]] | None = None) -> Attempt:
        """Return the attempt that keeps the limits with the fewest bytes, or the nearest; of some remedies or all."""
        return min((one for one in self.attempts if remedies is None or one.remedies in remedies), key=self._rank)

    def _rank(self, attempt: Attempt) -> tuple[bool, float, float]:
        """Order attempts: those that keep the limits by their size, others by how far they are from that."""
        if attempt.meets:
            return False, attempt.size_bytes, len(attempt.kept)
        return True, self.short(attempt.scores), attempt.size_bytes

    def search(self, ranking: tuple[Sensitivity, ...], chosen: Attempt) -> Search:
        """Return all that was tried, with one chosen."""
        return Search(
            limits=self._asked.limits,
            samples=self._asked.samples.count,
            ranking=ranking,
            attempts=tuple(self.attempts),
            chosen=self.attempts.index(chosen),
        )

    def float_weights(self, kept: Sequence[str]) -> int:
        """Return how many weights these layers have."""
        return sum(self.sizes[name] for name in kept)

    def size_bytes(self, kept: Sequence[str]) -> int:
        """Return an estimate of the artifact's size."""
        return self._int8_bytes + (_FLOAT_TIMES - 1) * self.float_weights(kept)

    def fits(self, kept: Sequence[str]) -> bool:
        """Whether the size keeps its limit, where there is one."""
        return self._asked.size_limit is None or self.size_bytes(kept) <= self._asked.size_limit

    def short(self, scores: Scores) -> float:
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


def _words(scores: Scores) -> str:
    drop = "" if scores.drop_pp is None else f", drop {scores.drop_pp:.2f} pp"
    return f"SQNR {scores.sqnr_db:.1f} dB{drop}"
