"""Input of the verify step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeq.core.config import Progress
from edgeq.core.results.model import LanguageModel, LoweredModel, TensorSpec
from edgeq.core.samples import Batch, Dataset, Outputs
from edgeq.verify.metrics import Metric, SetMetric

Forward = Callable[[Batch], Outputs]


Observer = Callable[[Batch, Outputs, Outputs | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySpec:
    """Input of the verify step.

    Attributes:
        lowered: the artifact on disk; None where only its graph is judged.
        inputs: the model's inputs.
        graph: computes the function that the artifact has to compute; None for a ready-made artifact.
        fp32: the float model; None for a ready-made artifact.
        output_steps: quantization steps of the outputs, where known.
        samples: evaluation data, or random inputs.
        is_evaluation: which of the two.
        metric: a score per sample or of the whole set, or None for top-1.
        scheme: the quantization scheme.
        backend, threads: how the runtime is set.
        warmup, runs: of the latency measurement.
        output_names: of the outputs, where the model names them; () for `output0` and so on.
        etdump: where an ExecuTorch artifact's ETDump of one run goes; None to keep none.
        observe: is given each batch with the artifact's outputs, and those of fp32 if there is one.
        observe_sizes: is given the same of the sizes that vary, the largest ones first, before `observe` is called.
        language: of a language model with a cache; None for others.
    """

    lowered: LoweredModel | None
    inputs: tuple[TensorSpec, ...]
    graph: Forward | None
    fp32: Forward | None
    output_steps: tuple[float | None, ...]
    samples: Dataset
    is_evaluation: bool
    metric: Metric | SetMetric | None
    metric_name: str
    scheme: str
    backend: str
    threads: int
    progress: Progress
    label: str
    warmup: int = 5
    runs: int = 30
    output_names: tuple[str, ...] = ()
    etdump: Path | None = None
    observe: Observer | None = None
    observe_sizes: Observer | None = None
    language: LanguageModel | None = None
