"""A model under other schemes on the same target, in figures: what --scheme auto tried, and --compare made."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.artifacts.measured import Interval
from edgeq.artifacts.verdict import Gate
from edgeq.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model under one scheme on one target; None for what was not measured.

    Attributes:
        size_bytes: of the artifact; None where it could not be made.
        score, fp32_score: on the evaluation data, shares of 1 (or as the user's metric has it).
        drop_pp: fp32's score minus its own, in percentage points.
        sqnr_db: of the outputs against fp32.
        latency_ms, latency_p90_ms: p50 and p90 on this host.
        speedup: times faster than fp32, where both were timed in turns: the median over the turns, and its interval.
        failed: the gates that it did not pass.
        error: why there is no artifact; "" where there is one.
        exit_code: of its gates, or of its error.
    """

    scheme: str
    size_bytes: int | None = None
    score: float | None = None
    fp32_score: float | None = None
    drop_pp: Interval | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    speedup: Interval | None = None
    failed: tuple[Gate, ...] = ()
    error: str = ""
    exit_code: ExitCode = ExitCode.OK

    @property
    def passed(self) -> bool:
        """Whether there is an artifact, and all gates let it through."""
        return not self.error and not self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How --scheme auto came to a scheme.

    Attributes:
        linear_macs: the share of the float model's multiply-accumulates in matrix products (linear, recurrent and
            attention layers), which says whether dynamic-int8 is tried first.
        tried: in this order.
        chosen: the index of the one that the bundle is: the first that passed, or the nearest to that.
        untried: schemes that were left out since what failed before cannot be mended by a scheme.
    """

    linear_macs: float
    tried: tuple[Variant, ...]
    chosen: int
    untried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a scheme brings against float on the same target.

    Attributes:
        arch: of the host that the latencies were measured on, the artifacts taking turns.
        variants: the row's own artifact first, then fp32 and fp16 where the target can run them.
    """

    arch: str
    variants: tuple[Variant, ...]
