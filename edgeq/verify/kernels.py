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

# what ONNX Runtime appends to the name of a node that it moved; behind a slash it says into what it fused one
_ORT_MOVED = re.compile(r"_token_\d+$")

# ONNX Runtime's operators after its fusions
_ONNX_INT8 = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)

_ONNX_FLOAT = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU", "RNN"}
    | {"MatMulNBits"}
)


# OpenVINO's operators that multiply matrices, after its fusions
_OPENVINO = re.compile(
    r"^(?:Convolution|Deconvolution|FullyConnected|MatMul|RNNCell|RNNSeq|LSTM\w+|GRU\w+|TensorIterator) (\S+) (\S+)"
)

# what it compiles from several operators, products among them
_OPENVINO_COMPILED = "Subgraph "

# what it appends to the name of a layer whose product it computes in integers, and scales afterwards
_SCALED = "/DequantizationMultiply"


# LiteRT's operators that multiply matrices, with the types of what they read. A transposed convolution reads its
# output's shape first; of int8 weights and float inputs, the kernel quantizes each row of the inputs as it runs.
_LITERT = re.compile(
    r"^(?:TRANSPOSE_CONV \(\w+, |(?:CONV_2D|DEPTHWISE_CONV_2D|CONV_3D|FULLY_CONNECTED|BATCH_MATMUL) \(\w+, )(\w+)"
)


def kernel_share(runtime: str, kernels: Sequence[str], layers: Sequence[Layer]) -> KernelShare:
    """Return the share of the MACs that ran in int8 kernels.

    Both sequences are in execution order, except kernels of ONNX Runtime and OpenVINO, which are matched by node name.
    Where the lengths differ, the share is unknown; OpenVINO may compute two layers in one kernel. For an artifact with
    unknown layers, only a share of all or none can be determined.

    Args:
        runtime: `executorch`, `torchscript`, `onnx`, `openvino` or `litert`; `coreml` and `vulkan` for their operators.
        kernels: names as the runtime's profile gave them.
        layers: the lowered model's layers.
    """
    found = [kind for name in kernels if (kind := _precision(runtime, name)) is not None]
    if runtime == "openvino" and not layers:
        why = "the layers of the program are not known"
        return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
    if not layers and found and (all_int8 := _all_or_none(found, "int8")) is not None:
        return KernelShare(int8_macs=all_int8, half_macs=_all_or_none(found, "half"), kernels=tuple(kernels))
    total = sum(layer.macs for layer in layers)
    by_name = runtime in ("onnx", "openvino")
    # ONNX Runtime computes a batch norm between convolutions in blocks of channels as another such convolution
    norms = sum(name.startswith("Conv ") and name.endswith("_nchwc") for name in kernels) if runtime == "onnx" else 0
    if total == 0 or (not 0 <= len(found) - len(layers) <= norms and runtime != "openvino"):
        why = f"the profile has {len(found)} convolutions and matrix products, the program {len(layers)}"
        return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
    if by_name:
        matched = (_by_node if runtime == "onnx" else _by_origin)(kernels, layers)
        if matched is None:
            why = "the profile has quantized kernels that belong to no layer of the program"
            return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
        found = matched
    of_layers = () if by_name else tuple(name for name in kernels if _precision(runtime, name) is not None)
    return _shares(layers, found, kernels, of_layers)


def npu_share(kernels: Sequence[str], layers: Sequence[Layer]) -> KernelShare:
    """Return the share of the MACs that an Ethos-U computes in int8.

    Arm's passes take layers apart and join others, so that the products of a TOSA program are not the layers of the
    graph, one by one. Where each of them takes int8 values, what the NPU took is in int8.

    Args:
        kernels: of each product its operator and the types of its factors: "CONV2D INT8 INT8".
        layers: the lowered model's layers.
    """
    factors = [tuple(name.split(" ")[1:3]) for name in kernels]
    other = [name for name, types in zip(kernels, factors, strict=True) if types != ("INT8", "INT8")]
    total = sum(layer.macs for layer in layers)
    if other or not total:
        why = f"the NPU multiplies other values too: {other[0]}" if other else "the layers of the program are not known"
        return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
    precisions: list[Precision] = ["int8" if layer.delegated else "other" for layer in layers]
    return _shares(layers, precisions, kernels)


def _shares(
    layers: Sequence[Layer], precisions: Sequence[Precision], kernels: Sequence[str], of_layers: tuple[str, ...] = ()
) -> KernelShare:
    """Return the shares of the MACs by the precision of each layer."""
    pairs = list(zip(layers, precisions, strict=True))
    return KernelShare(
        int8_macs=_share(pairs, "int8"),
        int8_linear_macs=_share([pair for pair in pairs if pair[0].is_linear], "int8"),
        half_macs=_share(pairs, "half"),
        kernels=tuple(kernels),
        precisions=tuple(precisions),
        of_layers=of_layers,
    )


def _by_node(kernels: Sequence[str], layers: Sequence[Layer]) -> list[Precision] | None:
    """Return in what ONNX Runtime multiplied each layer; None where a quantized kernel belongs to none of them.

    It runs branches in an order of its own, keeps a node's name when it quantizes it, and not when it fuses float ones.
    """
    known = {layer.name for layer in layers}
    quantized: set[str] = set()
    for kernel in kernels:
        if _precision("onnx", kernel) != "int8":
            continue
        name = kernel.partition(" ")[2]
        while name and name not in known:  # names of files' nodes have slashes of their own
            plain = _ORT_MOVED.sub("", name)
            name = plain if plain != name else name.rpartition("/")[0]
        if name not in known - quantized:
            return None
        quantized.add(name)
    return ["int8" if layer.name in quantized else "other" for layer in layers]


def _by_origin(kernels: Sequence[str], layers: Sequence[Layer]) -> list[Precision] | None:
    """Return in what OpenVINO multiplied each layer; None where a quantized kernel belongs to none of them.

    Its kernels have the names of all operators that were fused into them, with what it appends after a slash. A layer
    that no quantized kernel names, or a float one as well, is float.
    """
    known = {layer.name for layer in layers}
    int8: set[str] = set()
    floats: set[str] = set()
    for kernel in kernels:
        kind = _precision("openvino", kernel)
        parts = kernel.split(" ", 3)
        if kind is None and not kernel.startswith(_OPENVINO_COMPILED):
            continue
        names = set(parts[3].split(",")) if len(parts) > 3 else set()
        if kind is None:
            # the type of its input says nothing of the products inside: rounding may come first
            own = names & known
            scaled = {name for name in own if name + _SCALED in names}
            int8 |= scaled
            floats |= own - scaled
            continue
        own = {name.partition("/")[0] for name in names} & known
        if kind == "int8" and not own:
            return None
        (int8 if kind == "int8" else floats).update(own)
    return ["int8" if layer.name in int8 - floats else "other" for layer in layers]


def _reads_int8(primitive: str, precision: str) -> bool:
    """Whether an OpenVINO kernel is one for int8 inputs.

    Either alone is no proof: a float kernel with int8 weights is stated to run in i8.
    """
    return primitive.lower().endswith("_i8") and precision in ("i8", "u8")


def _all_or_none(found: Sequence[Precision], wanted: Precision) -> float | None:
    count = sum(kind == wanted for kind in found)
    return count / len(found) if count in (0, len(found)) else None


def _share(pairs: Sequence[tuple[Layer, Precision]], wanted: Precision) -> float | None:
    total = sum(layer.macs for layer, _ in pairs)
    return sum(layer.macs for layer, kind in pairs if kind == wanted) / total if total else None


def _precision(runtime: str, name: str) -> Precision | None:
    """Return in what a kernel multiplies; None where it multiplies no matrices."""
    if runtime in ("coreml", "vulkan"):  # "conv int8", of a delegate's own program
        return "int8" if name.endswith(" int8") else "other"
    if runtime == "torchscript":
        is_int8 = name.startswith(("quantized::", "aten::quantized_")) and "fp16" not in name
        return ("int8" if is_int8 else "other") if _TORCH.match(name) else None
    if runtime == "onnx":
        op = name.partition(" ")[0]
        return "int8" if op in _ONNX_INT8 else "other" if op in _ONNX_FLOAT else None
    if runtime == "openvino":
        kernel = _OPENVINO.match(name)
        return None if kernel is None else "int8" if _reads_int8(kernel[1], kernel[2]) else "other"
    if runtime == "litert":
        product = _LITERT.match(name)
        return None if product is None else "int8" if product[1] == "int8" else "other"
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
