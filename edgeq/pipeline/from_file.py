"""Sources that are model files: .onnx (quantized here or used as is), .pte and .ptl (verified as they are)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, VerificationError
from edgeq.core.results.artifact import Artifact, Inputs
from edgeq.core.results.model import (
    NO_KERNEL,
    RECURRENT,
    LoadedModel,
    LoweredModel,
    QuantizedModel,
    TensorSpec,
)
from edgeq.core.samples import batches
from edgeq.core.schemes import MAX_RELATIVE_FP32
from edgeq.core.sources import unreadable
from edgeq.lower import openvino
from edgeq.lower.onnx import any_batch, lower_file
from edgeq.lower.spec import LowerSpec
from edgeq.pipeline.plan import ArtifactSpec, BuildStep
from edgeq.pipeline.prepare import subset, unfused, verify_spec
from edgeq.quantize import find_file_method
from edgeq.quantize.graph_runner import Forward
from edgeq.verify.host import ArtifactFacts, HostRuntime, Loaded, Refused
from edgeq.verify.metrics import Comparison
from edgeq.verify.verify import verify

# by kind of file: the runtimes that take it, the first as it is
_RUNTIMES = {"pte": ("executorch",), "ptl": ("torchscript",), "onnx": ("onnx", "openvino")}

_MATRIX_KERNELS = ("convolution", "addmm", "mm", "bmm", "linear", "baddbmm")


def described(model: LoadedModel, runtime: HostRuntime) -> LoadedModel:
    """Return the model with the inputs that the artifact itself states; TorchScript archives state none.

    Raises:
        VerificationError: the runtime crashes on the artifact.
        UsageError: the artifact is damaged, or the inputs are not known, or not those that were given.
    """
    if model.kind == "ptl":
        if not model.inputs:
            raise UsageError(f"{model.model} does not state its inputs", "give --input, such as 1x3x224x224")
        return model
    loaded = load_given(runtime, model.model, name="executorch", backend="xnnpack")
    stated = tuple(
        TensorSpec(name=f"input{i}", dtype=dtype, shape=shape) for i, (dtype, shape) in enumerate(loaded.inputs)
    )
    if not model.inputs:
        return dataclasses.replace(model, inputs=stated)
    if [(spec.dtype, spec.shape) for spec in model.inputs] != [(spec.dtype, spec.shape) for spec in stated]:
        takes = ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in stated)
        raise UsageError(f"--input does not fit {model.model}, which takes {takes}", "omit --input")
    return model


def build_from_file(step: BuildStep) -> Artifact:
    """Build an artifact from a .onnx source, or verify a .pte or .ptl source as it is.

    Raises:
        UnsupportedError: the file is for another runtime than the target's.
        UsageError: the file is damaged.
        EdgeqError: the error of a step.
    """
    model, spec, runtime = step.inputs.model, step.spec, step.runtime
    source: Path = model.model
    own = _RUNTIMES[model.kind]
    if spec.runtime not in own:
        what = f"{source} is an artifact for {own[0]}, but the target runs {spec.runtime}"
        raise UnsupportedError(what, f"choose a target whose runtime is {' or '.join(own)}, or give the PyTorch model")
    if model.kind == "onnx":
        find_file_method(spec.scheme, source.name, spec.runtime)
        # in the child first: a file that crashes a runtime must not end edgeq too
        load_given(runtime, source, name="onnx", backend="ort", threads=spec.threads)
        if spec.runtime != "onnx":
            load_given(runtime, source, name=spec.runtime, backend=spec.backend, threads=spec.threads)
        fp32 = None if spec.scheme == "pretrained" else unfused(source, step.inputs.model.inputs)
        return build_onnx(step, source, fp32, keep=step.job.keep_fp32)
    step.folder.mkdir(parents=True)
    path = step.folder / f"model{source.suffix}"
    shutil.copyfile(source, path)
    load_given(runtime, source, name=spec.runtime, backend=spec.backend, threads=spec.threads, copy=path)
    lowered = _lowered(path, spec, runtime.facts())
    kept = subset(step, lowered.macs) if step.emulated else None
    named = dataclasses.replace(step, label=source.name)
    spec_of_file = verify_spec(named, lowered)
    if kept is not None:
        spec_of_file = dataclasses.replace(spec_of_file, observe=kept, observe_sizes=kept.keep)
    verified, golden = verify(spec_of_file, runtime)
    return Artifact(
        quantized=QuantizedModel(scheme=spec.scheme, graph=None, quantized=(), kept_fp32=(), output_steps=()),
        lowered=lowered,
        verified=verified,
        golden=golden,
        observed=tuple(kept.observed) if kept else (),
    )


def _in_float(lowered: LoweredModel, scheme: str) -> dict[str, tuple[str, ...]]:
    """Return the recurrent layers that ONNX Runtime's tools leave in float, by the reason."""
    by_reason = {NO_KERNEL: ("GRU", "RNN"), **({} if scheme == "dynamic-int8" else {RECURRENT: ("LSTM",)})}
    named = {why: tuple(one.name for one in lowered.layers if one.op in kinds) for why, kinds in by_reason.items()}
    return {why: names for why, names in named.items() if names}


def _lowered(path: Path, spec: ArtifactSpec, facts: ArtifactFacts) -> LoweredModel:
    """Describe the artifact by what its own runtime says; who wrote it is not in the file."""
    outside = any(name.partition("::")[2].partition(".")[0] in _MATRIX_KERNELS for name in facts.operators)
    all_delegated = spec.runtime == "executorch" and facts.delegates > 0 and not outside
    return LoweredModel(
        path=path,
        runtime=spec.runtime,
        runtime_version="",
        bytecode_version=facts.bytecode_version,
        passes=(),
        operators=facts.operators,
        undelegated=facts.operators if spec.runtime == "executorch" else (),
        layers=(),
        delegated_macs=1.0 if all_delegated else None,
    )


# --- ONNX: the source itself, or the float file that PyTorch exported.


_EQUIVALENCE_SAMPLES = 8

AS_IT_IS = ("fp32", "pretrained")


def build_onnx(step: BuildStep, source: Path, fp32: Forward | None, *, keep: Sequence[str]) -> Artifact:
    """Quantize an ONNX file as the scheme says, or take it as it is, and verify it.

    The artifact is compared with the same file run by ONNX Runtime without fusions, which bring its int8 kernels.

    Args:
        step: what to build.
        source: a float file; for `pretrained` a quantized one.
        fp32: the float model; None if there is none to compare with.
        keep: names of nodes, or operators, that stay in float.

    Raises:
        UnsupportedError: a scheme that no ONNX file can have, or that is not this file's.
        EdgeqError: the error of a step.
    """
    from edgeq.quantize.onnx import FileSpec, quantize_file

    job, inputs, spec = step.job, step.inputs, step.spec
    if job.dynamic_batch:
        check_open_batch(source)
    step.folder.mkdir(parents=True)
    made = None
    if spec.scheme in AS_IT_IS:
        _check_state(source, spec.scheme)
    else:
        scratch = step.folder / "quantize"
        scratch.mkdir()
        file_spec = FileSpec(
            path=source,
            folder=scratch,
            inputs=inputs.model.inputs,
            observer=job.observer,
            keep_fp32=tuple(keep),
            calibration=inputs.calibration,
            reduce_range=spec.reduce_range,
            progress=step.progress,
            label=step.label,
        )
        try:
            made = quantize_file(spec.scheme, file_spec)
        except UnsupportedError:
            # torch's exporter states shapes between layers that ONNX Runtime's tools stumble over
            plain = _without_shapes(source, step.folder / "plain")
            if plain is None:
                raise
            shutil.rmtree(scratch)
            scratch.mkdir()
            made = quantize_file(spec.scheme, dataclasses.replace(file_spec, path=plain))
    lower_spec = LowerSpec(
        inputs=inputs.model.inputs,
        backend=spec.backend,
        folder=step.folder,
        progress=step.progress,
        label=step.label,
        file_format=spec.file_format,
    )
    lowered = lower_file(source, made.proto if made else None, lower_spec)
    graph = unfused(lowered.path, inputs.model.inputs)
    asked = [layer.name in keep or layer.op in keep for layer in lowered.layers]
    if spec.runtime == "openvino":
        lowered = openvino.lower_file(lowered, spec.scheme, lower_spec)
    kept = subset(step, lowered.macs) if step.emulated else None
    verify_this = dataclasses.replace(
        verify_spec(step, lowered),
        graph=graph,
        fp32=fp32,
        observe=kept,
        observe_sizes=kept.keep if kept else None,
    )
    verified, golden = verify(verify_this, step.runtime)
    return Artifact(
        quantized=QuantizedModel(
            scheme=spec.scheme,
            graph=None,
            quantized=made.quantized if made else (),
            kept_fp32=made.kept_fp32 if made else (),
            output_steps=(),
            in_float=_in_float(lowered, spec.scheme) if made else {},
        ),
        lowered=lowered,
        verified=verified,
        golden=golden,
        asked_fp32=tuple(layer.name for layer, is_asked in zip(lowered.layers, asked, strict=True) if is_asked),
        observed=tuple(kept.observed) if kept else (),
    )


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
        what = f"{source.name} has a fixed batch size, but --dynamic-batch needs a dynamic one"
        raise UnsupportedError(what, "export it again with dynamic_shapes, or omit --dynamic-batch")


def _check_state(source: Path, scheme: str) -> None:
    """Refuse a float file as `pretrained`, and a quantized one as fp32."""
    import onnx

    from edgeq.quantize.onnx import is_quantized

    found = is_quantized(onnx.load(str(source), load_external_data=False))
    if found != (scheme == "pretrained"):
        state, other = ("quantized already", "pretrained") if found else ("a float model", "fp32")
        raise UnsupportedError(f"{source.name} is {state}, not {scheme}", f"give --scheme {other}")


def check_equivalence(lowered: LoweredModel, fp32: Forward, inputs: Inputs) -> None:
    """Hold the float file that is to be quantized to PyTorch: what is quantized from another model is another model.

    Raises:
        VerificationError: they differ by more than float32 kernels do that sum in another order.
    """
    runs, sums = unfused(lowered.path, inputs.model.inputs), Comparison()
    seen = 0
    for batch in batches(inputs.samples, inputs.model.inputs):
        sums.add(fp32(batch), runs(batch))
        seen += batch.rows
        if seen >= _EQUIVALENCE_SAMPLES:
            break
    relative = sums.error_sum / sums.magnitude_sum if sums.magnitude_sum else float("nan")
    if not relative <= MAX_RELATIVE_FP32:
        what = f"the float ONNX file differs from PyTorch by {relative:.1e} of the mean magnitude over {seen} samples"
        fix = "package the model with --scheme fp32, and report its architecture to edgeq's developers"
        raise VerificationError(f"{what}; rounding explains at most {MAX_RELATIVE_FP32:.0e}", fix)


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
    path = copy or given
    try:
        return runtime.load(path, runtime=name, backend=backend, threads=threads)
    except Refused as err:
        raise unreadable(given, err.what.removeprefix(f"failed while loading {path.name}: ")) from err
    except EdgeqError as err:
        raise type(err)(f"{given}: {err.what}", err.fix) from err
