"""Input of a lowering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.core.config import Progress
from edgeq.core.results.model import LanguageModel, TensorSpec

if TYPE_CHECKING:
    from edgeq.core.targets import FileFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSpec:
    """Input of every lowering.

    Attributes:
        inputs: the model's inputs, with the sizes that vary; --dynamic-batch leaves the first of each open.
        backend: the delegate or quantized engine.
        folder: where the artifact is written.
        file_format: of ONNX Runtime's artifacts, `onnx` or its own `ort`.
        label: text for progress.
        output_names: of the outputs, where the model names them; () for `output0` and so on.
        npu: accelerator, system configuration and memory mode of an Ethos-U; None for other backends.
        etrecord: where to write an ETRecord, of an artifact that ExecuTorch runs; None for none.
        language: of a language model with a cache; None for others.
        native: whether the artifact is for machines of this one's architecture, so that it may be compiled here.
    """

    inputs: tuple[TensorSpec, ...]
    backend: str
    folder: Path
    progress: Progress
    label: str
    native: bool = False
    npu: tuple[str, str, str] | None = None
    etrecord: Path | None = None
    file_format: FileFormat = "onnx"
    output_names: tuple[str, ...] = ()
    language: LanguageModel | None = None
