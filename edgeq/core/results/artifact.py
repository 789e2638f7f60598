"""What the steps of a run pass on: a model with its data, and the artifact that was made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgeq.core.preprocess import Preprocess
from edgeq.core.results.measured import VerifyReport
from edgeq.core.results.model import LoadedModel, LoweredModel, ModelWork, QuantizedModel
from edgeq.core.results.report import CheckReport, DataFacts, GoldenSet, Reuse
from edgeq.core.samples import NO_SAMPLES, Batch, Dataset, Outputs
from edgeq.core.targets import TargetProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A loaded model and its data.

    Attributes:
        samples: evaluation data, or seeded random inputs where none was given.
        metric: `Metric` or `SetMetric` of verify/metrics.py; None for top-1, or where there are no labels.
        training: what qat-int8 may train on; empty where no scheme trains.
        searching: what mixed-int8 judges on; empty where no scheme searches.
        train: the user's own training loop.
        logits: whether the outputs are scored as logits [N, classes].
        unapplied: which data the preprocessing was not applied to, in words, although the manifest tells apps to apply
            it; "" where it was applied to all.
        metric_name: of the score, for reports and manifests.
        remarks: warnings about the data, which fail nothing.
        work: what the float model computes; None for a file that came lowered or as ONNX, and where the model cannot be
            watched.
    """

    model: LoadedModel
    preprocess: Preprocess | None
    calibration: Dataset
    samples: Dataset
    is_evaluation: bool
    metric: Any
    labels: tuple[str, ...]
    data: DataFacts
    training: Dataset = NO_SAMPLES
    searching: Dataset = NO_SAMPLES
    train: Callable[[Any, Any, Any], Any] | None = None
    logits: bool = False
    unapplied: str = ""
    metric_name: str = "top1"
    remarks: tuple[str, ...] = ()
    work: ModelWork | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A batch that ran on the host, for the device's kernels to run again.

    Attributes:
        host: the artifact's outputs on this host, padding included.
        fp32: those of the float model; None if there is none.
        scored: whether its samples may have labels; golden samples have none.
        continues: whether it is a step of a continuation, which depends on those before it.
        golden: whether it is one of a language model's golden samples, which depend on each other too.
    """

    batch: Batch
    host: Outputs
    fp32: Outputs | None
    scored: bool = True
    continues: bool = False
    golden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact with the results of the steps that made it.

    Attributes:
        quantized: the quantize step's result without its graphs, whose memory is released after verification.
        lowered: the file and its layers.
        verified: how the file ran.
        golden: samples for the device's self-test.
        asked_fp32: names of the artifact's layers that --keep-fp32 leaves in float.
        observed: the subset of the samples that a device's kernels run too; empty where no target has a device.
        reuse: effect of the shipped model's scales and zero points; None without --reuse-qparams-from.
    """

    quantized: QuantizedModel
    lowered: LoweredModel
    verified: VerifyReport
    golden: GoldenSet
    asked_fp32: tuple[str, ...] = ()
    observed: tuple[Observed, ...] = ()
    reuse: Reuse | None = None

    @property
    def size_bytes(self) -> int:
        """Size on disk of the file and of the one that has its weights, in bytes."""
        return sum(path.stat().st_size for path in self.lowered.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInput:
    """An artifact for one target with the verdict of its gates: all that a bundle records.

    Attributes:
        seed: of everything random in the run.
        tools: versions of what decides the result, by name.
        options: those that can change the artifact, by key, as text.
    """

    target: TargetProfile
    scheme: str
    inputs: Inputs
    artifact: Artifact
    checked: CheckReport
    model_version: str
    seed: int
    tools: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)
