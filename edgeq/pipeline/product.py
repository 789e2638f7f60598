"""What one recipe makes: an artifact, with all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import (
    GoldenSet,
    KeptValues,
    LayerSqnrs,
    LoweredModel,
    QParams,
    Reuse,
    Search,
    Tuning,
    VerifyReport,
)
from edgeq.target import FileFormat

if TYPE_CHECKING:
    from edgeq.verify.emulate.subset import Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an artifact depends on, apart from the job: targets with equal recipes share it.

    Attributes:
        fresh: whether all ranges are new ones, though the job names a shipped model whose are to be reused.
        native: whether it may be compiled for this machine; of runtimes that compile nothing, no.
    """

    runtime: str
    backend: str
    scheme: str
    threads: int
    fresh: bool = False
    reduce_range: bool = False
    native: bool = False
    file_format: FileFormat = "onnx"

    @property
    def folder(self) -> str:
        """A folder's name for it."""
        own = f"-{self.file_format}" if self.runtime == "onnx" else ""
        marks = f"{'-fresh' if self.fresh else ''}{'-native' if self.native else ''}"
        return f"{self.backend}-{self.scheme}-{self.threads}{own}{marks}"

    @property
    def engine(self) -> str | None:
        """The quantized engine that runs the recipe's graphs; None where they are of plain operators."""
        return self.backend if self.runtime == "torchscript" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An artifact with all that is known of it.

    Attributes:
        output_steps: quantization steps of the outputs, where known.
        observed: the sub-set of the samples that a device's kernels are to run too; none where no target wants that.
        qparams, fresh, remarks, layer_sqnrs: as in QuantizedModel.
        reuse: what came of the shipped model's scales and zero points; None where they were not asked for.
    """

    lowered: LoweredModel
    verified: VerifyReport
    golden: GoldenSet
    quantized: tuple[str, ...]
    kept_fp32: tuple[str, ...]
    output_steps: tuple[float | None, ...] = ()
    observed: tuple[Observed, ...] = ()
    tuning: Tuning | None = None
    qparams: tuple[QParams, ...] = ()
    fresh: tuple[str, ...] = ()
    kept: KeptValues | None = None
    reuse: Reuse | None = None
    search: Search | None = None
    search_state: Path | None = None
    remarks: tuple[str, ...] = ()
    layer_sqnrs: LayerSqnrs | None = None
