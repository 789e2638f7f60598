"""Lowering parity: the artifact against the converted graph, and how much that graph amplifies rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.artifacts import Parity
from edgeq.samples import Batch
from edgeq.verify.channels import lost_channels
from edgeq.verify.metrics import Comparison, Outputs
from edgeq.verify.rows import cut

Forward = Callable[[Batch], Outputs]


@dataclass(slots=True)
class ParityTally:
    """What is gathered while the samples run."""

    sums: Comparison = field(default_factory=lambda: Comparison(by_channel=True))
    steps: tuple[float | None, ...] = ()
    batches: list[tuple[Batch, Outputs]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many samples were compared."""
        return sum(batch.rows for batch, _ in self.batches)

    def add(self, batch: Batch, expected: Outputs, measured: Outputs, steps: tuple[float | None, ...]) -> None:
        """Add one batch's outputs, without padding."""
        self.sums.add(expected, measured, steps)
        self.steps = steps
        self.batches.append((batch, expected))

    def result(self, graph: Forward) -> Parity:
        """Return the verdict's numbers; a difference beyond one step is set against the graph's own reaction."""
        sums = self.sums
        within_a_step = sums.max_steps is not None and sums.max_steps <= 1.0
        return Parity(
            samples=self.samples,
            max_abs=sums.max_abs,
            max_steps=sums.max_steps,
            sqnr_db=sums.sqnr_db,
            differing=sums.differing / sums.elements if sums.elements else 0.0,
            mean_abs=sums.error_sum / sums.elements if sums.elements else None,
            mean_magnitude=sums.magnitude_sum / sums.elements if sums.elements else None,
            lost=lost_channels(sums.groups(classes=False), self.steps),
            reaction_db=None if within_a_step or not sums.differing else self._reaction_db(graph),
        )

    def _reaction_db(self, graph: Forward) -> float | None:
        """Return the graph's SQNR against itself with every float or pixel input one int8 step up or down, seeded.

        Kernels round at ties differently in every layer, and a deep model amplifies that as it amplifies noise at its
        input. An artifact nearer to its graph than this has lost nothing that the input's own step does not lose.
        """
        rng = np.random.default_rng(0)
        sums = Comparison()
        for batch, expected in self.batches:
            if not any(_can_move(array) for array in batch.inputs):
                return None
            nudged = dataclasses.replace(batch, inputs=tuple(_nudged(array, rng) for array in batch.inputs))
            sums.add(expected, cut(batch, graph(nudged)))
        return sums.sqnr_db


def _can_move(array: NDArray[Any]) -> bool:
    return array.size > 0 and (array.dtype.kind == "f" or array.dtype == np.uint8)


def _nudged(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move every element of a float array by 1/255 of its range, up or down, and pixels by one."""
    if not _can_move(array):
        return array
    if array.dtype == np.uint8:
        moved = array.astype(np.int16) + rng.choice(np.array([-1, 1], np.int16), array.shape)
        return np.asarray(np.clip(moved, array.min(), array.max()), np.uint8)
    step = float(array.max() - array.min()) / 255
    return np.asarray(array + rng.choice([-step, step], array.shape), array.dtype)
