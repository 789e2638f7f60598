"""Artifacts that answer several samples at once: the same samples together and alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import VerificationError
from edgeq.samples import Batch, Dataset, Sample
from edgeq.verify.golden import sqnr_floor_db
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Comparison, Outputs
from edgeq.verify.rows import another_input

TOGETHER = 3
# a single sample may be so much further off than all of them together
_ROW_DB = 10.0
_MAX_STEPS = 1.0 + 1e-3


@dataclass(slots=True)
class Extremes:
    """The samples of the least and of the largest input: one range for both leaves nothing of the former."""

    quietest: tuple[float, Sample] | None = None
    loudest: tuple[float, Sample] | None = None

    def look(self, samples: Sequence[Sample]) -> None:
        """Take in samples, by the root mean square of their float inputs."""
        for sample in samples:
            floats = [array for array in sample.inputs if array.dtype.kind == "f" and array.size]
            power = sum(float(np.square(array, dtype=np.float64).mean()) for array in floats)
            if not np.isfinite(power):
                continue
            if self.quietest is None or power < self.quietest[0]:
                self.quietest = power, sample
            if self.loudest is None or power > self.loudest[0]:
                self.loudest = power, sample

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The two, where they are two."""
        found = [pair[1] for pair in (self.quietest, self.loudest) if pair is not None]
        return tuple({sample.digest: sample for sample in found}.values())


def in_mixed_order(dataset: Dataset) -> Dataset:
    """Return the same samples in a seeded order: data often lies class by class, and a batch of one class is easier."""
    order = np.random.default_rng(0).permutation(dataset.count).tolist()
    return replace(dataset, read=lambda i: dataset.read(order[i]))


def mixed_batch_findings(
    samples: Sequence[Sample], size: int, steps: Sequence[float | None], scheme: str, runtime: HostRuntime
) -> tuple[str, ...]:
    """Return what is wrong with an artifact whose answer to a sample depends on the others of its batch.

    Args:
        samples: unlike ones, at least two; the order matters not.
        size: how many the artifact takes at once.
        steps: quantization steps of the outputs, where known: so much may differ.
        scheme: the quantization scheme.
        runtime: has the artifact loaded.
    """
    alone = [runtime.run(_filled([sample], size)) for sample in samples]
    rows = [samples[i % len(samples)] for i in range(max(size, len(samples)))][:size]
    together = runtime.run(_filled(rows, size))
    if any(array.ndim == 0 or len(array) != size for array in together):
        return ()  # outputs without the batch axis belong to no sample
    expected = tuple(
        np.stack([alone[i % len(samples)][output][0] for i in range(size)]) for output in range(len(together))
    )
    return _row_findings(expected, together, steps, scheme, f"a batch of {size} unlike samples is")


def _filled(samples: Sequence[Sample], size: int) -> tuple[NDArray[Any], ...]:
    rows = [samples[i % len(samples)] for i in range(size)]
    return tuple(np.stack(column) for column in zip(*(sample.inputs for sample in rows), strict=True))


def _row_findings(
    expected: Outputs, together: Outputs, steps: Sequence[float | None], scheme: str, what: str
) -> tuple[str, ...]:
    """Compare row by row: the largest one of a batch would rule the ratio of all."""
    worst, least = math.inf, sqnr_floor_db(expected, steps, scheme) - _ROW_DB
    for index, (left, right) in enumerate(zip(expected, together, strict=True)):
        step = steps[index] if index < len(steps) else None
        for row, other in zip(left.astype(np.float64), right.astype(np.float64), strict=True):
            if step and float(np.abs(row - other).max(initial=0.0)) <= _MAX_STEPS * step:
                continue
            sums = Comparison()
            sums.add((row,), (other,))
            worst = min(worst, sums.sqnr_db)
    if worst >= least:
        return ()
    return (
        f"{what} answered otherwise than each sample alone: {worst:.1f} dB for the worst, at least {least:.1f} dB;"
        " what a sample gets depends on the others of its batch",
    )


def batch_findings(
    seen: Sequence[Batch], steps: Sequence[float | None], scheme: str, runtime: HostRuntime
) -> tuple[str, ...]:
    """Return what is wrong with an artifact's answer to more samples at once than it is fed otherwise.

    Args:
        seen: batches of the stated shape, at least one.
        steps: quantization steps of the outputs, where known: so much may differ, of the others what kernels lose that
            sum in another order. Dynamic int8 takes its ranges from all that comes together.
        scheme: the quantization scheme.
        runtime: has the artifact loaded.
    """
    inputs = [batch.inputs for batch in seen[:TOGETHER]]
    while len(inputs) < TOGETHER:
        inputs.append(another_input(seen[0]) or inputs[0])
    alone = [runtime.run(arrays) for arrays in inputs]
    try:
        together = runtime.run([np.concatenate(column) for column in zip(*inputs, strict=True)])
    except VerificationError as err:
        return (f"it states that it takes any batch, and fails on {TOGETHER} at once: {err.what}",)
    expected: Outputs = tuple(np.concatenate(column) for column in zip(*alone, strict=True))
    shapes, wanted = ([array.shape for array in side] for side in (together, expected))
    if shapes != wanted:
        return (f"{TOGETHER} batches at once give outputs of the shapes {shapes}, expected {wanted}",)
    sums = Comparison()
    sums.add(expected, together)
    least = sqnr_floor_db(expected, steps, scheme)
    if sums.sqnr_db >= least:
        return _row_findings(expected, together, steps, scheme, f"{TOGETHER} batches at once are")
    return (f"{TOGETHER} batches at once answer otherwise than alone: {sums.sqnr_db:.1f} dB, at least {least:.1f} dB",)
