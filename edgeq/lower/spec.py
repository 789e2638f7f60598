"""What a lowering is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeq.artifacts import TensorSpec
from edgeq.job import Progress
from edgeq.target import FileFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSpec:
    """Input of every lowering.

    Attributes:
        inputs: the model's inputs.
        backend: the delegate or quantized engine.
        folder: where the artifact is written.
        file_format: of ONNX Runtime's artifacts, `onnx` or its own `ort`.
        dynamic_batch: whether the artifact takes any number of samples at once.
        label: for progress, in words.
    """

    inputs: tuple[TensorSpec, ...]
    backend: str
    folder: Path
    progress: Progress
    label: str
    file_format: FileFormat = "onnx"
    dynamic_batch: bool = False
