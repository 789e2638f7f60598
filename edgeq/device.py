"""Device profiles: what the latency prediction takes of a device, from `devices/*.toml` or a file of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeq.counts import Counts
from edgeq.errors import UsageError
from edgeq.job import GateOptions
from edgeq.latency import PUBLISHED_FIT, CostModel, Prediction, Speed, predict
from edgeq.profiles import device_files
from edgeq.target import TargetProfile, explain, find_file, read_toml


class Fitted(BaseModel):
    """What `edgeq devices fit` learned from measurements on the device itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    correction: float = Field(gt=0, description="the measurements over the predictions, their geometric mean")
    spread: float = Field(ge=0, description="the standard deviation of ln(measured / predicted) after the correction")
    measurements: int = Field(ge=1, description="how many there were")


class DeviceProfile(BaseModel):
    """A device. Only core, width and clock enter the prediction; the rest says what the device is."""

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
        min_length=1, description="where each value is from"
    )
    fitted: Fitted | None = None

    def check_threads(self, threads: int) -> None:
        """Refuse more threads than the device has cores of this kind.

        Raises:
            UsageError: it has fewer.
        """
        if threads > self.cores:
            what = f"{threads} threads on {self.name}, which has {self.cores} cores of this kind"
            raise UsageError(what, f"ask for 1 to {self.cores} threads")

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


def check_cost_options(options: GateOptions, targets: Sequence[TargetProfile] = ()) -> None:
    """Refuse, before a long run, what cannot be counted or predicted.

    Raises:
        UsageError: --shipped is no bundle, an unknown --device, one without --limit-on predicted, or the reverse, or
            a target that asks for more threads than the device has.
    """
    if options.latency_on == "predicted" and options.device is None:
        what = "--limit-on predicted needs the device to predict for"
        raise UsageError(what, "add --device NAME; `edgeq devices list` shows the names")
    if options.latency_on == "predicted" and not any(name == "latency" for name, _ in options.limits):
        what = "--limit-on predicted is for a limit on latency, and none is given"
        raise UsageError(what, "add --limit latency=40ms")
    if options.device is not None:
        if options.latency_on != "predicted":
            raise UsageError("--device is for --limit-on predicted", "add it, or leave --device out")
        profile = load_device(options.device)
        for target in targets:
            profile.check_threads(target.device.threads)
    if options.shipped is not None and not (options.shipped / "manifest.json").is_file():
        what = f"no bundle at {options.shipped}, which --shipped names: expected a folder with manifest.json"
        raise UsageError(what, "give the folder that `edgeq package` wrote, OUT/<model>/<target>")
