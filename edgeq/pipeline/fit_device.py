"""Fitting a device's predictions to a few latencies that were measured on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.core.config import Progress
from edgeq.core.devices import PUBLISHED_FIT, QUANTILE, DeviceProfile, Fitted, load_device
from edgeq.core.errors import UsageError
from edgeq.core.files import disk_errors, write_atomic
from edgeq.core.intervals import student_t975
from edgeq.core.schema import explain, read_toml
from edgeq.pipeline.profile import count_bundle

# with fewer, how far they scatter says little, and the published fit's own error stays the least that is claimed
_ENOUGH = 4


class Measurement(BaseModel):
    """A latency that was measured on the device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(description="the bundle's folder; relative paths start at this file's folder")
    latency_ms: float = Field(gt=0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=1, le=64)


class Measurements(BaseModel):
    """What a user writes for `edgeq devices fit`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(description="a device's name, or a .toml file, with the right core and clock")
    name: str | None = Field(default=None, description="the fitted profile's name; default: the device's name")
    measurement: tuple[Annotated[Measurement, Field()], ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One measurement beside its predictions."""

    bundle: str
    threads: int
    measured_ms: float
    published_ms: float
    fitted_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFit:
    """A device profile that was corrected by measurements."""

    profile: DeviceProfile
    residuals: tuple[Residual, ...]


def fit_device(file: Path, progress: Progress, *, trusted: bool = False) -> DeviceFit:
    """Count each measured bundle on the device's core, and correct the device's predictions by one factor.

    The factor is the geometric mean of measured over predicted. The spread is that of the rest, one for each cost and
    number of threads: repeated measurements of one model do not inform about others. With less than four of them it is
    at least the published fit's, scaled down by their number.

    Args:
        file: TOML with `device` and `[[measurement]]` tables of `bundle`, `latency_ms` and `threads`.
        progress: where progress is reported.
        trusted: whether artifacts that open files by name may run.

    Raises:
        UsageError: the file is not as described.
        EdgeqError: as `count_bundle`.
    """
    asked = _read(file)
    device = load_device(asked.device).model_copy(update={"fitted": None})
    rows = []
    for one in asked.measurement:
        (counted,) = count_bundle(file.parent / one.bundle, (device.core,), progress, trusted=trusted)
        rows.append((one, device.predict(counted.total, one.threads).estimate_ms))
    logs = logs_of(rows)
    correction = math.exp(sum(logs) / len(logs))
    fitted = Fitted(correction=correction, spread=spread_of(logs), measurements=len(rows))
    name = asked.name or device.name
    profile = DeviceProfile.model_validate(device.model_dump() | {"name": name, "fitted": fitted.model_dump()})
    return DeviceFit(
        profile=profile,
        residuals=tuple(
            Residual(
                bundle=one.bundle,
                threads=one.threads,
                measured_ms=one.latency_ms,
                published_ms=predicted,
                fitted_ms=predicted * correction,
            )
            for one, predicted in rows
        ),
    )


def _read(file: Path) -> Measurements:
    try:
        return Measurements.model_validate(read_toml(file))
    except ValidationError as err:
        raise explain(err, str(file), Measurements) from err


def logs_of(rows: Sequence[tuple[Measurement, float]]) -> tuple[float, ...]:
    """Return ln(measured / predicted) of measurements with their predictions in ms; of those of one cost the mean."""
    known: dict[tuple[int, float], list[float]] = {}
    for one, predicted in rows:
        known.setdefault((one.threads, predicted), []).append(math.log(one.latency_ms / predicted))
    return tuple(sum(again) / len(again) for again in known.values())


def spread_of(logs: Sequence[float]) -> float:
    """Return the spread for which `edgeq.latency.predict` gives a 95% interval, after a fit of the mean.

    The prediction of one more has the standard deviation s √(1 + 1/n), and Student's t has n - 1 degrees of freedom,
    where `predict` takes the quantile of the published fit.

    Args:
        logs: ln(measured / predicted) of each model that was measured.
    """
    count = len(logs)
    if count < 2:
        return PUBLISHED_FIT.spread
    mean = sum(logs) / count
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / (count - 1))
    own = deviation * math.sqrt(1 + 1 / count) * student_t975(count - 1) / QUANTILE
    return own if count >= _ENOUGH else max(own, PUBLISHED_FIT.spread / math.sqrt(count))


def device_toml(profile: DeviceProfile) -> str:
    """Return a profile as the TOML file that `load_device` reads."""
    import json

    values = profile.model_dump(mode="json", exclude_none=True)
    fitted = values.pop("fitted", None)
    # TOML writes strings, numbers and arrays of them as JSON does
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    if fitted:
        lines += ["", "[fitted]", *(f"{key} = {json.dumps(value)}" for key, value in fitted.items())]
    return "\n".join(lines) + "\n"


def write_device(profile: DeviceProfile, out: Path) -> None:
    """Write a profile to a new file.

    Raises:
        UsageError: the file is there already.
        EnvironmentProblem: it cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} already exists", "give another --out, or remove the file first")
    with disk_errors(out.parent):
        write_atomic(out, device_toml(profile).encode())
