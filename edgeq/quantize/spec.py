"""What a quantization method is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeq.artifacts import LoadedModel, TensorSpec
from edgeq.job import Progress
from edgeq.samples import Dataset
from edgeq.scheme import ObserverName


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSpec:
    """Input of every quantization method.

    Attributes:
        model: the float model.
        captured: the same as an ExportedProgram; None for TorchScript targets.
        backend: the quantized engine, or the delegate.
        calibration: samples whose ranges are observed; empty for schemes that need none.
        keep_fp32: names or types of modules that stay in float.
        label: for progress, in words.
    """

    model: LoadedModel
    captured: Any
    backend: str
    observer: ObserverName
    keep_fp32: tuple[str, ...]
    calibration: Dataset
    progress: Progress
    label: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self.model.inputs
