"""The runtimes and their backends, by name."""

from __future__ import annotations

from typing import Literal

RuntimeName = Literal["executorch", "torchscript", "onnx", "openvino", "litert", "cuda"]

BackendName = Literal[
    "xnnpack",
    "coreml",
    "vulkan",
    "ethos-u55",
    "ethos-u85",
    "qnnpack",
    "x86",
    "fbgemm",
    "ort",
    "qnn-htp",
    "openvino",
    "litert",
    "cuda",
    "cuda-torchscript",
]

# Arm's NPUs, whose artifacts run on their boards only, and here as what the reference model of TOSA computes
ETHOS_U: tuple[BackendName, ...] = ("ethos-u55", "ethos-u85")

BACKENDS: dict[RuntimeName, tuple[BackendName, ...]] = {
    "executorch": ("xnnpack", "coreml", "vulkan", *ETHOS_U),
    "torchscript": ("qnnpack", "x86", "fbgemm"),
    "onnx": ("ort", "qnn-htp"),
    "openvino": ("openvino",),
    "litert": ("litert",),
    "cuda": ("cuda", "cuda-torchscript"),
}

# the recurrent layers that dynamic-int8 computes in int8, and on OpenVINO weight-only-int8 stores
INT8_RECURRENT: dict[str, tuple[str, ...]] = {
    "torchscript": ("LSTM", "GRU"),
    "executorch": ("LSTM", "GRU", "RNN"),
    "onnx": ("LSTM", "RNN"),
    "openvino": ("LSTM", "GRU", "RNN"),
    "litert": ("LSTM", "GRU"),
}


def has_int8_recurrent(backend: str, kind: str) -> bool:
    """Whether a backend's runtime has recurrent layers of a kind (LSTM, GRU or RNN) in int8."""
    runtime = next(name for name, backends in BACKENDS.items() if backend in backends)
    return kind in INT8_RECURRENT.get(runtime, ())
