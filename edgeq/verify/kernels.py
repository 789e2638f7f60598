"""The precision audit's evidence: kernel names of the runtime's own profile, matched to the layers' MACs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeq.artifacts import KernelShare, Layer

# XNNPACK names the operator type and, in brackets, layout and data types: "Convolution (NHWC, QC8) IGEMM #1"
_XNNPACK = re.compile(
    r"^(?:Convolution|Deconvolution|Fully Connected|Dynamic Fully Connected|Batch Matrix Multiply)\b[^(]*\(([^)]*)\)"
)
_NATIVE = re.compile(r"^native_call_(?:convolution|addmm|mm|bmm|linear|baddbmm)\b")
_INT8_FIRST = re.compile(r"^Q[A-Z]8")  # QS8, QC8, QU8; QD8 quantizes activations on the fly
_LAYOUTS = frozenset({"NHWC", "NCHW", "NC", "ND"})
_TORCH = re.compile(
    r"^(?:quantized::(?:conv|linear)\w*(?<!pack)"
    # the last four do a whole block at once
    r"|aten::(?:_?convolution|addmm|mm|bmm|baddbmm|mkldnn_rnn_layer|_native_multi_head_attention"
    r"|_transformer_encoder_layer_fwd|_scaled_dot_product_flash_attention_for_cpu))$"
)


def kernel_share(runtime: str, kernels: Sequence[str], layers: Sequence[Layer]) -> KernelShare:
    """Return which share of the MACs ran in int8 kernels.

    Both sequences are in the order of execution; where their lengths differ nothing is claimed. Of an artifact
    whose layers are not known, only all and none can be told.

    Args:
        runtime: `executorch` or `torchscript`.
        kernels: names as the runtime's profile gave them.
        layers: the lowered model's layers.
    """
    flags = [flag for name in kernels if (flag := _is_int8(runtime, name)) is not None]
    if not layers and flags and len(set(flags)) == 1:
        return KernelShare(int8_macs=float(flags[0]), kernels=tuple(kernels))
    total = sum(layer.macs for layer in layers)
    if total == 0 or len(flags) != len(layers):
        why = f"the profile has {len(flags)} convolutions and matrix products, the program {len(layers)}"
        return KernelShare(int8_macs=None, kernels=tuple(kernels), why_unmatched=why)
    int8 = sum(layer.macs for layer, flag in zip(layers, flags, strict=True) if flag)
    return KernelShare(int8_macs=int8 / total, kernels=tuple(kernels), int8_layers=tuple(flags))


def multiplies(runtime: str, name: str) -> bool:
    """Whether a kernel convolves or multiplies matrices, in any precision."""
    return _is_int8(runtime, name) is not None


def _is_int8(runtime: str, name: str) -> bool | None:
    """Return whether a kernel multiplies int8 by int8; None where it multiplies no matrices."""
    if runtime == "torchscript":
        return name.startswith("quantized::") and "fp16" not in name if _TORCH.match(name) else None
    if _NATIVE.match(name):
        return False
    match = _XNNPACK.match(name)
    if match is None:
        return None
    types = [part.strip() for part in match[1].split(",")]
    first = next((part for part in types if part not in _LAYOUTS), "")
    return bool(_INT8_FIRST.match(first))
