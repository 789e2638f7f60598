"""Predictions that changed: what the report shows of samples whose top-1 class is not fp32's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A sample whose top-1 class changed.

    Attributes:
        sample: its name: a file's, or an index.
        label: the class that it is of; None where that is not known.
        fp32, artifact: the top-1 class of each.
        thumbnail: a WebP image in base64; "" where the input is no image.
    """

    sample: str
    label: int | None
    fp32: int
    artifact: int
    thumbnail: str = ""


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
