"""An artifact that came as it is: described and verified without quantizing or lowering."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.core.config import Job, Progress
from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, VerificationError, first_line
from edgeq.core.results.model import LoadedModel, LoweredModel, TensorSpec
from edgeq.core.samples import Batch, batches
from edgeq.core.schemes import MAX_RELATIVE_FP32
from edgeq.core.sources import unreadable
from edgeq.lower.onnx import any_batch, lower_file
from edgeq.lower.spec import LowerSpec
from edgeq.pipeline.plan import Artifact, ArtifactSpec, Inputs
from edgeq.pipeline.prepare import subset, verify_spec
from edgeq.quantize.graph_runner import Forward
from edgeq.verify.metrics import Comparison

if TYPE_CHECKING:
    from edgeq.quantize.onnx import QuantizedFile
    from edgeq.verify.host import ArtifactFacts, HostRuntime, Loaded


_RUNTIMES = {"pte": "executorch", "ptl": "torchscript", "onnx": "onnx"}

_MATRIX_KERNELS = ("convolution", "addmm", "mm", "bmm", "linear", "baddbmm")


def check_runtime(model: LoadedModel, recipe: ArtifactSpec) -> None:
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
    prepared: Inputs,
    recipe: ArtifactSpec,
    folder: Path,
    runtime: HostRuntime,
    progress: Progress,
    *,
    emulated: bool,
) -> Artifact:
    """Verify an artifact that came as it is, and return it as a product.

    Raises:
        UsageError: the artifact is damaged.
        EdgeqError: the verify step's own errors.
    """
    from edgeq.verify.verify import verify

    source: Path = prepared.model.model
    folder.mkdir(parents=True)
    path = folder / f"model{source.suffix}"
    shutil.copyfile(source, path)
    load_given(runtime, source, name=recipe.runtime, backend=recipe.backend, threads=recipe.threads, copy=path)
    lowered = _lowered(path, recipe, runtime.facts())
    kept = subset(job, prepared, recipe.scheme, lowered.macs) if emulated else None
    spec = verify_spec(prepared, recipe, lowered, progress, source.name)
    verified, golden = verify(dataclasses.replace(spec, observe=kept), runtime)
    return Artifact(
        lowered=lowered,
        verified=verified,
        golden=golden,
        quantized=(),
        kept_fp32=(),
        observed=tuple(kept.observed) if kept else (),
    )


def _lowered(path: Path, recipe: ArtifactSpec, facts: ArtifactFacts) -> LoweredModel:
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


# --- Artifacts that are made from an ONNX file: one that came as the source, or the float one that PyTorch
# exported.


_EQUIVALENCE_SAMPLES = 8

AS_IT_IS = ("fp32", "pretrained")


class FileMaker:
    """Makes products from ONNX files: quantizes one as the recipe says, or takes it as it is, and verifies it."""

    def __init__(self, job: Job, prepared: Inputs, folder: Path, progress: Progress, runtime: HostRuntime) -> None:
        self._runtime = runtime  # a child process, started early
        self._job = job
        self._prepared = prepared
        self._folder = folder
        self._progress = progress

    def from_source(self, recipe: ArtifactSpec, label: str, *, emulated: bool) -> Artifact:
        """Make a product from the source itself; of one that came quantized, no float model is known."""
        source: Path = self._prepared.model.model
        # in the child first: a file that crashes the runtime must not take edgeq along
        load_given(self._runtime, source, name=recipe.runtime, backend=recipe.backend, threads=recipe.threads)
        fp32 = None if recipe.scheme == "pretrained" else unfused(source, self._prepared)
        keep = self._job.keep_fp32
        return self.make(source, fp32, recipe, label, emulated=emulated, keep=keep)

    def make(
        self,
        source: Path,
        fp32: Forward | None,
        recipe: ArtifactSpec,
        label: str,
        *,
        emulated: bool,
        keep: Sequence[str],
    ) -> Artifact:
        """Make a product, held to the very file without ONNX Runtime's fusions, with which its int8 kernels come.

        Args:
            source: a float file; of `pretrained` a quantized one.
            fp32: the float model; None where there is none to compare with.
            recipe: what to make.
            label: for progress, in words.
            emulated: whether a device's kernels are to run a part of the samples afterwards.
            keep: names of nodes, or operators, that stay in float.

        Raises:
            UnsupportedError: a scheme that no ONNX file can have, or that is not this file's.
            EdgeqError: the steps' own errors.
        """
        from edgeq.verify.verify import verify

        if self._job.dynamic_batch:
            check_open_batch(source)
        folder = self._folder / recipe.folder
        folder.mkdir(parents=True)
        made = self._quantized(source, recipe, folder, label, keep)
        lowered = self._lowered(source, made, recipe, folder, label)
        kept = subset(self._job, self._prepared, recipe.scheme, lowered.macs) if emulated else None
        spec = verify_spec(self._prepared, recipe, lowered, self._progress, label)
        graph = unfused(lowered.path, self._prepared)
        verified, golden = verify(dataclasses.replace(spec, graph=graph, fp32=fp32, observe=kept), self._runtime)
        return Artifact(
            lowered=lowered,
            verified=verified,
            golden=golden,
            quantized=made.quantized if made else (),
            kept_fp32=made.kept_fp32 if made else (),
            asked_fp32=tuple(layer.name for layer in lowered.layers if layer.name in keep or layer.op in keep),
            observed=tuple(kept.observed) if kept else (),
        )

    def _quantized(
        self, source: Path, recipe: ArtifactSpec, folder: Path, label: str, keep: Sequence[str]
    ) -> QuantizedFile | None:
        """Return the quantized model; None for the file as it is."""
        from edgeq.quantize.onnx import FileSpec, quantize_file

        if recipe.scheme in AS_IT_IS:
            _check_state(source, recipe.scheme)
            return None
        scratch = folder / "quantize"
        scratch.mkdir()
        spec = FileSpec(
            path=source,
            folder=scratch,
            inputs=self._prepared.model.inputs,
            observer=self._job.observer,
            keep_fp32=tuple(keep),
            calibration=self._prepared.calibration,
            reduce_range=recipe.reduce_range,
            progress=self._progress,
            label=label,
        )
        try:
            return quantize_file(recipe.scheme, spec)
        except UnsupportedError:
            # torch's exporter states shapes between layers that ONNX Runtime's tools stumble over
            plain = _without_shapes(source, folder / "plain")
            if plain is None:
                raise
            shutil.rmtree(scratch)
            scratch.mkdir()
            return quantize_file(recipe.scheme, dataclasses.replace(spec, path=plain))

    def _lowered(
        self, source: Path, made: QuantizedFile | None, recipe: ArtifactSpec, folder: Path, label: str
    ) -> LoweredModel:

        spec = LowerSpec(
            inputs=self._prepared.model.inputs,
            backend=recipe.backend,
            folder=folder,
            progress=self._progress,
            label=label,
            file_format=recipe.file_format,
        )
        return lower_file(source, made.proto if made else None, spec)


def _without_shapes(source: Path, folder: Path) -> Path | None:
    """Write a file again without the shapes that it states between its layers; None where it states none."""
    import onnx

    proto = onnx.load(str(source))
    if not proto.graph.value_info:
        return None
    del proto.graph.value_info[:]
    folder.mkdir()
    onnx.save(proto, str(folder / source.name))
    return folder / source.name


def check_open_batch(source: Path) -> None:
    """Refuse a file of one batch size where any was asked for.

    Raises:
        UnsupportedError: it is such.
    """
    import onnx

    if not any_batch(onnx.load(str(source), load_external_data=False)):
        what = f"{source.name} has a fixed batch size, and --dynamic-batch asks for any"
        raise UnsupportedError(what, "export it again with dynamic_shapes, or leave out --dynamic-batch")


def _check_state(source: Path, scheme: str) -> None:
    """Refuse a float file as `pretrained`, and a quantized one as fp32."""
    import onnx

    from edgeq.quantize.onnx import is_quantized

    found = is_quantized(onnx.load(str(source), load_external_data=False))
    if found != (scheme == "pretrained"):
        state, other = ("quantized already", "pretrained") if found else ("a float model", "fp32")
        raise UnsupportedError(f"{source.name} is {state}, not {scheme}", f"give --scheme {other}")


def unfused(path: Path, prepared: Inputs) -> Forward:
    """Return a function that runs an ONNX file operator by operator, without any optimization, in this process.

    Raises:
        UnsupportedError, VerificationError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    from edgeq.verify.host import onnx_error

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises a type for each of its codes
        kind, meaning = onnx_error(str(err)) or (VerificationError, "")
        what = f"ONNX Runtime cannot load {path.name}: {meaning or first_line(err)}"
        raise kind(what, "export it again, for an opset that this ONNX Runtime has") from err
    names = [spec.name for spec in prepared.model.inputs]

    def run(batch: Batch) -> tuple[Any, ...]:
        outputs = session.run(None, dict(zip(names, batch.inputs, strict=True)))
        return tuple(np.asarray(output) for output in outputs)

    return run


def check_equivalence(lowered: LoweredModel, fp32: Forward, prepared: Inputs) -> None:
    """Hold the float file that is to be quantized to PyTorch: what is quantized from another model is another model.

    Raises:
        VerificationError: they differ by more than float32 kernels do that sum in another order.
    """

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


# --- Model files that people give, read by their runtime: what it refuses is bad input, and no verdict on a model.


def load_given(
    runtime: HostRuntime, given: Path, *, name: str, backend: str, threads: int = 1, copy: Path | None = None
) -> Loaded:
    """Load a file in a runtime of this host, by its own name or as a copy of it.

    Args:
        runtime: the child process.
        given: the file as it was named.
        name: the runtime's, such as executorch.
        backend: the engine, as `HostRuntime.load` takes it.
        threads: of the runtime.
        copy: what is loaded in its place.

    Raises:
        UsageError: the runtime refuses the file.
        EdgeqError: what else `HostRuntime.load` raises, with the file's name.
    """
    from edgeq.verify.host import Refused

    path = copy or given
    try:
        return runtime.load(path, runtime=name, backend=backend, threads=threads)
    except Refused as err:
        raise unreadable(given, err.what.removeprefix(f"failed while loading {path.name}: ")) from err
    except EdgeqError as err:
        raise type(err)(f"{given}: {err.what}", err.fix) from err
