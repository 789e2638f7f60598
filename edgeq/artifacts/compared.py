"""The outputs of two artifacts, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
