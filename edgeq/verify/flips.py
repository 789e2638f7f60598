"""Gathers the predictions that changed: counts of all, thumbnails of a few, so that memory stays bounded."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.flips import Flip, FlipPair, Flips
from edgeq.samples import Batch, Sample
from edgeq.verify.metrics import Outputs, is_ranking

MAX_EXAMPLES = 24
MAX_PAIRS = 40
_SIDE_PX = 64
_MAX_LABEL = 2**31
_MAX_NAME = 80


@dataclass(slots=True)
class FlipTally:
    """What changed so far."""

    ranked: int = 0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: list[Flip] = field(default_factory=list)

    def add(self, batch: Batch, reference: Outputs, measured: Outputs) -> None:
        """Compare the classes of a batch's rows; outputs that rank no classes, or are not finite, are left out.

        Args:
            batch: what was run; a sample that is a whole batch stands for all of its rows.
            reference, measured: outputs of equal shapes, padding cut away.
        """
        if not reference or not is_ranking(reference[0]) or len(reference[0]) < batch.rows:
            return
        finite = np.isfinite(reference[0]).all(axis=1) & np.isfinite(measured[0]).all(axis=1)
        before, after = reference[0].argmax(axis=1), measured[0].argmax(axis=1)
        self.ranked += int(finite.sum())
        for row in np.flatnonzero(finite & (before != after)):
            pair = int(before[row]), int(after[row])
            self.pairs[pair] += 1
            if len(self.examples) < MAX_EXAMPLES:
                sample = batch.samples[min(int(row), batch.rows - 1)]
                self.examples.append(_flip(sample, pair, row=int(row) if batch.rows == 1 else 0))

    def result(self) -> Flips | None:
        """Return what changed; None where no output ranks classes."""
        if not self.ranked:
            return None
        ordered = sorted(self.pairs.items(), key=lambda item: (-item[1], item[0]))
        return Flips(
            total=self.pairs.total(),
            ranked=self.ranked,
            pairs=tuple(FlipPair(fp32=a, artifact=b, count=count) for (a, b), count in ordered[:MAX_PAIRS]),
            examples=tuple(self.examples),
        )


def _flip(sample: Sample, pair: tuple[int, int], *, row: int) -> Flip:
    return Flip(
        sample=sample.name[-_MAX_NAME:],
        label=_label(sample.label, row),
        fp32=pair[0],
        artifact=pair[1],
        thumbnail=thumbnail(sample.raw[0]) if sample.raw and row == 0 else "",
    )


def _label(label: Any, row: int) -> int | None:
    """Return a class index; labels of user's own metrics may be anything."""
    values = np.asarray(label).reshape(-1) if label is not None else np.empty(0)
    if row >= values.size or values.dtype.kind not in "iuf" or not 0 <= values[row] < _MAX_LABEL:
        return None
    return int(values[row]) if int(values[row]) == values[row] else None


def thumbnail(raw: NDArray[Any]) -> str:
    """Return an image of at most 64 x 64 pixels as WebP in base64; "" for what is no image.

    Args:
        raw: uint8 [H, W] or [H, W, C] with one or three channels, as an app has it before preprocessing.
    """
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or 0 in raw.shape:
        return ""
    pixels = raw[:, :, 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        return ""
    from PIL import Image

    image = Image.fromarray(pixels)
    is_small = max(image.size) <= _SIDE_PX
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    sink = io.BytesIO()
    # a few pixels blown up in the page must stay themselves
    image.convert("RGB").save(sink, "WEBP", lossless=is_small, quality=80)
    return base64.b64encode(sink.getvalue()).decode()
