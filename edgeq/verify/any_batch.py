"""Artifacts that take any number of samples at once: the same samples together and alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.errors import VerificationError
from edgeq.samples import Batch
from edgeq.verify.golden import sqnr_floor_db
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Comparison, Outputs
from edgeq.verify.rows import another_input

TOGETHER = 3


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
        return ()
    return (f"{TOGETHER} batches at once answer otherwise than alone: {sums.sqnr_db:.1f} dB, at least {least:.1f} dB",)
