"""What running an artifact showed, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        lost: channels that the graph has and the artifact has not, in words.
    """

    samples: int
    max_abs: float
    max_steps: float | None
    sqnr_db: float
    differing: float
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
        shares: whether all values of fp32's output lie between 0 and 1.
        unlike: whether the spread is of another size than that of the output's largest channel.
        constant: whether the artifact's values are the same for every input, and fp32's are not.
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
        label: the class's index; of the labels, or where there are none of fp32's own answers.
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
        cosine, max_abs: over all outputs together.
        top1_agreement: share of samples with the same argmax; None where no output is [N, classes].
        metric: the name of the score, or None without labels.
        fp32_score, score: its mean; None without labels.
        drop_pp: fp32 minus artifact in percentage points, paired; None without labels.
        chance_score: what always answering the commonest label would score; None without top-1 labels.
        mismatch_drop_pp: what fp32 loses when each sample's outputs meet another sample's label, or without labels
            when noise as strong as the outputs is added to them, paired; None for top-1, or where no two labels
            differ. Below zero, lower scores are the better ones; around zero, the score proves nothing.
        distinct: how many distinct samples there are; None in older reports.
        lost, won: distinct samples that the artifact scores lower, and higher, than fp32; None without labels.
        groups: by output and channels of unlike range.
        agreements: by output that ranks classes.
        classes: by class, those that lose most first, not all of very many; by the labels, or else by fp32's answers.
        by_labels: which of the two `classes` goes by.
        tied: share of the samples whose first class shares its score with another one, in the artifact alone.
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
    classes: tuple[ClassDrop, ...] = ()
    by_labels: bool = False
    tied: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one inference on the host, in ms, of `runs` runs after `warmup`; `latencies_ms` holds each.

    On a GPU, `gpu` names it; "" where the CPU computed.
    """

    p50_ms: float
    p90_ms: float
    runs: int
    warmup: int
    threads: int
    arch: str
    latencies_ms: tuple[float, ...] = ()
    gpu: str = ""


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
        top1_flips: rows whose argmax is another one; None where the first output is no [N, classes].
        ranked: of how many rows; a sample that is a whole batch has several. None in older reports.
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

    @property
    def top1_percent(self) -> float | None:
        """Share of rows with the same argmax, in percent; None where that is not known."""
        return 100 * (1 - self.top1_flips / self.ranked) if self.top1_flips is not None and self.ranked else None


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
