"""The runtimes and their backends, by name."""

from __future__ import annotations

from typing import Literal

RuntimeName = Literal["executorch", "torchscript", "onnx", "openvino", "cuda"]

BackendName = Literal[
    "xnnpack", "coreml", "vulkan", "qnnpack", "x86", "fbgemm", "ort", "qnn-htp", "openvino", "cuda", "cuda-torchscript"
]

BACKENDS: dict[RuntimeName, tuple[BackendName, ...]] = {
    "executorch": ("xnnpack", "coreml", "vulkan"),
    "torchscript": ("qnnpack", "x86", "fbgemm"),
    "onnx": ("ort", "qnn-htp"),
    "openvino": ("openvino",),
    "cuda": ("cuda", "cuda-torchscript"),
}
