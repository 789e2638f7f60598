"""Fidelity by channel: the parts of an output whose ranges are unlike, each judged by itself and about its mean.

The signal-to-noise ratio of a whole output is ruled by its largest channels: a detector that joins boxes in pixels and
scores of 0 to 1 reads 55 dB while every score is zero. And a mean that all samples share, which tells nothing about
the input, is signal to it: 97 dB may be 11 dB without that mean.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.measured import GroupFidelity
from edgeq.core.schemes import LOST_DB

# channels whose spreads differ by less share a quantization scale without loss: 8 of 255 steps are left at the worst
UNLIKE = 8.0

# below it, relative to the largest channel or to the channel's own mean, fp32 itself computes noise
NUMERIC_NOISE = 1e-6

# so many may each have a meaning of their own: coordinates, a score, joints, classes
FEW_CHANNELS = 32

_WORST = 4  # of them that are told

# whole numbers of 8 bits that reach it are pixels; smaller ones may be classes, which have no distances
_LEAST_PIXEL = 32

# of a list of items, such as boxes or poses with their coordinates; vectors of features are longer
_ITEM_CHANNELS = 128

_NAMED = 16  # channels that a group names

_MOST_CHANNELS = 100_000


@dataclass(slots=True)
class _Axis:
    """Sums over everything but one axis, each float64 [channels]."""

    axis: int
    elements: NDArray[np.float64]
    energy: NDArray[np.float64]
    error: NDArray[np.float64]
    largest: NDArray[np.float64]
    total: NDArray[np.float64]
    moved: NDArray[np.float64]
    varied: NDArray[np.bool_]
    least: NDArray[np.float64]
    most: NDArray[np.float64]


@dataclass(slots=True)
class OutputChannels:
    """Running sums of one output, `[rows, …]`, along its second and its last axis.

    Attributes:
        rows: how many were added.
        counted: how many of them were finite, element by element.
        first: the first row of the reference and of what was measured, NaN where no row was finite yet; sums about the
            mean start from it.
        drift: the sum of the reference's differences from its first row, element by element.
        axes: one for each axis that may hold channels; none for an output with fewer than two axes.
        shares: whether every reference value lies between 0 and 1: probabilities have one unit, regardless of their
            ranges.
        is_measure: whether values have distances: floats, truth values, and 8-bit pixels, but no whole numbers that may
            be classes.
        is_truth: whether values are true or false: a single one of a channel's may go either way.
    """

    rows: int = 0
    counted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    first: tuple[NDArray[Any], NDArray[Any]] | None = None
    drift: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    axes: list[_Axis] = field(default_factory=list)
    shares: bool = True
    is_measure: bool = False
    is_truth: bool = False

    def add(self, reference: NDArray[Any], measured: NDArray[Any]) -> None:
        """Add rows of an output.

        Args:
            reference: float, bool or uint8 `[rows, …]`, without NaN.
            measured: of the same shape, infinite where the reference is, which does not count.
        """
        expected, came = reference.astype(np.float64), measured.astype(np.float64)
        finite = np.isfinite(expected)
        if self.first is None:
            self.first = np.full(expected.shape[1:], np.nan), np.full(expected.shape[1:], np.nan)
            self.drift = np.zeros(expected.shape[1:])
            self.counted = np.zeros(expected.shape[1:], np.int64)
            self.axes = [_empty(axis, expected.shape[axis]) for axis in _channel_axes(expected.shape)]
        if (self.counted == 0).any():
            rows = finite.argmax(axis=0)[None]
            found = (self.counted == 0) & finite.any(axis=0)
            for first, side in zip(self.first, (expected, came), strict=True):
                np.copyto(first, np.take_along_axis(side, rows, axis=0)[0], where=found)
        with np.errstate(invalid="ignore"):
            moved = np.where(finite, expected - self.first[0], 0.0)
            varies = finite & (came != self.first[1])
            error = np.where(finite, expected - came, 0.0) ** 2
        counts = np.where(finite, expected, 0.0)
        energy = counts**2
        self.rows += len(expected)
        self.counted += finite.sum(axis=0)
        self.drift += moved.sum(axis=0)
        self.shares = self.shares and bool(counts.min() >= 0 and counts.max() <= 1)
        self.is_truth = reference.dtype == np.bool_
        self.is_measure = self.is_measure or reference.dtype != np.uint8 or int(reference.max()) >= _LEAST_PIXEL
        for one in self.axes:
            others = tuple(i for i in range(expected.ndim) if i != one.axis)
            one.elements += finite.sum(axis=others)
            one.energy += energy.sum(axis=others)
            one.error += error.sum(axis=others)
            one.largest = np.maximum(one.largest, error.max(axis=others))
            one.total += counts.sum(axis=others)
            one.moved += (moved**2).sum(axis=others)
            one.varied |= varies.any(axis=others)
            one.least = np.minimum(one.least, expected.min(axis=others, initial=np.inf, where=finite))
            one.most = np.maximum(one.most, expected.max(axis=others, initial=-np.inf, where=finite))

    def groups(self, output: int, *, classes: Collection[int] = ()) -> list[GroupFidelity]:
        """Return the parts that are judged by themselves: the whole output, and along each axis its channels.

        Of a few channels, the worst are listed one by one. Of many, where a channel rarely has a meaning of its own,
        channels with a similar spread form one group.

        Args:
            output: its index.
            classes: channels that labels name. They have one unit and are compared with each other only; so are
                channels of a like spread. With them, what counts is the whole output, and channels of another spread,
                such as an uncertainty beside the scores.
        """
        found = []
        for one in self.axes if self.is_measure else ():
            # of n samples' own mean; the spread of the population is n / (n - 1) times theirs
            changing = np.maximum(one.moved - self._shared(one), 0) * self.rows / max(self.rows - 1, 1)
            everything = np.arange(len(one.elements))
            if one is self.axes[0]:
                found.append(self._group(output, one, everything, changing))
            if self.is_truth or len(everything) < 2 or (classes and self.shares):
                continue
            elements = np.maximum(one.elements, 1)  # a channel may be infinite throughout
            mean = one.total / elements
            spread = np.maximum(one.energy / elements - mean**2, 0)
            levels = _levels(spread, changing / elements, mean)
            if classes:
                levels[_has_spread_of(np.array(sorted(classes)), spread)] = -1
            alive = everything[levels >= 0]
            if len(everything) <= FEW_CHANNELS:
                if self._may_hold_channels(one):
                    alone = [
                        self._group(output, one, np.array([channel]), changing, unlike=bool(levels[channel] > 0))
                        for channel in alive
                    ]
                    found += sorted(alone, key=_by_change)[:_WORST]
            elif not self.shares:
                members = [np.flatnonzero(levels == level) for level in sorted(set(levels[alive].tolist()))]
                found += [
                    self._group(output, one, group, changing, unlike=bool(levels[group[0]] > 0))
                    for group in members
                    if len(group) < len(alive) or classes
                ]
                if self.drift.ndim == 2 and len(everything) <= _ITEM_CHANNELS:
                    lost = alive[(levels[alive] > 0) & ~one.varied[alive]][:_WORST]
                    found += [
                        self._group(output, one, np.array([channel]), changing, unlike=True, of_items=True)
                        for channel in lost
                    ]
        return found

    def _may_hold_channels(self, one: _Axis) -> bool:
        """Whether an axis of an image or a map is that of its channels: the shorter one, as columns are many."""
        shape = self.drift.shape
        if len(shape) < 3:
            return True
        return one.axis == (1 if shape[0] <= shape[-1] else len(shape))

    def _shared(self, one: _Axis) -> NDArray[np.float64]:
        """Return the energy, about the first row, of the mean that all rows share; float64 [channels]."""
        others = tuple(i for i in range(self.drift.ndim) if i != one.axis - 1)
        shared: NDArray[np.float64] = (self.drift**2 / np.maximum(self.counted, 1)).sum(axis=others)
        return shared

    def _group(
        self,
        output: int,
        one: _Axis,
        members: NDArray[np.int64],
        changing: NDArray[np.float64],
        *,
        unlike: bool = False,
        of_items: bool = False,
    ) -> GroupFidelity:
        elements, error = max(float(one.elements[members].sum()), 1.0), float(one.error[members].sum())
        energy, change = float(one.energy[members].sum()), float(changing[members].sum())
        mean = float(one.total[members].sum()) / elements
        # a channel that has not left float noise may stay constant, and may differ by noise
        ends = np.abs((one.least[members], one.most[members]))
        alive = change > elements * (NUMERIC_NOISE * float(ends.max(initial=0.0, where=np.isfinite(ends)))) ** 2
        return GroupFidelity(
            output=output,
            axis=one.axis,
            channels=tuple(int(i) for i in members[:_NAMED]),
            count=len(members),
            of=len(one.elements),
            sqnr_db=ratio_db(energy, error),
            error_rms=math.sqrt(error / elements),
            error_max=math.sqrt(float(one.largest[members].max())),
            shares=self.shares,
            unlike=unlike,
            change_sqnr_db=ratio_db(change, error) if alive else None,
            spread_sqnr_db=ratio_db(max(energy - elements * mean**2, 0.0), error),
            constant=bool(alive and not one.varied[members].any()),
            of_items=of_items,
        )


def ratio_db(signal: float, error: float) -> float:
    """Return 10 log10(signal / error); infinite without an error."""
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def _empty(axis: int, channels: int) -> _Axis:
    def zeros() -> NDArray[np.float64]:
        return np.zeros(channels)

    return _Axis(
        axis=axis,
        elements=zeros(),
        energy=zeros(),
        error=zeros(),
        largest=zeros(),
        total=zeros(),
        moved=zeros(),
        varied=np.zeros(channels, np.bool_),
        least=np.full(channels, np.inf),
        most=np.full(channels, -np.inf),
    )


def _channel_axes(shape: tuple[int, ...]) -> list[int]:
    """Return the axes that may hold channels: [N, C], [N, C, H, W] as well as [N, anchors, C] and [N, H, W, C]."""
    return [axis for axis in sorted({1, len(shape) - 1}) if 0 < axis < len(shape) and 0 < shape[axis] <= _MOST_CHANNELS]


def _levels(spread: NDArray[np.float64], change: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which power of `UNLIKE` each channel's spread lies below the largest; -1 for channels of float noise.

    Args:
        spread: the variance of each channel over samples and positions.
        change: its variance about the mean of each position over the samples.
        mean: its mean.
    """
    largest = float(spread.max(initial=0.0))
    if largest <= 0:
        return np.zeros(len(spread), np.int64)
    noise = np.maximum(NUMERIC_NOISE**2 * largest, (NUMERIC_NOISE * mean) ** 2)
    silent = change <= noise
    with np.errstate(divide="ignore"):
        levels = np.floor(np.log(np.sqrt(largest / np.maximum(spread, largest * 1e-30))) / math.log(UNLIKE) + 1e-9)
    return np.where(silent, -1, levels).astype(np.int64)


def _has_spread_of(named: NDArray[np.int64], spread: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each channel's spread is that of some named ones, or differs by less than `UNLIKE`; bool [channels]."""
    known = np.sqrt(spread[named])
    alike: NDArray[np.bool_] = (np.sqrt(spread) * UNLIKE >= known.min()) & (np.sqrt(spread) <= known.max() * UNLIKE)
    alike[named] = True
    return alike


def _by_change(group: GroupFidelity) -> float:
    """Order by fidelity; noise of sums decides no order, as the app sums in another one."""
    return math.inf if group.change_sqnr_db is None else round(group.change_sqnr_db, 6)


def lost_channels(groups: Sequence[GroupFidelity], steps: Sequence[float | None]) -> tuple[str, ...]:
    """Name the channels of two runs that should agree which the second has lost: constant, or mostly error.

    Args:
        groups: the one run against the other.
        steps: quantization steps of the outputs, where known; two runs may differ by one.
    """
    lost = []
    for group in groups:
        step = steps[group.output] if group.output < len(steps) else None
        alone = group.of_items or (group.count < group.of and (group.count == 1) == (group.of <= FEW_CHANNELS))
        is_lost = group.change_sqnr_db is not None and (group.sqnr_db < LOST_DB or group.constant)
        if alone and is_lost and not group.error_rms <= (step or 0.0):
            lost.append(f"{group.name} ({group.sqnr_db:.1f} dB)")
    return tuple(lost[:_WORST])


def lattice_step(values: NDArray[Any]) -> float | None:
    """Return the quantization step of an output whose values are as few as int8 has; None where they are more."""
    levels = np.unique(values.astype(np.float64))  # NumPy 2.4.6 sorts float16 wrongly on some processors
    return float(np.diff(levels).min()) if 1 < len(levels) <= 256 else None
