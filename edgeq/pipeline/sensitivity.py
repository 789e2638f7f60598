"""The ranking of a model's layers by what int8 does to each, with nothing lowered."""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.artifact import Inputs
from edgeq.core.results.model import LoadedModel, RankedLayers, Sensitivity
from edgeq.core.runtimes import ETHOS_U
from edgeq.core.samples import Batch, Outputs, evenly
from edgeq.core.system import check_extras
from edgeq.core.units import counted
from edgeq.pipeline.prepare import prepare
from edgeq.quantize import RANKINGS, rank_layers
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import JudgeSpec, QuantizeSpec
from edgeq.report import text
from edgeq.verify.accumulate import batch_scores, chosen_metric
from edgeq.verify.children import calm_openmp
from edgeq.verify.metrics import TOP1, mean_score

MOST_SCORED = 256  # evaluation samples, since each of them is run once for each layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The layers of a model on a target, the most sensitive one first.

    Attributes:
        samples: how many calibration samples gave the ranges.
        found: what was measured.
        metric: the name of the score; "" where the layers are ranked by SQNR.
    """

    model: str
    target: str
    samples: int
    found: RankedLayers
    metric: str = ""

    @property
    def layers(self) -> tuple[Sensitivity, ...]:
        """The layers, the most sensitive one first."""
        return self.found.layers

    @property
    def best_kept(self) -> Sensitivity | None:
        """The layer whose stay in float gains most; None where none gains anything."""
        return self.found.best_kept

    def __str__(self) -> str:
        return text.ranking(self.found, model=self.model, target=self.target, metric=self.metric)

    def __repr__(self) -> str:
        best = f"keep {self.best_kept.layer} in float" if self.best_kept else "no layer gains anything in float"
        return f"<Ranking {self.model} {self.target}: {counted(len(self.layers), 'layer')}, {best}>"

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def sensitivity(job: Job, progress: Progress) -> Ranking:
    """Rank the layers of a job's model for its one target: by SQNR, or by score where it has evaluation data.

    Raises:
        UsageError: the model or its data cannot be used.
        UnsupportedError: a target whose runtime has no ranking, a ready-made artifact, or a model that cannot
            be quantized.
    """
    calm_openmp()
    # importing torchao makes torch log of an enumeration that only concerns torchao's authors
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    (target,) = job.targets
    if target.runtime not in RANKINGS:
        what = f"edgeq cannot rank the layers for {target.name}: runtime {target.runtime}"
        raise UnsupportedError(what, f"give a target with the runtime {' or '.join(sorted(RANKINGS))}")
    if target.backend in ETHOS_U:  # Arm's quantizer takes layers apart, whose parts have ranges of their own
        what = f"edgeq cannot rank the layers for {target.name}: an Ethos-U computes them in parts"
        raise UnsupportedError(what, "rank them for --target linux-arm64-xnnpack")
    check_extras((target.runtime,))
    by_score = job.data.evaluation is not None or job.data.metric is not None
    job = with_demo_data(job)
    inputs = prepare(job, progress, schemes=("static-int8",), describe=_refused)
    if inputs.calibration.count == 0:
        raise UsageError("int8 ranges need calibration samples, but there are none", "give --calibration-data")
    judge = _judge(inputs) if by_score else None
    spec = QuantizeSpec(
        model=inputs.model,
        captured=None if target.runtime == "torchscript" else capture(inputs.model),
        reduce_range=target.reduce_range,
        backend=target.backend,
        observer=job.observer,
        keep_fp32=job.keep_fp32,
        calibration=inputs.calibration,
        progress=progress,
        label=target.name,
        judge=judge,
    )
    return Ranking(
        model=inputs.model.name,
        target=target.name,
        samples=inputs.calibration.count,
        found=rank_layers(target.runtime, spec),
        metric=(inputs.metric_name or TOP1) if judge else "",
    )


def _judge(inputs: Inputs) -> JudgeSpec:
    """Return how the layers are scored on evaluation data; raises UsageError where it cannot be scored."""
    if not inputs.is_evaluation:
        raise UsageError("--metric was given without --eval-data", "add --eval-data, or omit --metric")
    samples = evenly(inputs.samples, MOST_SCORED)

    def score(runs: Sequence[tuple[Batch, Outputs]]) -> float:
        metric = chosen_metric(inputs.metric, runs[0][1], labelled=samples.labelled)
        if metric is None:
            what = f"{samples.origin} cannot be scored: it has no labels, or the model ranks no classes"
            raise UsageError(what, "give labelled --eval-data or a --metric, or omit --eval-data to rank by SQNR")
        return mean_score(metric, [one for batch, outputs in runs for one in batch_scores(metric, batch, outputs)])

    return JudgeSpec(samples=samples, score=score)


def _refused(model: LoadedModel) -> LoadedModel:
    what = f"{model.model} is a ready-made artifact, whose layers cannot be quantized one by one"
    raise UnsupportedError(what, "give the PyTorch model")
