"""What a lowering is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeq.artifacts import TensorSpec
from edgeq.job import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSpec:
    """Input of every lowering.

    Attributes:
        inputs: the model's inputs.
        backend: the delegate or quantized engine.
        folder: where the artifact is written.
        label: for progress, in words.
        native: whether the artifact is for machines of this one's architecture, so that it may be compiled here.
    """

    inputs: tuple[TensorSpec, ...]
    backend: str
    folder: Path
    progress: Progress
    label: str
    native: bool = False
