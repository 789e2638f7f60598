"""The runtimes and their backends, by name."""

from __future__ import annotations

from typing import Literal

RuntimeName = Literal["executorch", "torchscript", "onnx", "openvino", "litert", "cuda"]

BackendName = Literal[
    "xnnpack", "coreml", "qnnpack", "x86", "fbgemm", "ort", "qnn-htp", "openvino", "litert", "cuda", "cuda-torchscript"
]

BACKENDS: dict[RuntimeName, tuple[BackendName, ...]] = {
    "executorch": ("xnnpack", "coreml"),
    "torchscript": ("qnnpack", "x86", "fbgemm"),
    "onnx": ("ort", "qnn-htp"),
    "openvino": ("openvino",),
    "litert": ("litert",),
    "cuda": ("cuda", "cuda-torchscript"),
}
