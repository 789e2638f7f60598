"""Device profiles: the inputs of the latency prediction, from `devices/*.toml` or the user's own file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.core.errors import UsageError
from edgeq.core.profiles import device_files
from edgeq.core.results.measured import Counts
from edgeq.core.schema import explain, find_file, read_toml


class Fitted(BaseModel):
    """The result of `edgeq devices fit` from measurements on the device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    correction: float = Field(gt=0, description="geometric mean of measured over predicted latency")
    spread: float = Field(ge=0, description="the standard deviation of ln(measured / predicted) after the correction")
    measurements: int = Field(ge=1, description="number of measurements")


class DeviceProfile(BaseModel):
    """A device. Only core, width and clock affect the prediction; the rest describes the device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    description: str
    core: str = Field(description="the core whose kernels are counted")
    width: int = Field(ge=1, le=16, description="instructions that the core decodes in a cycle")
    clock_ghz: float = Field(gt=0, le=10)
    cores: int = Field(ge=1, le=64, description="cores of this kind")
    l1d_kib: int | None = Field(default=None, ge=1)
    l2_kib: int | None = Field(default=None, ge=1)
    sources: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="the source of each value"
    )
    fitted: Fitted | None = None

    def check_threads(self, threads: int) -> None:
        """Refuse more threads than the device has cores of this kind.

        Raises:
            UsageError: it has fewer.
        """
        if threads > self.cores:
            what = f"{threads} threads were requested on {self.name}, which has {self.cores} cores of this kind"
            raise UsageError(what, f"use 1 to {self.cores} threads")

    def predict(self, counts: Counts, threads: int, *, runtime: str = "executorch") -> Prediction:
        """Return the latency of one inference whose counts on this device's core are known.


        Raises:
            UsageError: more threads than the device has cores of this kind.
        """
        self.check_threads(threads)
        speed = Speed(width=self.width, clock_ghz=self.clock_ghz)
        if self.fitted is None:
            told = predict(counts, speed, threads)
            return dataclasses.replace(told, extrapolated=told.extrapolated or runtime != "executorch")
        published = PUBLISHED_FIT
        model = CostModel(
            slot_cycles=published.slot_cycles, line_cycles=published.line_cycles, spread=self.fitted.spread
        )
        return predict(counts, speed, threads, model, self.fitted.correction)


def load_device(name_or_path: str) -> DeviceProfile:
    """Return the profile of a shipped name or of a user's own TOML file.

    Raises:
        UsageError: an unknown name (the nearest is offered), an unreadable file, an unknown key or value.
    """
    path = find_file(name_or_path, device_files(), "device")
    try:
        return DeviceProfile.model_validate(read_toml(path))
    except ValidationError as err:
        raise explain(err, name_or_path, DeviceProfile) from err


def devices_with_core(core: str) -> tuple[str, ...]:
    """Return the shipped devices that have this core, by name."""
    return tuple(name for name in device_files() if load_device(name).core == core)


# --- From counts to milliseconds: a cost model of two constants, fitted on published figures.


# Student's t for a 95% interval with seven degrees of freedom: the fit saw eight groups of devices
QUANTILE = 2.365


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The device's inputs of the cost model.

    Attributes:
        width: instructions that the core decodes in a cycle.
        clock_ghz: at which inference runs.
    """

    width: int
    clock_ghz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The fitted constants.

    Attributes:
        slot_cycles: mean cycles of an instruction in its decode slot, stalls included.
        line_cycles: cycles for a 64-byte line that misses the first-level cache.
        spread: the standard deviation of ln(measured / predicted) on devices that were left out of the fit.
    """

    slot_cycles: float
    line_cycles: float
    spread: float


# `scripts/bench latency` fits these again and fails where they differ
PUBLISHED_FIT = CostModel(slot_cycles=1.5606, line_cycles=11.791, spread=0.2047)

# the published latencies lie between; the start of a thread, for one, shows in much faster models only
FITTED_MS = (12.0, 170.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted latency in ms, and its 95% interval.

    Attributes:
        extrapolated: whether the estimate is outside the range that the model was fitted on, `FITTED_MS`.
    """

    estimate_ms: float
    low_ms: float
    high_ms: float
    extrapolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured latency, with the cost of the inference on that device's core.

    Attributes:
        group: rows of one group are left out together.
    """

    group: str
    speed: Speed
    threads: int
    counts: Counts
    latency_ms: float


def predict(
    counts: Counts, speed: Speed, threads: int, model: CostModel = PUBLISHED_FIT, correction: float = 1.0
) -> Prediction:
    """Return the latency of one inference.

    Args:
        counts: on this device's core, on one thread.
        speed: of the device.
        threads: that share the work.
        model: the constants.
        correction: ratio of the device's own measurements to the model's predictions.
    """
    slots, lines = _terms(counts, speed, threads)
    estimate = correction * (model.slot_cycles * slots + model.line_cycles * lines)
    factor = math.exp(QUANTILE * model.spread)
    return Prediction(
        estimate_ms=estimate,
        low_ms=estimate / factor,
        high_ms=estimate * factor,
        extrapolated=not FITTED_MS[0] <= estimate <= FITTED_MS[1],
    )


def _terms(counts: Counts, speed: Speed, threads: int) -> tuple[float, float]:
    """Return the two regressors of the cost model: ms for each slot cycle and for each line cycle."""
    per_ms = speed.clock_ghz * 1e6
    return counts.instructions / (speed.width * threads) / per_ms, counts.lines_32k / per_ms


def fit(rows: Sequence[Observation]) -> CostModel:
    """Return the constants with the least squared relative errors, neither below zero.

    The spread is that of each group predicted by the others; infinite where there are too few groups.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("nothing to fit")
    slot, line = _least_squares(rows)
    return CostModel(slot_cycles=slot, line_cycles=line, spread=_spread(rows))


def _spread(rows: Sequence[Observation]) -> float:
    predicted = leave_one_out(rows)
    if len(groups(rows)) < 2 or min(predicted) <= 0:
        return math.inf
    errors = [math.log(row.latency_ms / value) for row, value in zip(rows, predicted, strict=True)]
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def groups(rows: Iterable[Observation]) -> tuple[str, ...]:
    """Return the groups, each once."""
    return tuple(dict.fromkeys(row.group for row in rows))


def leave_one_out(rows: Sequence[Observation]) -> tuple[float, ...]:
    """Return for each row its prediction in ms by a model that was fitted on the other groups."""
    predicted: dict[int, float] = {}
    for group in groups(rows):
        others = [row for row in rows if row.group != group]
        slot, line = _least_squares(others or rows)
        for index, row in enumerate(rows):
            if row.group == group:
                slots, lines = _terms(row.counts, row.speed, row.threads)
                predicted[index] = slot * slots + line * lines
    return tuple(predicted[index] for index in range(len(rows)))


def _least_squares(rows: Sequence[Observation]) -> tuple[float, float]:
    """Return the two constants that minimize the sum of ((predicted - measured) / measured) squared."""
    scaled = []
    for row in rows:
        slots, lines = _terms(row.counts, row.speed, row.threads)
        scaled.append((slots / row.latency_ms, lines / row.latency_ms))
    ss = sum(slots * slots for slots, _ in scaled)
    ll = sum(lines * lines for _, lines in scaled)
    sl = sum(slots * lines for slots, lines in scaled)
    s, n = (sum(pair[i] for pair in scaled) for i in (0, 1))
    determinant = ss * ll - sl * sl
    if determinant > 1e-12 * ss * ll:
        slot, line = (s * ll - n * sl) / determinant, (n * ss - s * sl) / determinant
        if slot >= 0 and line >= 0:
            return slot, line
    # one of them is zero, or the rows are too alike to tell the two apart
    by_slot, by_line = s / ss if ss else 0.0, n / ll if ll else 0.0
    slot_error = sum((by_slot * slots - 1) ** 2 for slots, _ in scaled)
    line_error = sum((by_line * lines - 1) ** 2 for _, lines in scaled)
    return (by_slot, 0.0) if slot_error <= line_error else (0.0, by_line)
