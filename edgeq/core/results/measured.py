"""Results of running an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from edgeq.core.errors import ExitCode
from edgeq.core.results.model import NpuFacts, TensorSpec

# --- What one inference makes a core do: instructions by class, bytes, and cache lines fetched.


# sizes of the caches that `lines_*` are counted for, as src/caches.h has them
CACHE_KIB = (32, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Instructions of one inference by class, and its memory traffic. All are whole numbers.

    Attributes:
        fp_mac: vector float multiplies, with or without accumulation.
        int_mac: vector integer multiplies, widening or not, with or without accumulation.
        dot, i8mm: int8 dot products, and int8 matrix products.
        neon: the other vector instructions.
        load, store: memory accesses of any register; prefetches are loads of no bytes.
        branch, scalar: the rest of what every A64 core has.
        other: SVE, SME and what the decoder does not know.
        bytes_loaded, bytes_stored: by these instructions.
        lines_32k … lines_4096k: 64-byte lines that a cache of this size would fetch, if it were alone behind a first
            level of 32 KiB; least recently used, 16 ways, no prefetching.
    """

    fp_mac: int = 0
    int_mac: int = 0
    dot: int = 0
    i8mm: int = 0
    neon: int = 0
    load: int = 0
    store: int = 0
    branch: int = 0
    scalar: int = 0
    other: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    lines_32k: int = 0
    lines_256k: int = 0
    lines_512k: int = 0
    lines_1024k: int = 0
    lines_2048k: int = 0
    lines_4096k: int = 0

    @property
    def instructions(self) -> int:
        """All instructions."""
        return sum(getattr(self, name) for name in CLASSES)

    @property
    def macs_in_vectors(self) -> int:
        """Vector multiplies of all kinds."""
        return self.fp_mac + self.int_mac + self.dot + self.i8mm

    def lines(self, cache_kib: float) -> int:
        """Return the lines that a last-level cache of about this size fetches: those of the nearest size counted."""
        nearest = min(CACHE_KIB[1:], key=lambda kib: abs(kib - cache_kib))
        return int(getattr(self, f"lines_{nearest}k"))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) - getattr(other, name) for name in COUNTERS})

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTERS})


# in the order in which src/count_plugin.c writes them
COUNTERS = tuple(field.name for field in fields(Counts))

CLASSES = COUNTERS[: COUNTERS.index("bytes_loaded")]


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum."""
    return sum(counts, Counts())


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCounts:
    """What one operator of an inference costs; the name is the runtime's own."""

    name: str
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class CountReport:
    """What one inference costs on one core, in the steady state and on one thread.

    Attributes:
        cpu: the core.
        total: of the runtime's whole call, without the runtime's profiler.
        operators: in the order of execution, the time between them under "(runtime)"; none where that was not asked
            for, or could not be counted. They are counted with the profiler on, which costs a little itself.
        why_no_operators: the reason, where they could not be counted.
    """

    cpu: str
    total: Counts
    operators: tuple[OperatorCounts, ...] = ()
    why_no_operators: str = ""


# --- What running an artifact, or a bundle, showed.


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenComparison:
    """The golden outputs against those of this host, or of a device.

    Attributes:
        sqnr_db: infinite where they are equal, NaN where an output is NaN or Inf or of another shape.
        top1_agreement: None where the first output is not class scores.
        same_shapes: whether the outputs have the golden outputs' shapes.
        finite: whether no output is NaN or Inf.
        lost: channels that drown in the difference, such as "output 0, channel 4: -1.2 dB".
    """

    samples: int
    sqnr_db: float
    sqnr_floor_db: float
    max_abs: float
    top1_agreement: float | None
    same_shapes: bool = True
    finite: bool = True
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreComparison:
    """The artifact's score on given data, and the one in the manifest.

    Attributes:
        score: None where the data has no labels, and there is no metric.
        recorded: None where the manifest has none.
        same_data: whether the data is that of the recorded score.
        same_metric: whether both scores are of one metric.
    """

    metric: str
    samples: int
    score: float | None
    recorded: float | None
    same_data: bool
    same_metric: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU with its compute capability, such as 9.0, and CUDA's version."""

    name: str
    capability: str
    cuda: str


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
        near_ties: whether all that differs are a few classes: scores that nearly tie go either way.
        reaction_db: the graph's own SQNR when every input moves by one int8 step; None where that was not needed.
        mean_abs, mean_magnitude: of the differences, and of the graph's own outputs; None where not taken.
        lost: channels that the graph has but the artifact lost, as text.
    """

    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    near_ties: bool = False
    reaction_db: float | None = None
    mean_abs: float | None = None
    mean_magnitude: float | None = None
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFidelity:
    """Channels of one output that have spreads of one size, the artifact against fp32.

    Attributes:
        output: the output's index.
        axis: along which the channels lie; 0 is the batch.
        channels: their indices, the first ones of many.
        count, of: how many channels the group has, of how many.
        sqnr_db: signal to error.
        change_sqnr_db: the same about the mean of each element over the samples, so that what all samples share is no
            signal; None where fp32 does not change with the input.
        spread_sqnr_db: the same about the one mean of the group, over samples and positions.
        error_rms: root mean square of the error.
        error_max: the largest error.
        shares: whether all values of fp32's output lie between 0 and 1.
        unlike: whether the spread is of another size than that of the output's largest channel.
        constant: whether the artifact's values are the same for every input, and fp32's are not.
        of_items: whether it is a constant channel of a list of items, [N, items, channels] or [N, channels, items],
            such as the score of a pose beside its 50 coordinates: each channel of these has a meaning of its own.
    """

    output: int
    axis: int
    channels: tuple[int, ...]
    count: int
    of: int
    sqnr_db: float
    change_sqnr_db: float | None
    spread_sqnr_db: float
    error_rms: float
    shares: bool
    unlike: bool
    constant: bool
    of_items: bool = False
    error_max: float = 0.0

    @property
    def name(self) -> str:
        """Return "output 0", "output 0, channel 4" or "output 0, channels 4 to 9"."""
        output = f"output {self.output}"
        if self.count == self.of:
            return output
        first, last = self.channels[0], self.channels[-1]
        if self.count == 1:
            return f"{output}, channel {first}"
        if last - first == self.count - 1:
            return f"{output}, channels {first} to {last}"
        more = "" if self.count == len(self.channels) else f" and {self.count - len(self.channels)} more"
        return f"{output}, channels {', '.join(str(i) for i in self.channels)}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputAgreement:
    """How often the artifact and fp32 rank the same class first, in one output of scores [N, classes].

    Attributes:
        output: its index.
        agreeing, ranked: rows that agree, of how many.
        distinct: how many of them are of distinct samples.
        chance: the share that would agree if the two had nothing to do with each other, by how often each names each
            class.
    """

    output: int
    agreeing: int
    ranked: int
    distinct: int
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDrop:
    """One class's share of right answers (its recall), fp32 against the artifact.

    Attributes:
        label: the class's index; of the labels, or without labels of fp32's own answers.
        samples: of that class.
        distinct: how many of them are distinct.
        fp32_right, right: how many of the samples each gets right.
        drop_pp: fp32 minus artifact in percentage points, paired; its interval holds for all classes at once.
    """

    label: int
    samples: int
    distinct: int
    fp32_right: int
    right: int
    drop_pp: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The artifact against fp32, over `samples` inputs.

    Attributes:
        inputs: `evaluation` data or `random` inputs.
        sqnr_db: of the worst output; None, as the two below, where the source is an artifact without fp32.
        worst_output: its index; None in older reports, and where all are equal or not finite.
        cosine, max_abs: over all outputs together.
        top1_agreement: share of samples with the same argmax; None where no output is [N, classes].
        metric: the name of the score, or None without labels.
        fp32_score, score: its mean; None without labels.
        drop_pp: fp32 minus artifact in percentage points, paired; None without labels.
        chance_score: the score of always predicting the most common label; None without top-1 labels.
        mismatch_drop_pp: what fp32 loses when each sample's outputs meet another sample's label, or without labels
            when noise as strong as the outputs is added to them, paired; None for top-1, or where no two labels
            differ. Below zero, lower scores are the better ones; around zero, the score proves nothing.
        distinct: how many distinct samples there are; None in older reports.
        lost, won: distinct samples that the artifact scores lower, and higher, than fp32; None without labels.
        groups: by output and channels of unlike range.
        agreements: by output that ranks classes.
        indices: the same by output of whole numbers that are classes, element by element.
        classes: by class, those that lose most first, not all of very many; by the labels, or else by fp32's answers.
        by_labels: which of the two `classes` goes by.
        tied: share of the samples whose first class shares its score with another one, in the artifact alone.
        perplexity: of a language model with labelled data; None for others.
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
    distinct: int | None = None
    lost: int | None = None
    won: int | None = None
    groups: tuple[GroupFidelity, ...] = ()
    agreements: tuple[OutputAgreement, ...] = ()
    indices: tuple[OutputAgreement, ...] = ()
    classes: tuple[ClassDrop, ...] = ()
    by_labels: bool = False
    tied: float | None = None
    worst_output: int | None = None
    perplexity: Perplexity | None = None


# p90 over p50 is 1.0 to 1.2 on an idle machine
MAX_SPREAD = 1.5

MAX_LOAD = 1.5  # processes per core: the run's own threads are one


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one inference on the host, in ms, of `runs` runs after `warmup`; `latencies_ms` holds each.

    On a GPU, `gpu` names it; "" where the CPU computed.

    Attributes:
        cpu: the kind of machine, by processor and number of cores: times of two kinds are not comparable.
        tries: how often `runs` runs were timed; these are the fastest, since load only ever makes a time longer.
        load: processes that wanted a processor, on average over the last minute, per core; None where not known.
    """

    p50_ms: float
    p90_ms: float
    runs: int
    warmup: int
    threads: int
    arch: str
    latencies_ms: tuple[float, ...] = ()
    gpu: str = ""
    cpu: str = ""
    tries: int = 1
    load: float | None = None

    @property
    def why_unsure(self) -> str:
        """What shows that other processes took turns with the timed one; "" on a calm machine."""
        if self.gpu:
            return ""
        ratio = self.p90_ms / max(self.p50_ms, 1e-9)
        signs = [f"the p90 is {ratio:.1f} times the p50"] if ratio > MAX_SPREAD else []
        signs += [f"{self.load:.1f} processes per core wanted to run"] if (self.load or 0) > MAX_LOAD else []
        return " and ".join(signs)

    @property
    def warning(self) -> str:
        """That the latency is an upper bound, since the host was busy; "" on a calm machine."""
        if not self.why_unsure:
            return ""
        tries = f", the fastest of {self.tries} tries" if self.tries > 1 else ""
        return (
            f"the latency of {self.p50_ms:.3g} ms may be too high{tries}: this host was busy while it was measured "
            f"({self.why_unsure}); measure again on a calm machine with --no-cache"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShare:
    """The multiply-accumulates in the runtime's own profile.

    Attributes:
        int8_macs: share of MACs in int8 kernels; None, as the two below, where the profile could not be matched to
            the layers.
        int8_linear_macs: the same among linear and recurrent layers; None also if there are none.
        half_macs: share of MACs in half-precision kernels.
        kernels: kernel names in order of execution.
        why_unmatched: the reason for a None.
        precisions: what each of the lowered model's layers computed in; none where unmatched.
        of_layers: the kernel's name of each layer; none where unmatched, and where the profile has layers in an order
            of its own.
    """

    int8_macs: float | None
    kernels: tuple[str, ...]
    why_unmatched: str = ""
    int8_linear_macs: float | None = None
    half_macs: float | None = None
    precisions: tuple[str, ...] = ()
    of_layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two runs of one artifact on the same samples, `right` against `left`.

    Attributes:
        max_steps: the largest difference in quantization steps; None unless every output is quantized.
        sqnr_db: of the worst output; infinite where the outputs are equal.
        differing: share of the output elements that differ.
        near_ties: as in `Parity`.
        top1_flips: rows whose argmax is another one; None where the first output is not [N, classes].
        ranked: the number of rows compared; a sample that is a whole batch has several. None in older reports.
    """

    left: str
    right: str
    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
    top1_flips: int | None
    ranked: int | None = None
    near_ties: bool = False

    @property
    def top1_percent(self) -> float | None:
        """Share of rows with the same argmax, in percent; None where that is not known."""
        return 100 * (1 - self.top1_flips / self.ranked) if self.top1_flips is not None and self.ranked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOnly:
    """Results of the converted graph, for an artifact that this host cannot run.

    Attributes:
        why: the reason why the artifact was not run.
        fidelity: the graph against fp32.
        findings: what is wrong with the graph's outputs regardless of limits.
    """

    why: str
    fidelity: Fidelity
    findings: tuple[str, ...]


# --- What running an artifact on a device, or on its kernels, showed.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRun:
    """The artifact on one CPU model, in one version of the device's runtime.

    Attributes:
        cpu: QEMU's name of the model, or `native`.
        runtime: package and version.
        features: the instruction-set extensions that the runtime detected.
        host: against the host's run of the same artifact.
        fp32: against the float model; None if there is none.
        score, host_score, fp32_score: means over these samples; None without labels.
        scored: how many samples have a score.
        rescored: of these, with another score than on the host; None without labels.
        drop_pp: fp32 minus device in percentage points, paired, over these samples.
        findings: what is wrong regardless of limits: NaN, another shape.
        next_tokens: of a language model's continuation, how many tokens are the host's, near ties among them, and of
            how many; None for others.
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
    next_tokens: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The CPU with its runtime, as text."""
        return f"{self.cpu} ({self.runtime})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """The artifact on the device's own kernels.

    Attributes:
        emulator: QEMU with its version, or `native` on an ARM64 host.
        between: each pair of runs.
        problem: why there are no runs; "" where there are.
        exit_code: of that problem.
        is_unmeasured: whether the problem only means that nothing is known, as after a time limit.
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
    """Time and memory of one inference on a real device, in its own runtime.

    Attributes:
        device: its model, and how it was reached.
        platform, arch: in the words of target profiles; `macos` and others belong to no target.
        os: the operating system with its version.
        cores: 0 if unknown.
        is_virtual: whether it is an emulated device, whose times are not meaningful.
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
    """The cost of one inference on a device's cores.

    Attributes:
        counts: of this artifact, core by core.
        shipped: of the shipped model's artifact; none where none was named.
        prediction: None where no device was named.
    """

    counts: tuple[CountReport, ...]
    shipped: tuple[CountReport, ...] = ()
    prediction: LatencyPrediction | None = None


# --- The outputs of two artifacts, side by side.


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """The outputs of two artifacts on the same inputs; errors are of the second against the first.

    Attributes:
        samples: how many inputs.
        inputs: `evaluation` data, or `random` ones: seeded, uniform in the range that the preprocessing gives.
        mean_abs_error: over all elements of all outputs.
        fp32_magnitude, quantized_magnitude: mean absolute values of either's outputs.
        sqnr_db: of the worst output; infinite where they are equal.
        cosine: over all outputs together; NaN where one is all zero.
        agreeing, ranked: samples with the same argmax, of how many; no output that ranks classes gives 0 of 0.
        metric: the name of the score; "" where the inputs cannot be scored.
        fp32_score, score: of either artifact; None without a metric.
    """

    samples: int
    inputs: Literal["evaluation", "random"]
    mean_abs_error: float
    fp32_magnitude: float
    quantized_magnitude: float
    max_abs_error: float
    sqnr_db: float
    cosine: float
    agreeing: int
    ranked: int
    metric: str = ""
    fp32_score: float | None = None
    score: float | None = None


# --- Predictions that changed: what the report shows of samples whose top-1 class is not fp32's.


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A sample whose top-1 class changed.

    Attributes:
        sample: its name: a file's, or an index.
        label: the class that it is of; None where that is not known.
        fp32, artifact: the top-1 class of each.
        thumbnail: a WebP image in base64; "" where the input is not an image.
        fp32_scores, artifact_scores: each one's outputs for these two classes, fp32's class first; () in older
            reports.
    """

    sample: str
    label: int | None
    fp32: int
    artifact: int
    thumbnail: str = ""
    fp32_scores: tuple[float, ...] = ()
    artifact_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipPair:
    """How many samples changed from one class to another."""

    fp32: int
    artifact: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """All predictions that changed.

    Attributes:
        total: how many samples.
        ranked: of how many.
        pairs: the most frequent ones, the largest first.
        examples: the first ones, with their thumbnails.
    """

    total: int
    ranked: int
    pairs: tuple[FlipPair, ...] = ()
    examples: tuple[Flip, ...] = ()


# --- All that running an artifact showed.


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRun:
    """The artifact at some of the sizes that vary.

    Attributes:
        sizes: by name.
        samples: how many ran.
        parity: against the converted graph; None without one.
        sqnr_db: against fp32; None without an fp32 model.
        problem: what is wrong regardless of limits: NaN, another shape; "" otherwise.
    """

    sizes: tuple[tuple[str, int], ...]
    samples: int
    parity: Parity | None
    sqnr_db: float | None
    problem: str = ""

    @property
    def text(self) -> str:
        """Return "seq=8"."""
        return ", ".join(f"{name}={size}" for name, size in self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeyondRun:
    """The artifact at a size just outside of its range.

    Attributes:
        sizes: by name.
        outcome: `refused` by an error of the runtime, `crashes`, or it answers: what fp32 does (`same`), or something
            `other`, also where fp32 fails.
    """

    sizes: tuple[tuple[str, int], ...]
    outcome: Literal["refused", "crashes", "same", "other"]

    @property
    def text(self) -> str:
        """Return "seq=129 is refused by the runtime"."""
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes)
        said = {
            "refused": "is refused by the runtime",
            "crashes": "crashes the runtime",
            "same": "runs too",
            "other": "runs and gives wrong outputs",
        }
        return f"{sizes} {said[self.outcome]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizesReport:
    """The artifact over the sizes that vary.

    Attributes:
        runs: the largest ones first.
        beyond: just outside of the range; none where that was not tried.
        planned_memory_bytes: what the runtime sets aside for the largest sizes; None where it plans nothing ahead.
    """

    runs: tuple[SizeRun, ...]
    beyond: tuple[BeyondRun, ...] = ()
    planned_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A language model over a prompt and the tokens that fp32 continues it with, one by one from the cache.

    Attributes:
        prompt: tokens of the first call.
        tokens: how many follow.
        as_graph: of these, how many the artifact chooses as its converted graph does, near ties among them; None where
            there is no graph.
        as_fp32: the same of fp32's.
        sqnr_db: of the logits against the graph's, over all calls; None as above.
        prefill_ms, prefill_tokens: p50 of a call with the most tokens, and how many these are; None where nothing was
            timed.
        decode_ms: p50 of a call with one token.
    """

    prompt: int
    tokens: int
    as_graph: int | None
    as_fp32: int
    sqnr_db: float | None
    prefill_ms: float | None = None
    prefill_tokens: int | None = None
    decode_ms: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens of a prompt in a second."""
        return 1000 * self.prefill_tokens / self.prefill_ms if self.prefill_ms and self.prefill_tokens else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens in a second, one after the other."""
        return 1000 / self.decode_ms if self.decode_ms else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity on the evaluation data: exp of the mean negative log-likelihood of a token.

    Attributes:
        rise_pct: of the artifact's over fp32's, in percent, paired over the distinct windows.
    """

    fp32: float
    artifact: float
    rise_pct: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """One output of a model with state over many steps, the artifact and fp32 each fed with its own state.

    Attributes:
        output: its index.
        is_state: whether it is fed back.
        sqnr_db: against fp32, by quarter of the steps; the inputs of all quarters are the same.
        start_effect_db: what the state changes in fp32's output against the error, over the first steps, in dB; None
            where the state changes too little to tell.
        effect_db: the same over the last quarter.
        motion: the artifact's variance over the last quarter, as a share of fp32's; None where fp32's output hardly
            moves.
        offset: the square of what the two means differ by over the last quarter, as a share of fp32's variance; None as
            above.
        untracked: the error without that difference, as a share of fp32's variance; None as above.
        reach, fp32_reach: the largest magnitude in the last quarter.
        reaction_db: fp32's own SQNR over the last quarter, after one rounding of its state before the second one; None
            where that was not needed.
    """

    output: int
    is_state: bool
    sqnr_db: tuple[float, ...]
    start_effect_db: float | None
    effect_db: float | None
    motion: float | None
    offset: float | None
    untracked: float | None
    reach: float
    fp32_reach: float
    reaction_db: float | None = None

    @property
    def growth_db(self) -> float:
        """How far the SQNR of the last quarter lies below that of the second; 0 where nothing differs."""
        second, last = self.sqnr_db[1], self.sqnr_db[-1]
        return 0.0 if second == last else second - last

    @property
    def grows_evenly(self) -> bool:
        """Whether each quarter's error is larger than that of the one before; an error that only varies is not."""
        return self.sqnr_db[1] > self.sqnr_db[2] > self.sqnr_db[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """The artifact of a model with state over many steps, fed with its own state, against fp32 with its own.

    Attributes:
        steps: how many.
        inputs: how many distinct steps of the data these repeat.
        problem: what is wrong regardless of limits, such as NaN after some steps; "" otherwise.
        unsure: why fp32 itself says nothing, such as NaN; "" otherwise.
        outputs: in order; none with `problem` or `unsure`.
    """

    steps: int
    inputs: int
    problem: str = ""
    unsure: str = ""
    outputs: tuple[OutputDrift, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Results of running an artifact. None means that a value could not be measured.

    Attributes:
        host: where it ran, as text.
        findings: what is wrong regardless of limits: NaN, a constant output, a wrong shape.
        emulation: on the device's kernels; None where that was not asked for.
        not_emulated: why a target with a device was not run on its kernels; "" otherwise.
        cost: instructions, counted; None where no gate needs them.
        flips: the predictions that changed against fp32; None where no output ranks classes.
        graph_only: where the artifact was not run at all: then `outputs` are the converted graph's. None where it was.
        device: times of a real device; None where none was reached.
        stand_in: what ran the artifact in place of its own kind of device, as text: then nothing was timed. ""
            where it ran on its own.
        sizes: over the sizes that vary; None where none does.
        drift: over many steps of a model with state; None for other models, and where there is no fp32.
        npu: what vela says of an artifact for an Ethos-U; None for others.
        continuation: of a language model with a cache; None for others, and where there is no fp32.
    """

    host: str
    outputs: tuple[TensorSpec, ...]
    findings: tuple[str, ...]
    parity: Parity | None = None
    fidelity: Fidelity | None = None
    timing: Timing | None = None
    kernels: KernelShare | None = None
    peak_memory_bytes: int | None = None
    load_ms: float | None = None
    emulation: Emulation | None = None
    not_emulated: str = ""
    cost: Cost | None = None
    flips: Flips | None = None
    graph_only: GraphOnly | None = None
    device: DeviceMeasures | None = None
    stand_in: str = ""
    sizes: SizesReport | None = None
    drift: DriftReport | None = None
    npu: NpuFacts | None = None
    continuation: Continuation | None = None
