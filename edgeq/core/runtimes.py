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

# the schemes that store tables of embeddings in int8, the first that a target has before the others
INT8_TABLES: tuple[str, ...] = ("dynamic-int8", "weight-only-int8")

# where static schemes leave these tables in float32
FLOAT_TABLES: frozenset[BackendName] = frozenset({"xnnpack", "qnnpack", "x86", "fbgemm", "ort", "openvino"})

# why no scheme stores these tables in 4 bits (torch 2.15, ExecuTorch 1.5, ONNX Runtime 1.31, OpenVINO 2026.4)
NO_4_BIT_TABLES: dict[RuntimeName, str] = {
    "torchscript": "PyTorch does not load its own archives of 4-bit rows",
    "executorch": "it has a kernel, embedding_4bit, but no scheme here has integer weights of 4 bits",
    "onnx": "it has a kernel, GatherBlockQuantized, but no scheme here has integer weights of 4 bits",
    "openvino": "it looks up int4 rows, but no scheme here has integer weights of 4 bits",
    "litert": "no scheme here has integer weights of 4 bits",
}


def has_int8_recurrent(backend: str, kind: str) -> bool:
    """Whether a backend's runtime has recurrent layers of a kind (LSTM, GRU or RNN) in int8."""
    runtime = next(name for name, backends in BACKENDS.items() if backend in backends)
    return kind in INT8_RECURRENT.get(runtime, ())
