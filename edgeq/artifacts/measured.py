"""What running an artifact showed: on this host, on the device's kernels, on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeq.artifacts.model import TensorSpec
from edgeq.counts import CountReport
from edgeq.errors import ExitCode
from edgeq.flips import Flips


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95% interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The artifact against the converted graph, over `samples` inputs.

    Attributes:
        max_abs: the largest difference of any output.
        max_steps: the same in quantization steps of that output; None unless every output is quantized.
        sqnr_db: signal to difference of the worst output; infinite where the outputs are equal.
        differing: share of the output elements that differ.
        reaction_db: the graph's own SQNR when every input moves by one int8 step; None where that was not needed.
        mean_abs, mean_magnitude: of the differences, and of the graph's own outputs; None where not taken.
    """

    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    reaction_db: float | None = None
    mean_abs: float | None = None
    mean_magnitude: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The artifact against fp32, over `samples` inputs.

    Attributes:
        inputs: `evaluation` data or `random` inputs.
        sqnr_db: of the worst output; None, as the two below, where the source is an artifact without fp32.
        cosine, max_abs: over all outputs together.
        top1_agreement: share of samples with the same argmax; None where no output is [N, classes].
        metric: the name of the score, or None without labels.
        fp32_score, score: its mean; None without labels.
        drop_pp: fp32 minus artifact in percentage points, paired; None without labels.
        chance_score: what always answering the commonest label would score; None without top-1 labels.
        mismatch_drop_pp: what fp32 loses when each sample's outputs meet the label of the sample before it, paired;
            None for top-1, or where no two such labels differ. Below zero, lower scores are the better ones.
    """

    samples: int
    inputs: Literal["evaluation", "random"]
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    top1_agreement: float | None
    metric: str | None = None
    fp32_score: float | None = None
    score: float | None = None
    drop_pp: Interval | None = None
    chance_score: float | None = None
    mismatch_drop_pp: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one inference on the host, in ms, of `runs` runs after `warmup`; `latencies_ms` holds each."""

    p50_ms: float
    p90_ms: float
    runs: int
    warmup: int
    threads: int
    arch: str
    latencies_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShare:
    """What the runtime's own profile says of the multiply-accumulates.

    Attributes:
        int8_macs: share of MACs in int8 kernels; None, as the two below, where the profile could not be matched to
            the layers.
        int8_linear_macs: the same among linear and recurrent layers; None also where there are none.
        half_macs: share of MACs in half-precision kernels.
        kernels: kernel names in order of execution.
        why_unmatched: the reason for a None.
        precisions: what each of the lowered model's layers computed in; none where unmatched.
    """

    int8_macs: float | None
    kernels: tuple[str, ...]
    why_unmatched: str = ""
    int8_linear_macs: float | None = None
    half_macs: float | None = None
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two runs of one artifact on the same samples, `right` against `left`.

    Attributes:
        max_steps: the largest difference in quantization steps; None unless every output is quantized.
        sqnr_db: of the worst output; infinite where the outputs are equal.
        differing: share of the output elements that differ.
        top1_flips: samples whose argmax is another one; None where the first output is no [N, classes].
    """

    left: str
    right: str
    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    top1_flips: int | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOnly:
    """What stands in for the verdict on an artifact that nothing here can run: that on its converted graph.

    Attributes:
        why: why the artifact is not run, in words.
        fidelity: the graph against fp32.
        findings: what is wrong with the graph's outputs whatever the limits.
    """

    why: str
    fidelity: Fidelity
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What running the artifact showed. None means that it could not be measured.

    Attributes:
        host: what it ran on, in words.
        findings: what is wrong whatever the limits: NaN, a constant output, a wrong shape.
        emulation: on the device's kernels; None where that was not asked for.
        not_emulated: why a target with a device was not run on its kernels; "" otherwise.
        cost: instructions, counted; None where no gate needs them.
        flips: the predictions that changed against fp32; None where no output ranks classes.
        graph_only: where the artifact was not run at all: then `outputs` are the converted graph's. None where it was.
        device: times of a real device; None where none was reached.
    """

    host: str
    parity: Parity | None
    fidelity: Fidelity | None
    timing: Timing | None
    kernels: KernelShare | None
    peak_memory_bytes: int | None
    load_ms: float | None
    outputs: tuple[TensorSpec, ...]
    findings: tuple[str, ...]
    emulation: Emulation | None = None
    not_emulated: str = ""
    cost: Cost | None = None
    flips: Flips | None = None
    graph_only: GraphOnly | None = None
    device: DeviceMeasures | None = None
