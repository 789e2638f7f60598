"""The ranking of a model's layers by what int8 does to each, with nothing lowered."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edgeq.config.resolve import with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import LoadedModel, Sensitivity
from edgeq.core.system import check_extras
from edgeq.pipeline.prepare import prepare
from edgeq.quantize import RANKINGS, rank_layers
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QuantizeSpec
from edgeq.verify.children import calm_openmp


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The layers of a model on a target, the most sensitive one first, measured on `samples` calibration samples."""

    model: str
    target: str
    samples: int
    layers: tuple[Sensitivity, ...]


def sensitivity(job: Job, progress: Progress) -> Ranking:
    """Rank the layers of a job's model for its one target.

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
    check_extras((target.runtime,))
    job = with_demo_data(job)
    inputs = prepare(job, progress, schemes=("static-int8",), describe=_refused)
    if inputs.calibration.count == 0:
        raise UsageError("int8 ranges need calibration samples, but there are none", "give --calibration-data")
    spec = QuantizeSpec(
        model=inputs.model,
        captured=capture(inputs.model) if target.runtime == "executorch" else None,
        backend=target.backend,
        observer=job.observer,
        keep_fp32=job.keep_fp32,
        calibration=inputs.calibration,
        progress=progress,
        label=target.name,
    )
    layers = rank_layers(target.runtime, spec)
    return Ranking(model=inputs.model.name, target=target.name, samples=inputs.calibration.count, layers=layers)


def _refused(model: LoadedModel) -> LoadedModel:
    what = f"{model.model} is a ready-made artifact, whose layers cannot be quantized one by one"
    raise UnsupportedError(what, "give the PyTorch model")
