"""FX graph mode quantization for TorchScript's engines: QNNPACK on ARM, x86 and FBGEMM on hosts."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError, first_line
from edgeq.quantize.calibrate import calibrate
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.names import matched_names
from edgeq.quantize.spec import QuantizeSpec
from edgeq.scheme import ObserverName


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Set the process's quantized engine for a step, and restore it.

    Raises:
        UnsupportedError: this torch was built without the engine.
    """
    import torch

    supported = torch.backends.quantized.supported_engines
    if name not in supported:
        what = f"this torch has no quantized engine {name!r}, only {', '.join(supported)}"
        raise UnsupportedError(what, "run on a host whose torch has it")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def fp32(spec: QuantizeSpec) -> QuantizedModel:
    """Leave the model as it is; lowering folds conv-bn."""
    module = spec.model.model.module() if spec.model.kind == "exported" else spec.model.model
    return QuantizedModel(scheme="fp32", graph=module, exported=None, quantized=(), kept_fp32=(), output_steps=(None,))


def static_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Fuse, calibrate and convert by FX.

    Raises:
        UnsupportedError: FX cannot trace the model (names module and line), or nothing was quantized.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    from torch.ao.quantization.quantize_fx import convert_fx

    if spec.model.kind == "exported":
        what = "an exported program cannot be quantized by FX, which fuses modules"
        raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch target")
    with engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
            prepared = _prepare(spec)
            calibrate(prepared, spec.calibration, spec.inputs, task)
        converted = convert_fx(prepared)
    quantized, kept = _split_layers(converted)
    if not quantized:
        what = "static-int8 quantized nothing: the model has no convolution or linear layer left for it"
        raise UnsupportedError(what, "use --scheme fp32, or take --keep-fp32 back")
    return QuantizedModel(
        scheme="static-int8",
        graph=converted,
        exported=None,
        quantized=quantized,
        kept_fp32=kept,
        output_steps=_output_steps(converted),
    )


def _prepare(spec: QuantizeSpec) -> Any:
    from torch.ao.quantization.quantize_fx import prepare_fx

    mapping = _qconfig_mapping(spec.backend, spec.observer)
    modules = {name: type(part).__name__ for name, part in spec.model.model.named_modules()}
    for name in sorted(matched_names(spec.keep_fp32, modules)):
        mapping.set_module_name(name, None)
    try:
        return prepare_fx(spec.model.model, mapping, example_tensors(spec.inputs))
    except Exception as err:  # FX's tracer raises its own and Python's errors from inside the user's forward
        what = f"FX cannot trace the model{_where(err)}: {first_line(err)}"
        fix = "make that line traceable, leave the module in float (--keep-fp32), or use an ExecuTorch target"
        raise UnsupportedError(what, fix) from err


def _qconfig_mapping(backend: str, observer: ObserverName) -> Any:
    """Return the engine's own mapping, with the observer of activations exchanged."""
    from torch.ao.quantization import HistogramObserver, MinMaxObserver, QConfig, get_default_qconfig_mapping

    from edgeq.quantize.observers import activation_observer

    mapping = get_default_qconfig_mapping(backend)
    if observer == "histogram":
        return mapping
    chosen = activation_observer(observer, HistogramObserver, MinMaxObserver)

    def exchanged(config: Any) -> Any:
        if config is None or not isinstance(config.activation(), HistogramObserver):
            return config
        reduced = config.activation().reduce_range
        return QConfig(activation=chosen.with_args(reduce_range=reduced), weight=config.weight)

    mapping.set_global(exchanged(mapping.global_qconfig))
    for kind, config in list(mapping.object_type_qconfigs.items()):
        mapping.set_object_type(kind, exchanged(config))
    return mapping


def _where(err: BaseException) -> str:
    """Return " in module at file.py:12" of the innermost frame outside torch."""
    frames = [
        frame
        for frame in traceback.extract_tb(err.__traceback__)
        if "/torch/" not in frame.filename and "/edgeq/" not in frame.filename and not frame.filename.startswith("<")
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _split_layers(converted: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of convolutions and linears that compute in int8, and of those in float."""
    import torch

    quantized: list[str] = []
    kept: list[str] = []
    floats = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    for name, part in converted.named_modules():
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            if hasattr(part, "weight"):
                quantized.append(name)
        elif isinstance(part, floats):
            kept.append(name)
    return tuple(quantized), tuple(kept)


def _output_steps(converted: Any) -> tuple[float | None, ...]:
    """Return the scale of each output that a dequantize node gives straight from a quantized operator."""
    import torch

    (output,) = (node for node in converted.graph.nodes if node.op == "output")
    return tuple(_step(converted, leaf) for leaf in torch.utils._pytree.tree_leaves(output.args))


def _step(converted: Any, leaf: Any) -> float | None:
    source = leaf.args[0] if getattr(leaf, "target", None) == "dequantize" else None
    while source is not None and source.op in ("call_function", "call_method") and len(source.args) < 3:
        source = source.args[0] if source.args and hasattr(source.args[0], "op") else None  # flatten and the like
    if source is None or source.op != "call_module":
        return None
    scale = getattr(converted.get_submodule(source.target), "scale", None)
    return float(scale) if scale is not None else None
