"""What the search for a mixed precision found: how sensitive each layer is, and which were left in float."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """A layer, and what quantizing it alone does to the outputs.

    Attributes:
        layer: the module's name, as `--keep-fp32` takes it.
        alone_db: the outputs' SQNR against fp32 with this layer alone in int8, weights and activations.
        but_one_db: the same with every other layer in int8; None where that was not estimated.
        weight_bytes: of its weights in int8; in float they take four times as many.
    """

    layer: str
    alone_db: float
    but_one_db: float | None
    weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A quantized graph against fp32 on search samples.

    Attributes:
        sqnr_db: of the worst output.
        agreement: share of samples with the same top-1 class; None where no output ranks classes.
        drop_pp: fp32 minus the graph's score in percentage points; without labels the share of top-1 predictions that
            changed, which is the most that it can be. None where there is neither.
    """

    sqnr_db: float
    agreement: float | None
    drop_pp: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An assignment that was converted and run.

    Attributes:
        kept: the layers in float.
        remedies: what was changed for all layers, in words; none for int8 as it was asked for.
        size_bytes: an estimate of the artifact's size.
        meets: whether accuracy and size keep their limits.
    """

    kept: tuple[str, ...]
    size_bytes: int
    scores: Scores
    meets: bool
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search.

    Attributes:
        limits: what the scores were held to, by the limits' names.
        samples: how many search samples there were.
        ranking: all layers, the most sensitive one first.
        attempts: in the order in which they were made; `chosen` is the index of the one that the artifact is.
    """

    limits: tuple[tuple[str, float], ...]
    samples: int
    ranking: tuple[Sensitivity, ...]
    attempts: tuple[Attempt, ...]
    chosen: int

    @property
    def found(self) -> Attempt:
        """The attempt that the artifact is."""
        return self.attempts[self.chosen]
