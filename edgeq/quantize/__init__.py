"""Fusion and quantization: a table of schemes, a module for each method.

Importing this package loads no torch: the methods' modules are imported when one is called, so that `--dry-run` and the
documentation can read the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import QuantizedModel, RankedLayers
from edgeq.core.samples import varying_sizes
from edgeq.core.schemes import NEEDS_TRAINING

if TYPE_CHECKING:
    from edgeq.quantize.spec import QuantizeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a scheme is applied for a runtime.

    Attributes:
        function: `module:function`, imported when it is called; None where the exported float file is quantized, by
            the scheme's row of FILE_METHODS.
        description: one line of text; `{backend}` stands for the target's backend.
    """

    function: str | None
    description: str


# by (runtime, scheme): methods that start from a PyTorch model
METHODS: dict[tuple[str, str], Method] = {
    ("executorch", "fp32"): Method(
        function="edgeq.quantize.pt2e:fp32",
        description="weights and arithmetic in float32",
    ),
    ("executorch", "fp16"): Method(
        function="edgeq.quantize.half:true_half",
        description="weights and arithmetic in half precision",
    ),
    ("executorch", "static-int8"): Method(
        function="edgeq.quantize.pt2e:static_int8",
        description="PT2E, the XNNPACK quantizer; for Ethos-U Arm's quantizer",
    ),
    ("executorch", "static-a16w8"): Method(
        function="edgeq.quantize.pt2e:static_a16w8",
        description="PT2E, Arm's quantizer for Ethos-U, int16 activations and int8 weights",
    ),
    ("executorch", "dynamic-int8"): Method(
        function="edgeq.quantize.pt2e:dynamic_int8",
        description="PT2E, the XNNPACK quantizer, activations quantized at run time",
    ),
    ("executorch", "8da4w"): Method(
        function="edgeq.quantize.pt2e:dynamic_a8w4",
        description="linear weights in int4 by groups, activations quantized at run time; all else as in dynamic-int8",
    ),
    ("executorch", "weight-only-int8"): Method(
        function="edgeq.quantize.rounded:weight_only_executorch",
        description="linear and embedding weights stored in int8, arithmetic in float32; Core ML: all weights, in half",
    ),
    ("executorch", "weight-only-palette4"): Method(
        function="edgeq.quantize.rounded:palette4",
        description="Core ML: weights stored as indices of 4 bits into a palette of 16 values, arithmetic in half",
    ),
    ("executorch", "qat-int8"): Method(
        function="edgeq.quantize.pt2e:qat_int8",
        description="PT2E, the XNNPACK quantizer",
    ),
    ("onnx", "fp32"): Method(
        function="edgeq.quantize.pt2e:fp32",
        description="weights and arithmetic in float32",
    ),
    ("onnx", "fp16"): Method(
        function="edgeq.quantize.half:true_half",
        description="weights and arithmetic in half precision",
    ),
    ("onnx", "weight-only-int4"): Method(
        function="edgeq.quantize.rounded:weight_only_int4",
        description="linear weights stored in int4 by groups (MatMulNBits), all else and arithmetic in float32",
    ),
    ("onnx", "static-int8"): Method(
        function="edgeq.quantize.pt2e:static_int8",
        description="PT2E, written as QuantizeLinear and DequantizeLinear",
    ),
    ("onnx", "qat-int8"): Method(
        function="edgeq.quantize.pt2e:qat_int8",
        description="PT2E, written as QuantizeLinear and DequantizeLinear",
    ),
    ("onnx", "dynamic-int8"): Method(
        function=None,
        description="the exported float file by ONNX Runtime's quantize_dynamic, activations quantized at run time",
    ),
    ("onnx", "static-a16w8"): Method(
        function=None,
        description="the exported float file by ONNX Runtime's tools for QNN, uint16 activations and int8 weights",
    ),
    ("openvino", "fp32"): Method(
        function="edgeq.quantize.pt2e:fp32",
        description="weights and arithmetic in float32",
    ),
    ("openvino", "fp16"): Method(
        function="edgeq.quantize.rounded:fp16",
        description="weights stored in half precision, arithmetic in float32",
    ),
    ("openvino", "weight-only-int4"): Method(
        function="edgeq.quantize.rounded:weight_only_int4",
        description="linear weights stored in int4 by groups, others in int8, arithmetic in float32",
    ),
    ("openvino", "static-int8"): Method(
        function="edgeq.quantize.pt2e:static_int8",
        description="PT2E, written as FakeQuantize with int8 weights",
    ),
    ("openvino", "qat-int8"): Method(
        function="edgeq.quantize.pt2e:qat_int8",
        description="PT2E, written as FakeQuantize with int8 weights",
    ),
    ("openvino", "mixed-int8"): Method(
        function="edgeq.quantize.mixed:pt2e_mixed",
        description="PT2E, written as FakeQuantize with int8 weights, some layers in float",
    ),
    ("openvino", "weight-only-int8"): Method(
        function="edgeq.quantize.rounded:weight_only_int8",
        description="weights stored in int8, arithmetic in float32",
    ),
    ("litert", "fp32"): Method(
        function="edgeq.quantize.pt2e:fp32",
        description="weights and arithmetic in float32",
    ),
    ("litert", "fp16"): Method(
        function="edgeq.quantize.rounded:fp16",
        description="weights stored in half precision, arithmetic in float32",
    ),
    ("litert", "static-int8"): Method(
        function="edgeq.quantize.pt2e:static_int8",
        description="PT2E, written as integer operators",
    ),
    ("litert", "dynamic-int8"): Method(
        function="edgeq.quantize.pt2e:dynamic_int8",
        description="PT2E, linear layers with int8 weights, activations quantized at run time",
    ),
    ("litert", "weight-only-int8"): Method(
        function="edgeq.quantize.rounded:weight_only_int8",
        description="weights stored in int8, arithmetic in float32",
    ),
    ("executorch", "mixed-int8"): Method(
        function="edgeq.quantize.mixed:pt2e_mixed",
        description="PT2E, the XNNPACK quantizer, some layers in float",
    ),
    ("torchscript", "fp32"): Method(
        function="edgeq.quantize.fx:fp32",
        description="weights and arithmetic in float32",
    ),
    ("torchscript", "fp16"): Method(
        function="edgeq.quantize.weight_only:stored_half",
        description="weights stored in half precision, arithmetic in float32",
    ),
    ("torchscript", "static-int8"): Method(
        function="edgeq.quantize.fx:static_int8",
        description="FX graph mode, the {backend} engine; eager mode where the model has QuantStub",
    ),
    ("torchscript", "qat-int8"): Method(
        function="edgeq.quantize.fx:qat_int8",
        description="FX graph mode, the {backend} engine; eager mode where the model has QuantStub",
    ),
    ("torchscript", "mixed-int8"): Method(
        function="edgeq.quantize.mixed:fx_mixed",
        description="FX graph mode, the {backend} engine, some layers in float",
    ),
    ("torchscript", "dynamic-int8"): Method(
        function="edgeq.quantize.dynamic:dynamic_int8",
        description="linear, LSTM and GRU by the {backend} engine, activations quantized at run time",
    ),
    ("torchscript", "weight-only-int8"): Method(
        function="edgeq.quantize.weight_only:weight_only_int8",
        description="weights stored in int8, arithmetic in float32",
    ),
    ("torchscript", "pretrained"): Method(
        function="edgeq.quantize.dynamic:pretrained",
        description="used as is, packed for the {backend} engine",
    ),
    ("cuda", "fp16"): Method(
        function="edgeq.quantize.half:fp16",
        description="float16, with float32 for layers that overflow or lose too much accuracy on the calibration data",
    ),
    ("cuda", "bf16"): Method(
        function="edgeq.quantize.half:bf16",
        description="bfloat16, with float32 for layers that lose too much accuracy on the calibration data",
    ),
    ("cuda", "storage-fp16"): Method(
        function="edgeq.quantize.half:storage_fp16",
        description="weights stored in float16, arithmetic in float32",
    ),
    ("cuda", "fp32"): Method(
        function="edgeq.quantize.half:fp32",
        description="weights and arithmetic in float32",
    ),
}

# by scheme: methods that start from an ONNX file, the user's own or one exported from the float model
FILE_METHODS: dict[str, Method] = {
    "fp32": Method(function=None, description="used as is"),
    "pretrained": Method(function=None, description="used as is"),
    "static-int8": Method(
        function="edgeq.quantize.onnx:static_int8",
        description="ONNX Runtime's quantize_static, written as QuantizeLinear and DequantizeLinear",
    ),
    "static-a16w8": Method(
        function="edgeq.quantize.onnx:static_a16w8",
        description="ONNX Runtime's get_qnn_qdq_config, uint16 activations and int8 weights",
    ),
    "dynamic-int8": Method(
        function="edgeq.quantize.onnx:dynamic_int8",
        description="ONNX Runtime's quantize_dynamic, activations quantized at run time",
    ),
    "fp16": Method(
        function="edgeq.quantize.onnx:fp16",
        description="ONNX Runtime's convert_float_to_float16, inputs and outputs in float32",
    ),
}

# by runtime: what ranks the layers of a model by the error that quantizing each alone costs
RANKINGS: dict[str, str] = {
    "executorch": "edgeq.quantize.mixed:pt2e_sensitivity",
    "openvino": "edgeq.quantize.mixed:pt2e_sensitivity",
    "torchscript": "edgeq.quantize.mixed:fx_sensitivity",
}


def load_function(name: str) -> Callable[..., Any]:
    """Import and return a function that a table names as `module:function`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def find_method(runtime: str, scheme: str) -> Method:
    """Return the method of a scheme for PyTorch models on this runtime.

    Raises:
        UnsupportedError: the runtime has no method for the scheme.
    """
    method = METHODS.get((runtime, scheme))
    if method is None:
        can = ", ".join(name for kind, name in METHODS if kind == runtime)
        raise UnsupportedError(f"{runtime} does not support the scheme {scheme}", f"{runtime} supports: {can}")
    return method


# what OpenVINO reads of them: the file as it is, or with QuantizeLinear and DequantizeLinear
_FILE_SCHEMES = {"openvino": ("fp32", "static-int8")}


def file_schemes(runtime: str) -> tuple[str, ...]:
    """Return the schemes that an ONNX file can get for a runtime."""
    return _FILE_SCHEMES.get(runtime, tuple(FILE_METHODS))


def find_file_method(scheme: str, file_name: str, runtime: str = "onnx") -> Method:
    """Return the method of a scheme for ONNX files.

    Raises:
        UnsupportedError: only a PyTorch model can get the scheme.
    """
    known = file_schemes(runtime)
    if scheme not in known:
        on = "" if runtime == "onnx" else f" for {runtime}"
        what = f"{scheme}{on} needs a PyTorch model, but {file_name} is an ONNX file"
        as_is = " (the file as is)"
        can = ", ".join(f"{name}{as_is if name in ('fp32', 'pretrained') else ''}" for name in known)
        raise UnsupportedError(what, f"choose one of: {can}")
    return FILE_METHODS[scheme]


def exchanges_modules(runtime: str, scheme: str) -> bool:
    """Whether a scheme's method exchanges modules; exported and scripted models have none until they are found."""
    return runtime == "torchscript" or (runtime, scheme) == ("executorch", "weight-only-int8")


def quantize(runtime: str, scheme: str, spec: QuantizeSpec) -> QuantizedModel:
    """Quantize a PyTorch model by the scheme's method for this runtime.

    Raises:
        UnsupportedError: the runtime has no such scheme, or nothing could be quantized.
    """
    from edgeq.quantize import dynamic  # loads torch
    from edgeq.quantize.capture import steps_that_vary

    method = find_method(runtime, scheme)
    if method.function is None:
        raise ValueError(f"{runtime} {scheme} quantizes the exported float file: call quantize_file")
    if scheme in NEEDS_TRAINING and varying_sizes(spec.inputs):
        what = f"{scheme} trains on batches of samples, which need equal sizes, but sizes of the inputs vary"
        raise UnsupportedError(what, "use --scheme static-int8 or mixed-int8, or give fixed sizes in --input")
    if runtime == "executorch" and (line := steps_that_vary(spec.captured)):
        what = f"the recurrent layer{line} takes a number of steps that varies, and ExecuTorch unrolls its steps"
        raise UnsupportedError(what, "use an ONNX, OpenVINO or TorchScript target, or give a fixed size in --input")
    if scheme != "pretrained" and spec.model.kind == "module" and dynamic.is_quantized(spec.model.model):
        what = f"the model is already quantized, but {scheme} needs a float model"
        raise UnsupportedError(what, "use it as is with --scheme pretrained, on a TorchScript target")
    quantized: QuantizedModel = load_function(method.function)(spec)
    return quantized


def rank_layers(runtime: str, spec: QuantizeSpec) -> RankedLayers:
    """Return the layers by how much error each costs, for a runtime of RANKINGS."""
    ranking: RankedLayers = load_function(RANKINGS[runtime])(spec)
    return ranking
