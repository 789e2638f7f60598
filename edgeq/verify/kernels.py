"""Input of the precision audit: kernel names of the runtime's own profile, matched to the layers' MACs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from edgeq.core.results.measured import KernelShare
from edgeq.core.results.model import Layer

Precision = Literal["int8", "half", "other"]

# XNNPACK names the operator type and, in brackets, layout and data types: "Convolution (NHWC, QC8) IGEMM #1"
_XNNPACK = re.compile(
    r"^(?:Convolution|Deconvolution|Fully Connected|Dynamic Fully Connected|Batch Matrix Multiply)\b[^(]*\(([^)]*)\)"
)

_NATIVE = re.compile(r"^native_call_(?:convolution|addmm|mm|bmm|linear|baddbmm)\b")

# QS8, QC8, QU8; QD8, QDU8 (hosts with AVX-VNNI) and QP8 quantize activations on the fly; P before Q or F: packed (SME)
_INT8_FIRST = re.compile(r"^(?:P?Q[SCU]|QDU?|QP)8$")

_LAYOUTS = frozenset({"NHWC", "NCHW", "NC", "ND"})

_TORCH = re.compile(
    r"^(?:quantized::(?:conv|linear)\w*(?<!pack)"
    # from the recurrent ones on, each does a whole block at once
    r"|aten::(?:_?convolution|addmm|mm|bmm|baddbmm|quantized_lstm|quantized_gru|mkldnn_rnn_layer|_native_multi_head_attention"
    r"|_transformer_encoder_layer_fwd|_scaled_dot_product_flash_attention_for_cpu))$"
)

# ONNX Runtime's operators after its fusions, and what it appends to the names of nodes that it moved or fused
_ORT_WORDS = re.compile(r"(?:_token_\d+|/.*)$")

_ONNX_INT8 = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)

_ONNX_FLOAT = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU", "RNN"}
)


def kernel_share(runtime: str, kernels: Sequence[str], layers: Sequence[Layer]) -> KernelShare:
    """Return the share of the MACs that ran in int8 kernels.

    Both sequences are in execution order, except ONNX Runtime's kernels, which are matched by node name. Where the
    lengths differ, the share is unknown. For an artifact with unknown layers, only a share of all or none can be
    determined.

    Args:
        runtime: `executorch`, `torchscript` or `onnx`.
        kernels: names as the runtime's profile gave them.
        layers: the lowered model's layers.
    """
    found = [kind for name in kernels if (kind := _precision(runtime, name)) is not None]
    if not layers and found and (all_int8 := _all_or_none(found, "int8")) is not None:
        return KernelShare(int8_macs=all_int8, half_macs=_all_or_none(found, "half"), kernels=tuple(kernels))
    total = sum(layer.macs for layer in layers)
    if total == 0 or len(found) != len(layers):
        why = f"the profile has {len(found)} convolutions and matrix products, the program {len(layers)}"
        return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
    if runtime == "onnx":
        matched = _by_node(kernels, layers)
        if matched is None:
            why = "the profile has quantized kernels that belong to no layer of the program"
            return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
        found = matched
    pairs = list(zip(layers, found, strict=True))
    return KernelShare(
        int8_macs=_share(pairs, "int8"),
        int8_linear_macs=_share([pair for pair in pairs if pair[0].is_linear], "int8"),
        half_macs=_share(pairs, "half"),
        kernels=tuple(kernels),
        precisions=tuple(found),
    )


def _by_node(kernels: Sequence[str], layers: Sequence[Layer]) -> list[Precision] | None:
    """Return in what ONNX Runtime multiplied each layer; None where a quantized kernel belongs to none of them.

    It runs branches in an order of its own, keeps a node's name when it quantizes it, and not when it fuses float ones.
    """
    quantized = [_ORT_WORDS.sub("", name.partition(" ")[2]) for name in kernels if _precision("onnx", name) == "int8"]
    if not set(quantized) <= {layer.name for layer in layers} or len(set(quantized)) != len(quantized):
        return None
    return ["int8" if layer.name in quantized else "other" for layer in layers]


def _all_or_none(found: Sequence[Precision], wanted: Precision) -> float | None:
    count = sum(kind == wanted for kind in found)
    return count / len(found) if count in (0, len(found)) else None


def _share(pairs: Sequence[tuple[Layer, Precision]], wanted: Precision) -> float | None:
    total = sum(layer.macs for layer, _ in pairs)
    return sum(layer.macs for layer, kind in pairs if kind == wanted) / total if total else None


def multiplies(runtime: str, name: str) -> bool:
    """Whether a kernel convolves or multiplies matrices, in any precision."""
    return _precision(runtime, name) is not None


def _precision(runtime: str, name: str) -> Precision | None:
    """Return in what a kernel multiplies; None where it multiplies no matrices."""
    if runtime == "torchscript":
        is_int8 = name.startswith(("quantized::", "aten::quantized_")) and "fp16" not in name
        return ("int8" if is_int8 else "other") if _TORCH.match(name) else None
    if runtime == "onnx":
        op = name.partition(" ")[0]
        return "int8" if op in _ONNX_INT8 else "other" if op in _ONNX_FLOAT else None
    if _NATIVE.match(name):
        return "other"
    match = _XNNPACK.match(name)
    if match is None:
        return None
    types = [part.strip() for part in match[1].split(",")]
    first = next((part for part in types if part not in _LAYOUTS), "")
    if _INT8_FIRST.match(first):
        return "int8"
    return "half" if first in ("F16", "PF16") else "other"
