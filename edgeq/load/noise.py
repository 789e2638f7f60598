"""Telling an image from noise: neighbouring pixels of an image are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.artifacts import TensorSpec
from edgeq.samples import Sample

# Photographs and drawings have 0.7 and more; of independent pixels it is 0, within 0.1 for all but the smallest.
MIN_AUTOCORRELATION = 0.1
MIN_SIDE = 8  # with fewer pixels the estimate says nothing
_CROP = 256  # pixels a side are enough for it, and need no copy of a large photograph


def is_noise(sample: Sample, specs: Sequence[TensorSpec]) -> bool:
    """Return whether a sample holds images, and all of them are noise."""
    images = [image for raw, spec in zip(sample.raw, specs, strict=True) if (image := _as_image(raw, spec)) is not None]
    return bool(images) and all(autocorrelation(image) < MIN_AUTOCORRELATION for image in images)


def autocorrelation(image: NDArray[Any]) -> float:
    """Return the mean correlation of neighbouring pixels, over rows and columns, in the centre of an image.

    It is sum(x[i] x[i+1]) / sum(x[i]^2) over the pixels less their channel's mean, scaled to equal counts.

    Args:
        image: [H, W, C] of any numeric dtype.

    Returns:
        -1 to 1; 1 where all pixels of a channel are equal, NaN where one is not finite.
    """
    top, left = (max(0, (size - _CROP) // 2) for size in image.shape[:2])
    x = image[top : top + _CROP, left : left + _CROP].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are a finding of their own
        x -= x.mean(axis=(0, 1))
        power = float(np.mean(x * x))
        along = float(np.mean(x[1:] * x[:-1]) + np.mean(x[:, 1:] * x[:, :-1])) / 2
    return along / power if power else 1.0


def _as_image(raw: NDArray[Any], spec: TensorSpec) -> NDArray[Any] | None:
    """Return [H, W, C], or None for what is no image: tokens, features and what is smaller than 8 x 8."""
    pixels = raw.dtype == np.uint8 and raw.ndim == 3
    features = raw.dtype.kind == "f" and raw.ndim >= 3 and len(spec.shape) >= 4
    if not pixels and not features:
        return None
    image = raw.reshape(-1, *raw.shape[-3:])[0]
    if image.shape[2] not in (1, 3, 4):
        image = np.moveaxis(image, 0, 2)
    return image if min(image.shape[:2]) >= MIN_SIDE else None
