"""The golden samples of a bundle: what a device runs to test itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.measured import GoldenComparison
from edgeq.core.results.report import GoldenSet
from edgeq.core.samples import Outputs, Sample
from edgeq.verify.channels import lattice_step, lost_channels
from edgeq.verify.metrics import Comparison

# float kernels differ by rounding only
_FLOAT_FLOORS_DB = {
    **dict.fromkeys(("fp32", "storage-fp16", "weight-only-int8", "weight-only-int4"), 60.0),
    "fp16": 40.0,
    "bf16": 25.0,
}

_INT8_FLOOR_DB = 20.0  # where the output is no quantized tensor, so that its step is not known

_LEAST_FLOOR_DB = 3.0

GOLDEN_BYTES = 256_000


def golden_set(
    samples: Sequence[tuple[Sample, Outputs]],
    output_steps: Sequence[float | None],
    *,
    scheme: str,
    made_on: str | None = None,
    made_by: Literal["graph"] | None = None,
) -> GoldenSet:
    """Stack a few samples as an app has them, before preprocessing, with the artifact's outputs.

    Args:
        samples: each with the outputs that the artifact gave, the batch axis of one in front.
        output_steps: quantization steps of the outputs, where known.
        scheme: the quantization scheme.
        made_on: the CPU model whose kernels gave the outputs; None for the host.
        made_by: what gave the outputs, the converted graph; None for the artifact.
    """
    samples = _within_budget(samples)
    raw = [sample.raw for sample, _ in samples]
    same_shape = all(len({array.shape for array in column}) == 1 for column in zip(*raw, strict=True))
    count = len(samples) if same_shape else 1  # images of several sizes cannot be stacked
    outputs = [[_unbatched(array) for array in arrays] for _, arrays in samples[:count]]
    expected = tuple(np.stack(column) for column in zip(*outputs, strict=True))
    preprocessed = all(a is b for sample, _ in samples for a, b in zip(sample.raw, sample.inputs, strict=False))
    return GoldenSet(
        inputs=tuple(np.stack(column) for column in zip(*raw[:count], strict=True)),
        outputs=expected,
        preprocessed=preprocessed,
        sqnr_floor_db=sqnr_floor_db(expected, output_steps, scheme),
        made_on=made_on,
        made_by=made_by,
    )


def compare_golden(expected: GoldenSet, measured: GoldenSet) -> GoldenComparison:
    """Compare outputs for the golden samples with the recorded ones, per output and per channel."""
    sums = Comparison(by_channel=True)
    same_shapes = [array.shape for array in expected.outputs] == [array.shape for array in measured.outputs]
    if same_shapes:
        sums.add(expected.outputs, measured.outputs)
    return GoldenComparison(
        samples=len(expected.inputs[0]),
        sqnr_db=sums.sqnr_db if sums.elements else math.nan,
        sqnr_floor_db=expected.sqnr_floor_db,
        max_abs=sums.max_abs if sums.elements else math.nan,
        top1_agreement=sums.top1_agreement,
        same_shapes=same_shapes,
        finite=sums.finite,
        lost=tuple(lost_channels(sums.groups(), [lattice_step(array) for array in expected.outputs])),
    )


def _within_budget(samples: Sequence[tuple[Sample, Outputs]]) -> Sequence[tuple[Sample, Outputs]]:
    """Keep the first sample, and as many more as the budget allows: every app downloads them.

    Of a model with state they are steps of one sequence: a device feeds the state from each to the next.
    """
    total = 0
    for index, (sample, outputs) in enumerate(samples):
        total += sum(array.nbytes for array in (*sample.raw, *outputs))
        goes_on = not sample.sequence or sample.sequence == samples[0][0].sequence
        if index and (total > GOLDEN_BYTES or not goes_on):
            return samples[:index]
    return samples


def _unbatched(array: NDArray[Any]) -> NDArray[Any]:
    return array[0] if array.ndim and array.shape[0] == 1 else array


def sqnr_floor_db(outputs: Outputs, steps: Sequence[float | None], scheme: str) -> float:
    """Return the SQNR of outputs that are one quantization step off everywhere: 20 log10(rms / step)."""
    known = [(array, step) for array, step in zip(outputs, steps, strict=False) if step]
    if not known:
        return _FLOAT_FLOORS_DB.get(scheme, _INT8_FLOOR_DB)
    # infinities are equal or not, whatever the step
    squares = [(np.where(np.isfinite(array), array, 0).astype(np.float64) ** 2, step) for array, step in known]
    ratios = [float(np.sqrt(np.mean(square))) / step for square, step in squares]
    return round(max(_LEAST_FLOOR_DB, 20 * math.log10(max(min(ratios), 1e-6))), 2)
