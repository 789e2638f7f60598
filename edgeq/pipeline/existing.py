"""An artifact that came as it is: described and verified without quantizing or lowering."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.artifacts import LoadedModel, LoweredModel, TensorSpec
from edgeq.errors import UnsupportedError, UsageError
from edgeq.job import Job, Progress
from edgeq.pipeline.given import load_given
from edgeq.pipeline.prepare import Prepared
from edgeq.pipeline.produce import subset, verify_spec
from edgeq.pipeline.product import Product, Recipe

if TYPE_CHECKING:
    from edgeq.verify.host import ArtifactFacts, HostRuntime

_RUNTIMES = {"pte": "executorch", "ptl": "torchscript", "onnx": "onnx"}
_MATRIX_KERNELS = ("convolution", "addmm", "mm", "bmm", "linear", "baddbmm")


def check_runtime(model: LoadedModel, recipe: Recipe) -> None:
    """Refuse an artifact of another runtime than the target's.

    Raises:
        UnsupportedError: a `.pte` for TorchScript, a `.ptl` for ExecuTorch, and so on.
    """
    runtime = _RUNTIMES[model.kind]
    if runtime != recipe.runtime:
        what = f"{model.model} is an artifact for {runtime}, the target runs {recipe.runtime}"
        raise UnsupportedError(what, f"choose a target whose runtime is {runtime}, or give the PyTorch model")


def described(model: LoadedModel, runtime: HostRuntime) -> LoadedModel:
    """Return the model with the inputs that the artifact itself states; TorchScript archives state none.

    Raises:
        VerificationError: the runtime crashes on the artifact.
        UsageError: the artifact is damaged, or the inputs are not known, or not those that were given.
    """
    if model.kind == "ptl":
        if not model.inputs:
            raise UsageError(f"{model.model} does not say what it takes", "give --input, such as 1x3x224x224")
        return model
    loaded = load_given(runtime, model.model, name="executorch", backend="xnnpack")
    stated = tuple(
        TensorSpec(name=f"input{i}", dtype=dtype, shape=shape) for i, (dtype, shape) in enumerate(loaded.inputs)
    )
    if not model.inputs:
        return dataclasses.replace(model, inputs=stated)
    if [(spec.dtype, spec.shape) for spec in model.inputs] != [(spec.dtype, spec.shape) for spec in stated]:
        takes = ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in stated)
        raise UsageError(f"--input does not fit {model.model}, which takes {takes}", "leave --input out")
    return model


def take(
    job: Job,
    prepared: Prepared,
    recipe: Recipe,
    folder: Path,
    runtime: HostRuntime,
    progress: Progress,
    *,
    emulated: bool,
) -> Product:
    """Verify an artifact that came as it is, and return it as a product.

    Raises:
        UsageError: the artifact is damaged.
        EdgeqError: the verify step's own errors.
    """
    from edgeq.verify.run import verify

    source: Path = prepared.model.model
    folder.mkdir(parents=True)
    path = folder / f"model{source.suffix}"
    shutil.copyfile(source, path)
    load_given(runtime, source, name=recipe.runtime, backend=recipe.backend, threads=recipe.threads, copy=path)
    lowered = _lowered(path, recipe, runtime.facts())
    kept = subset(job, prepared, recipe.scheme, lowered.macs) if emulated else None
    spec = verify_spec(job, prepared, recipe, lowered, progress, source.name)
    verified, golden = verify(dataclasses.replace(spec, observe=kept), runtime)
    return Product(
        lowered=lowered,
        verified=verified,
        golden=golden,
        quantized=(),
        kept_fp32=(),
        observed=tuple(kept.observed) if kept else (),
    )


def _lowered(path: Path, recipe: Recipe, facts: ArtifactFacts) -> LoweredModel:
    """Describe the artifact by what its own runtime says; who wrote it is not in the file."""
    outside = any(name.partition("::")[2].partition(".")[0] in _MATRIX_KERNELS for name in facts.operators)
    all_delegated = recipe.runtime == "executorch" and facts.delegates > 0 and not outside
    return LoweredModel(
        path=path,
        runtime=recipe.runtime,
        runtime_version="",
        bytecode_version=facts.bytecode_version,
        passes=(),
        operators=facts.operators,
        undelegated=facts.operators if recipe.runtime == "executorch" else (),
        layers=(),
        delegated_macs=1.0 if all_delegated else None,
    )
