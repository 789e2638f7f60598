"""Lowering: from a quantized graph to an artifact on disk; a module for each runtime."""

from __future__ import annotations

from collections.abc import Callable

from edgeq.core.results.model import LoweredModel, QuantizedModel
from edgeq.lower import cuda, executorch, litert, onnx, openvino, torchscript
from edgeq.lower.spec import LowerSpec

LOWERINGS: dict[str, Callable[[QuantizedModel, LowerSpec], LoweredModel]] = {
    "cuda": cuda.lower,
    "executorch": executorch.lower,
    "litert": litert.lower,
    "onnx": onnx.lower,
    "openvino": openvino.lower,
    "torchscript": torchscript.lower,
}


def lower(runtime: str, quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Lower to `runtime`.

    Raises:
        UnsupportedError: the runtime or its delegate cannot express the model.
    """
    return LOWERINGS[runtime](quantized, spec)
