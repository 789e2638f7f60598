"""What running an artifact on a device, or on its kernels, showed."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.artifacts.measured import Agreement, Interval
from edgeq.counts import CountReport
from edgeq.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRun:
    """The artifact on one CPU model, in one version of the device's runtime.

    Attributes:
        cpu: QEMU's name of the model, or `native`.
        runtime: package and version.
        features: the instruction-set extensions that the runtime detected.
        host: against the host's run of the same artifact.
        fp32: against the float model; None where there is none.
        score, host_score, fp32_score: means over these samples; None without labels.
        scored: how many samples have a score.
        rescored: of these, with another score than on the host; None without labels.
        drop_pp: fp32 minus device in percentage points, paired, over these samples.
        findings: what is wrong whatever the limits: NaN, another shape.
    """

    cpu: str
    runtime: str
    features: tuple[str, ...]
    samples: int
    host: Agreement
    fp32: Agreement | None
    score: float | None
    host_score: float | None
    fp32_score: float | None
    scored: int
    rescored: int | None
    drop_pp: Interval | None
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The CPU with its runtime, for people."""
        return f"{self.cpu} ({self.runtime})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """The artifact on the device's own kernels.

    Attributes:
        emulator: QEMU with its version, or `native` on an ARM64 host.
        between: each pair of runs.
        problem: why there are no runs; "" where there are.
        exit_code: of that problem.
        is_unmeasured: whether the problem only means that nothing is known, as when the time was up.
        without_wheel: runtime versions of the app builds in the field that no ARM64 wheel is known for.
    """

    emulator: str
    runs: tuple[DeviceRun, ...]
    between: tuple[Agreement, ...] = ()
    problem: str = ""
    exit_code: ExitCode = ExitCode.VERIFICATION
    is_unmeasured: bool = False
    without_wheel: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMeasures:
    """What one inference takes on a real device: measured there, in the device's own runtime.

    Attributes:
        device: its model, and how it was reached.
        platform, arch: in the words of target profiles; `macos` and others are no target's.
        os: the operating system with its version.
        cores: 0 where it did not say.
        is_virtual: whether it is an emulated device, whose times say nothing.
        runtime: package and version.
        p50_ms, p90_ms: of `runs` inferences after `warmup`; `latencies_ms` holds each.
        load_ms, peak_memory_bytes: of the process that was timed; None where that is not known.
    """

    device: str
    platform: str
    os: str
    arch: str
    cores: int
    is_virtual: bool
    runtime: str
    threads: int
    warmup: int
    runs: int
    p50_ms: float
    p90_ms: float
    load_ms: float | None
    peak_memory_bytes: int | None
    latencies_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPrediction:
    """A latency in ms that was predicted for a device, never measured.

    Attributes:
        low_ms, high_ms: the 95% interval.
        extrapolated: whether the estimate lies outside what the model was fitted on.
    """

    device: str
    threads: int
    estimate_ms: float
    low_ms: float
    high_ms: float
    extrapolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one inference makes a device's cores do.

    Attributes:
        counts: of this artifact, core by core.
        shipped: of the shipped model's artifact; none where none was named.
        prediction: None where no device was named.
    """

    counts: tuple[CountReport, ...]
    shipped: tuple[CountReport, ...] = ()
    prediction: LatencyPrediction | None = None
