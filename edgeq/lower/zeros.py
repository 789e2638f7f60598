"""How many of an artifact's weights are zero: the ZIP of a pruned model is smaller by them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeq.core.lazy import NDArray


def zero_share(weights: Iterable[NDArray[Any]]) -> float | None:
    """Return the share of zeros among numbers of matrices and kernels, 0 to 1; None without any.

    Args:
        weights: as they are stored, whole numbers without their zero point. Those with less than two axes are biases
            and scales, and do not count.
    """
    total = zeros = 0
    for values in weights:
        if values.ndim > 1 and (values.dtype.kind == "f" or values.dtype.itemsize == 1):
            total += values.size
            zeros += int((values == 0).sum())
    return zeros / total if total else None
