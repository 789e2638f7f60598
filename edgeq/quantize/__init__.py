"""Fusion and quantization: a table of schemes, a module for each method."""

from __future__ import annotations

from collections.abc import Callable

from edgeq.artifacts import QuantizedModel, Sensitivity
from edgeq.errors import UnsupportedError
from edgeq.quantize import dynamic, fx, half, mixed, pretrained, pt2e, weights
from edgeq.quantize.spec import QuantizeSpec

METHODS: dict[tuple[str, str], Callable[[QuantizeSpec], QuantizedModel]] = {
    ("executorch", "fp32"): pt2e.fp32,
    ("executorch", "fp16"): half.true_half,
    ("executorch", "static-int8"): pt2e.static_int8,
    ("executorch", "dynamic-int8"): pt2e.dynamic_int8,
    ("executorch", "weight-only-int8"): weights.weight_only_linear_int8,
    ("executorch", "qat-int8"): pt2e.qat_int8,
    ("onnx", "fp32"): pt2e.fp32,
    ("onnx", "fp16"): half.true_half,
    ("onnx", "static-int8"): pt2e.static_int8,
    ("onnx", "qat-int8"): pt2e.qat_int8,
    ("executorch", "mixed-int8"): mixed.pt2e_mixed,
    ("torchscript", "fp32"): fx.fp32,
    ("torchscript", "fp16"): weights.stored_half,
    ("torchscript", "static-int8"): fx.static_int8,
    ("torchscript", "qat-int8"): fx.qat_int8,
    ("torchscript", "mixed-int8"): mixed.fx_mixed,
    ("torchscript", "dynamic-int8"): dynamic.dynamic_int8,
    ("torchscript", "weight-only-int8"): weights.weight_only_int8,
    ("torchscript", "pretrained"): pretrained.pretrained,
}

RANKINGS: dict[str, Callable[[QuantizeSpec], tuple[Sensitivity, ...]]] = {
    "executorch": mixed.pt2e_sensitivity,
    "torchscript": mixed.fx_sensitivity,
}


def quantize(runtime: str, scheme: str, spec: QuantizeSpec) -> QuantizedModel:
    """Quantize by the scheme's method for this runtime.

    Raises:
        UnsupportedError: the runtime has no such scheme, or nothing could be quantized.
    """
    method = METHODS.get((runtime, scheme))
    if method is None:
        can = ", ".join(name for kind, name in METHODS if kind == runtime)
        raise UnsupportedError(f"{runtime} cannot run scheme {scheme}", f"it can: {can}")
    if scheme != "pretrained" and spec.model.kind == "module" and pretrained.is_quantized(spec.model.model):
        what = f"the model is quantized already, and {scheme} starts from a float one"
        raise UnsupportedError(what, "take it as it is with --scheme pretrained, on a TorchScript target")
    return method(spec)
