"""What a run was asked to do: the frozen form of the command line and `edgeq.toml`, and how progress is told."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgeq.scheme import AUTO, AUTO_TRIES, AskedScheme, LimitName, ObserverName, SchemeName

if TYPE_CHECKING:
    from edgeq.target import TargetProfile

InputDtype = Literal["uint8"]
INPUT_DTYPES: tuple[InputDtype, ...] = ("uint8",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where samples come from, and how they are read.

    Attributes:
        calibration, evaluation: an image folder, .npz/.npy or file.py:function; None where not given.
        metric: file.py:function, a score per sample; None for top-1.
        preprocess: a preset or a TOML file; None where arrays are fed as they are.
        labels: a file that maps class folders to output indices.
        search: where mixed-int8 judges; None for what the calibration data has left over.
    """

    calibration: str | None = None
    evaluation: str | None = None
    metric: str | None = None
    preprocess: str | None = None
    labels: Path | None = None
    search: str | None = None
    num_calibration_samples: int = 128
    num_search_samples: int = 512
    lint: Literal["error", "warn"] = "error"
    skip_bad_images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """What the artifact is held to.

    Attributes:
        limits: in base units (bytes, ms, percentage points).
        limit_on: whether accuracy_drop is judged by the upper end of its interval or by the estimate.
        allow_unmeasured: gates that may stay unverified.
        store_limits: names of store presets.
        app_size_bytes: the app's size without the model, in the preset's own basis.
        shipped: the shipped model's bundle, whose instructions are compared.
        latency_on: whether a limit on latency may be judged by a prediction, by the upper end of its interval.
        device: which device that is predicted for, a name or a .toml file.
    """

    limits: tuple[tuple[LimitName, float], ...] = ()
    limit_on: Literal["interval", "point"] = "interval"
    allow_unmeasured: tuple[str, ...] = ()
    store_limits: tuple[str, ...] = ()
    app_size_bytes: int | None = None
    shipped: Path | None = None
    latency_on: Literal["measured", "predicted"] = "measured"
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Whether and how the artifact is run on the device's own kernels.

    Attributes:
        on: `emulator` runs the ARM64 runtimes here, for targets that have CPU models to emulate; `host` does not;
            `cuda` serves the artifact on this box's GPU; `ssh:HOST`, `adb` and `adb:SERIAL` are real devices.
        cpu: CPU models; none for those of the target's profile.
        samples: how many at most; None for a number by the model's size.
        timeout_s: for all emulation of one artifact, or for serving it on the GPU.
    """

    on: str = "emulator"
    cpu: tuple[str, ...] = ()
    samples: int | None = None
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QatOptions:
    """How qat-int8 trains.

    Attributes:
        data: where its samples come from; None for the source of the calibration data.
        train: file.py:function, the user's own loop; None to distil from the float model.
        lr: the learning rate, relative to the size of each tensor's values.
        samples: the most samples that are taken.
    """

    data: str | None = None
    train: str | None = None
    epochs: int = 8
    lr: float = 2e-3
    batch: int = 32
    samples: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One `edgeq package`.

    Attributes:
        source: torchvision:NAME, pkg.mod:factory, file.py:factory, model.pt2, model.onnx, model.pte, model.ptl,
            or `digits`.
        schemes: none for each target's default; `auto` stands alone.
        weights: a state dict, or a torchvision weights name.
        inputs: the texts of --input; none where the factory gives example inputs.
        input_dtype: uint8 for an artifact that takes pixels and normalises them itself; None for the model's own.
        dynamic_batch: whether the artifact takes any number of samples at once (ONNX targets).
        reuse_qparams_from: the shipped model's bundle, whose scales and zero points are kept where they fit.
        trust_source: whether code in the model's own file may run.
        compare: whether fp32 and fp16 are made for the same targets too, to be compared with and then dropped.
    """

    source: str
    targets: tuple[TargetProfile, ...]
    out: Path
    schemes: tuple[AskedScheme, ...] = ()
    name: str | None = None
    model_version: str = "1"
    weights: str | None = None
    inputs: tuple[str, ...] = ()
    input_dtype: InputDtype | None = None
    dynamic_batch: bool = False
    seed: int = 0
    trust_source: bool = False
    observer: ObserverName = "histogram"
    keep_fp32: tuple[str, ...] = ()
    reuse_qparams_from: Path | None = None
    data: DataOptions = DataOptions()
    qat: QatOptions = QatOptions()
    gates: GateOptions = GateOptions()
    device: DeviceOptions = DeviceOptions()
    compare: bool = False
    cache: bool = True

    def schemes_of(self, target: TargetProfile) -> tuple[AskedScheme, ...]:
        """Return what is made for a target: the schemes that were asked for, or its default."""
        return self.schemes or target.schemes[:1]

    def possible_schemes(self, target: TargetProfile) -> frozenset[SchemeName]:
        """Return the schemes that may come of it for a target, `auto` taken for all that it tries."""
        asked = self.schemes_of(target)
        tries = AUTO_TRIES if AUTO in asked else ()
        return frozenset((*(scheme for scheme in asked if scheme != AUTO), *(s for s in tries if s in target.schemes)))


class Task(Protocol):
    """A long step that is under way."""

    def advance(self, steps: int = 1) -> None:
        """Say that `steps` more are done."""

    def note(self, text: str) -> None:
        """Say how it goes."""


class Progress(Protocol):
    """How the pipeline tells what it does; the CLI draws bars, prints lines, or says nothing."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Open a step; `total` is the number of `advance` calls to come, None where that is not known."""

    def alone(self) -> AbstractContextManager[None]:
        """Open a span in which times are measured: nothing else of this run computes meanwhile."""
