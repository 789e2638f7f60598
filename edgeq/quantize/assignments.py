"""Which layers to leave in float: those that cost the fewest bytes for what noise they take away, tried one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeq.artifacts import Attempt, Sensitivity

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
        would be worse. Where none fits the size, so many that do.
        """
        points = [kept for kept in frontier(self._layers) if self._may(kept, below)]
        if not points or self._attempt(points[0]).meets:
            return
        if self._attempt(points[-1]).meets:
            self._refine(points)
        elif math.isinf(below):
            self._look_further(points)

    def _refine(self, points: Sequence[tuple[str, ...]]) -> None:
        """Go down from the last of the points, which meets the limits, to the fewest weights."""
        low, high = 0, len(points) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._attempt(points[middle]).meets else (middle, high)
        cheaper = points[max(1, high - _MOST_CHEAPER) : high]
        self._prune(next((kept for kept in cheaper if self._attempt(kept).meets), points[high]))

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
