"""The search for the fewest bytes in float that keep the accuracy: layers are ranked, assignments converted and run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.config import Task
from edgeq.core.errors import first_line
from edgeq.core.results.model import Attempt, QuantizedModel, Scores, Search, Sensitivity
from edgeq.core.samples import evenly
from edgeq.core.schemes import ObserverName
from edgeq.core.units import counted
from edgeq.quantize.calibrate import without_outliers
from edgeq.quantize.equalize import equalized
from edgeq.quantize.qat import load_state, save_state, state_key, state_path
from edgeq.quantize.result import type_names
from edgeq.quantize.sensitivity import RANK_SAMPLES, Probe, Simulation, Subject, measurements, rank, simulated
from edgeq.quantize.spec import QuantizeSpec, SearchSpec, matched_names

_FLOAT_TIMES = 4  # bytes of a float weight for each byte in int8

Finish = Callable[[Sequence[str], bool], QuantizedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
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
                    self.task.note(f"the state of the search was not saved: {err.strerror or first_line(err)}")
        return self.values[name]


def mixed(
    spec: QuantizeSpec, ground_of: Callable[[QuantizeSpec], SearchSpace], remedies: Sequence[Mitigation]
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
    facts = {
        "limits": list(asked.limits),
        "size": asked.size_limit,
        "keep": list(spec.keep_fp32),
        "made_of": list(asked.identity),
        "backend": spec.backend,
    }
    key = state_key(dict(first.subject.prepared.state_dict()), facts)
    simulation = simulated(first.subject)
    sizes = {layer: simulation.weight_elements(layer) for layer in simulation.layers}
    with spec.progress.task(f"search {spec.label}", unit="measurements") as task:
        path = state_path(asked.state_folder, key) if asked.state_folder is not None else None
        saved = load_state(path, key) if path is not None else None
        values = saved["values"] if saved is not None else {}
        if values:
            task.note(f"resumed after {counted(len(values), 'measurement')}")
        book = _Notebook(path=path, key=key, task=task, values=values)
        trials = _Trials(sizes, spec, asked, book)
        remedied = _remedied(first, ground_of, remedies, trials)
    # find the best attempt, and the ranking that led to it
    rankings = {}
    if remedied is not first:
        rankings[remedied.remedies] = _searched(remedied, simulated(remedied.subject), trials, book)
    # what helps where all is int8 may spoil what little is left in it: then without
    best = trials.best()
    if not best.meets or best.kept or not rankings:
        below = trials.float_weights(best.kept) if best.meets and rankings else math.inf
        rankings[first.remedies] = _searched(first, simulation, trials, book, below)
    best = trials.best(tuple(rankings))
    ranking, chosen = rankings[best.remedies], best
    ground = remedied if chosen.remedies else first
    search = trials.search(ranking, chosen)
    return dataclasses.replace(ground.finish(chosen.kept, True), search=search, search_state=book.path)


def _searched(
    ground: SearchSpace, simulation: Simulation, trials: _Trials, book: _Notebook, below: float = math.inf
) -> tuple[Sensitivity, ...]:
    """Search on one ground, for fewer than `below` weights in float; return the layers' ranking there."""
    ranking = _ranking(ground, simulation, book)
    with ground.spec.progress.task(f"search {ground.spec.label}", unit="measurements") as task:
        book.task = task
        Assignments(costs(ranking), lambda kept: trials.run(ground, kept), trials.fits).search(below)
    return ranking


def _remedied(
    ground: SearchSpace,
    ground_of: Callable[[QuantizeSpec], SearchSpace],
    remedies: Sequence[Mitigation],
    trials: _Trials,
) -> SearchSpace:
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


def _ranking(ground: SearchSpace, simulation: Simulation, book: _Notebook) -> tuple[Sensitivity, ...]:
    spec = ground.spec
    with spec.progress.task(f"rank the layers for {spec.label}", measurements(simulation), "measurements") as task:
        book.task, book.prefix = task, f"{'+'.join(ground.remedies)}:"
        probe = Probe(simulation, evenly(spec.calibration, RANK_SAMPLES), spec.inputs)
        ranking = rank(probe, task, book.recall)
    book.prefix = ""
    return ranking


class _Trials:
    """Assignments that were converted and run on the search samples, each once."""

    def __init__(self, sizes: Mapping[str, int], spec: QuantizeSpec, asked: SearchSpec, book: _Notebook) -> None:
        self._asked, self._book = asked, book
        self.sizes = sizes
        self._int8_bytes = spec.model.fp32_bytes - (_FLOAT_TIMES - 1) * sum(sizes.values())
        self.attempts: list[Attempt] = []

    def run(self, ground: SearchSpace, layers: Sequence[str]) -> Attempt:
        """Return the attempt with these layers in float."""
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
            f"{counted(len(kept), 'layer')} in float: {_words(scores)}, {'ok' if meets else 'over the limit'}"
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
        """Whether the size keeps its limit, if there is one."""
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


# --- Which layers to leave in float: those that cost the fewest bytes for what noise they take away, tried one by
# one.


_MOST_PRUNED = 12  # layers that are put back into int8 one by one at the end, the largest first

_MOST_CHEAPER = 4  # assignments beside the one found that are tried all the same: noise is no more than an estimate

_MOST_FURTHER = 16  # where the one of least noise does not meet the limits

_ALIKE = 0.01  # two sums of noise that differ by no more than this share, while the assignments are made up

_STEP = 0.05  # and the same for those that are tried: 0.2 dB

_WORST_DB = -120.0  # of a layer that gives NaN, so that sums stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a layer costs: `weights` in float, in elements, or in int8 `noise`, its power relative to the outputs'."""

    weights: int
    noise: float


@dataclass(frozen=True, slots=True)
class _Point:
    weights: int
    noise: float
    kept: tuple[str, ...]


def costs(ranking: Sequence[Sensitivity]) -> dict[str, Cost]:
    """Return the cost of each layer by name, from what quantizing it alone does."""
    return {
        item.layer: Cost(weights=item.weight_bytes, noise=10 ** (-max(item.alone_db, _WORST_DB) / 10))
        for item in ranking
    }


def frontier(layers: Mapping[str, Cost]) -> tuple[tuple[str, ...], ...]:
    """Return the assignments that no other beats in both float weights and noise, from none in float on.

    Layers' noises are added up, as if they were independent; sums that are nearly alike count as one (Nemhauser and
    Ullmann, "Discrete dynamic programming and capital allocation", 1969, with trimming). One layer is always in int8.

    Args:
        layers: by name.
    """
    points = [_Point(0, 0.0, ())]
    for name, cost in layers.items():
        in_int8 = [_Point(point.weights, point.noise + cost.noise, point.kept) for point in points]
        in_float = [_Point(point.weights + cost.weights, point.noise, (*point.kept, name)) for point in points]
        points = list(_undominated([*in_int8, *in_float], _ALIKE))
    return tuple(
        point.kept for point in _undominated([point for point in points if len(point.kept) < len(layers)], _STEP)
    )


def _undominated(points: list[_Point], alike: float) -> Iterator[_Point]:
    least = math.inf
    for point in sorted(points, key=lambda one: (one.weights, one.noise)):
        if point.noise < least * (1 - alike):
            least = point.noise
            yield point


class Assignments:
    """Looks for the fewest weights in float.

    Args:
        layers: by name.
        attempt: converts and runs the model with these layers in float.
        fits: whether the size with these layers in float keeps its limit.
    """

    def __init__(
        self,
        layers: Mapping[str, Cost],
        attempt: Callable[[Sequence[str]], Attempt],
        fits: Callable[[Sequence[str]], bool],
    ) -> None:
        self._layers, self._attempt, self._fits = layers, attempt, fits

    def search(self, below: float = math.inf) -> None:
        """Attempt assignments of fewer than `below` weights in float until none is known that may be better.

        Without a bound, up to 16 with a single layer in int8 are tried before giving up: with more of them in int8 it
        would be worse. Where none fits the size, up to 16 that fit are tried.
        """
        points = [kept for kept in frontier(self._layers) if self._may(kept, below)]
        if not points or self._attempt(points[0]).meets:
            return
        if self._attempt(points[-1]).meets:
            # go down from the last of the points, which meets the limits, to the fewest weights
            low, high = 0, len(points) - 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self._attempt(points[middle]).meets else (middle, high)
            cheaper = points[max(1, high - _MOST_CHEAPER) : high]
            self._prune(next((kept for kept in cheaper if self._attempt(kept).meets), points[high]))
        elif math.isinf(below):
            self._look_further(points)

    def _look_further(self, points: Sequence[tuple[str, ...]]) -> None:
        """Try what the estimate holds for worse than the last of the points: it may be wrong."""
        quietest = sorted(self._layers, key=lambda name: self._layers[name].noise)
        single = [tuple(other for other in self._layers if other != name) for name in quietest]
        further = [kept for kept in single if self._fits(kept)] or points[-2:0:-1]
        for kept in further[:_MOST_FURTHER]:
            if self._attempt(kept).meets:
                self._prune(kept)
                return

    def _prune(self, kept: tuple[str, ...]) -> None:
        """Put back into int8 what is not needed, the largest layer first."""
        for layer in sorted(kept, key=lambda name: -self._layers[name].weights)[:_MOST_PRUNED]:
            fewer = tuple(name for name in kept if name != layer)
            if fewer and self._attempt(fewer).meets:
                kept = fewer

    def _may(self, kept: Sequence[str], below: float) -> bool:
        return self._fits(kept) and sum(self._layers[name].weights for name in kept) < below


# --- What mixed-int8 tries before it spends bytes on float: changes for all layers at once that cost none.


# what searches the least error, and what cuts outliers; minmax is for those who ask for it
_RANGES: tuple[ObserverName, ...] = ("histogram", "percentile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mitigation:
    """A change of how all layers are quantized.

    Attributes:
        name: for reports.
        apply: returns the changed specification; None where the model has nothing to change.
    """

    name: str
    apply: Callable[[QuantizeSpec], QuantizeSpec | None]


def _equalized(spec: QuantizeSpec) -> QuantizeSpec | None:
    model = equalized(spec.model)
    if model is None:
        return None
    # by name: fusion changes the types of modules, and takes batch norms away
    kept = matched_names(spec.keep_fp32, type_names(spec.model.model)) & set(type_names(model.model))
    return dataclasses.replace(spec, model=model, keep_fp32=tuple(sorted(kept)))


def _typical(spec: QuantizeSpec) -> QuantizeSpec | None:
    model = spec.model.model if spec.model.kind == "module" else spec.model.model.module()
    with spec.progress.task(f"look for outliers for {spec.label}", spec.calibration.count) as task:
        samples = without_outliers(spec.calibration, model, spec.inputs, task)
        if samples is not None:
            task.note(f"{spec.calibration.count - samples.count} calibration samples are outliers: trying without them")
    return None if samples is None else dataclasses.replace(spec, calibration=samples)


TYPICAL = Mitigation(name="calibration without outlier samples", apply=_typical)

EQUALIZED = Mitigation(name="cross-layer equalization", apply=_equalized)


def other_ranges(spec: QuantizeSpec) -> tuple[Mitigation, ...]:
    """Return a mitigation for each observer other than the chosen one."""
    return tuple(_by(name) for name in _RANGES if name != spec.observer)


def _by(observer: ObserverName) -> Mitigation:
    return Mitigation(name=f"{observer} ranges", apply=lambda spec: dataclasses.replace(spec, observer=observer))
