"""Artifacts that are made from an ONNX file: one that came as the source, or the float one that PyTorch exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.artifacts import LoweredModel
from edgeq.errors import UnsupportedError, VerificationError
from edgeq.job import Job, Progress
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.produce import Forward, Product, Recipe, metric_name, subset
from edgeq.samples import Batch, batches

if TYPE_CHECKING:
    from edgeq.verify.host import HostRuntime

_EQUIVALENCE_SAMPLES = 8
AS_IT_IS = ("fp32", "pretrained")


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What a product is made with.

    Attributes:
        folder: is new, and the artifact lies in it.
        label: for progress, in words.
        emulated: whether a device's kernels are to run a part of the samples afterwards.
    """

    job: Job
    prepared: Prepared
    recipe: Recipe
    folder: Path
    runtime: HostRuntime
    progress: Progress
    label: str
    emulated: bool


def product_of(source: Path, fp32: Forward | None, making: Making) -> Product:
    """Quantize an ONNX file as the recipe says, or take it as it is, and verify it.

    What the artifact is held to is the very file with none of ONNX Runtime's fusions, in which its int8 kernels come.

    Args:
        source: a float file; of `pretrained` a quantized one.
        fp32: the float model; None where there is none to compare with.
        making: all else.

    Raises:
        UnsupportedError: a scheme that no ONNX file can have, or that is not this file's.
        EdgeqError: the steps' own errors.
    """
    from edgeq.lower.onnx import lower_file
    from edgeq.lower.spec import LowerSpec
    from edgeq.verify.run import VerifySpec, verify

    prepared, recipe = making.prepared, making.recipe
    making.folder.mkdir(parents=True, exist_ok=True)
    quantized, kept, proto = _quantized(source, making)
    lowered = lower_file(
        source,
        proto,
        LowerSpec(
            inputs=prepared.model.inputs,
            backend=recipe.backend,
            folder=making.folder,
            progress=making.progress,
            label=making.label,
            file_format=recipe.file_format,
        ),
    )
    watched = subset(making.job, prepared, recipe.scheme, lowered.macs) if making.emulated else None
    spec = VerifySpec(
        lowered=lowered,
        inputs=prepared.model.inputs,
        graph=unfused(lowered.path, prepared),
        fp32=fp32,
        output_steps=(),
        samples=prepared.samples,
        is_evaluation=prepared.is_evaluation,
        metric=prepared.metric,
        metric_name=metric_name(making.job),
        scheme=recipe.scheme,
        backend=recipe.backend,
        threads=recipe.threads,
        progress=making.progress,
        label=making.label,
        observe=watched,
    )
    verified, golden = verify(spec, making.runtime)
    return Product(
        lowered=lowered,
        verified=verified,
        golden=golden,
        quantized=quantized,
        kept_fp32=kept,
        observed=tuple(watched.observed) if watched else (),
    )


def _quantized(source: Path, making: Making) -> tuple[tuple[str, ...], tuple[str, ...], Any | None]:
    """Return the names of the quantized layers and of the others, and the quantized model; None for the file as it is."""
    from edgeq.quantize.onnx_file import FileSpec, is_quantized, quantize_file

    prepared, recipe, job = making.prepared, making.recipe, making.job
    if recipe.scheme in AS_IT_IS:
        import onnx

        found = is_quantized(onnx.load(str(source), load_external_data=False))
        if found != (recipe.scheme == "pretrained"):
            state, other = ("quantized already", "pretrained") if found else ("a float model", "fp32")
            raise UnsupportedError(f"{source.name} is {state}, not {recipe.scheme}", f"give --scheme {other}")
        return (), (), None
    scratch = making.folder / "quantize"
    scratch.mkdir()
    made = quantize_file(
        recipe.scheme,
        FileSpec(
            path=source,
            folder=scratch,
            inputs=prepared.model.inputs,
            observer=job.observer,
            keep_fp32=job.keep_fp32,
            calibration=prepared.calibration,
            reduce_range=recipe.reduce_range,
            progress=making.progress,
            label=making.label,
        ),
    )
    return made.quantized, made.kept_fp32, made.proto


def unfused(path: Path, prepared: Prepared) -> Forward:
    """Return a function that runs an ONNX file operator by operator, without any optimization, in this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in prepared.model.inputs]

    def run(batch: Batch) -> tuple[Any, ...]:
        outputs = session.run(None, dict(zip(names, batch.inputs, strict=True)))
        return tuple(np.asarray(output) for output in outputs)

    return run


def check_equivalence(lowered: LoweredModel, fp32: Forward, prepared: Prepared) -> None:
    """Hold the float file that is to be quantized to PyTorch: what is quantized from another model is another model.

    Raises:
        VerificationError: they differ by more than float32 kernels do that sum in another order.
    """
    from edgeq.check.tolerance import MAX_RELATIVE_FP32
    from edgeq.verify.metrics import Comparison

    runs, sums = unfused(lowered.path, prepared), Comparison()
    seen = 0
    for batch in batches(prepared.samples, prepared.model.inputs):
        sums.add(fp32(batch), runs(batch))
        seen += batch.rows
        if seen >= _EQUIVALENCE_SAMPLES:
            break
    relative = sums.error_sum / sums.magnitude_sum if sums.magnitude_sum else float("nan")
    if not relative <= MAX_RELATIVE_FP32:
        what = f"the float ONNX file differs from PyTorch by {relative:.1e} of the mean magnitude over {seen} samples"
        fix = "package it with --scheme fp32, and report the model's architecture"
        raise VerificationError(f"{what}, at most {MAX_RELATIVE_FP32:.0e} is rounding", fix)
