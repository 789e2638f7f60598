"""Schemes that only change how weights are stored; the arithmetic stays float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError
from edgeq.quantize.names import inside, matched_names
from edgeq.quantize.result import float_copy, quantized_model, type_names
from edgeq.quantize.spec import QuantizeSpec

_ALL = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding", "LSTM", "GRU")


def weight_only_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Store the layers in int8, a scale for each output or row, for TorchScript.

    Raises:
        UnsupportedError: an exported program, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "weight-only-int8", _ALL, bits=8)


def weight_only_linear_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Store linear layers and embeddings in int8, for XNNPACK, which takes no other weights that are no constants.

    Raises:
        UnsupportedError: an exported program, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "weight-only-int8", ("Linear", "Embedding"), bits=8)


def stored_half(spec: QuantizeSpec) -> QuantizedModel:
    """Store the layers in half, for TorchScript's CPU runtimes, which have no half kernels.

    Raises:
        UnsupportedError: an exported program, a weight beyond what half holds, or a model without such layers.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _stored(spec, "fp16", _ALL, bits=16)


def _stored(spec: QuantizeSpec, scheme: str, kinds: Sequence[str], *, bits: int) -> QuantizedModel:
    from edgeq.quantize.attention import open_attention
    from edgeq.quantize.stored import KINDS

    module = float_copy(spec, scheme)
    kept = matched_names(spec.keep_fp32, type_names(module))
    open_attention(module)
    layers = {name: part for name, part in module.named_modules() if type(part) in KINDS}
    chosen = [name for name, part in layers.items() if type(part).__name__ in kinds and not inside(name, kept)]
    for name in chosen:
        part = layers[name]
        if bits == 16:
            check_half_range(name, part)
        try:
            exchanged = KINDS[type(part)](part, bits)
        except ValueError as err:
            raise UnsupportedError(f"{scheme} cannot store {name}: {err}", f"give --keep-fp32 {name}") from err
        module = _put(module, name, exchanged.eval())
    covers = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    left = [name for name in layers if name not in chosen]
    return quantized_model(scheme, module, (chosen, left), covers=covers)


def check_half_range(name: str, part: Any) -> None:
    """Refuse a module with a weight that half precision cannot hold.

    Raises:
        UnsupportedError: which one.
    """
    import torch

    largest = torch.finfo(torch.float16).max
    for weight, value in part.named_parameters():
        most = float(value.detach().abs().max())
        if most > largest:
            what = f"{name}.{weight} holds {most:.3g}, half precision at most {largest:.0f}"
            raise UnsupportedError(what, f"give --keep-fp32 {name}, or use another scheme")


def _put(module: Any, name: str, part: Any) -> Any:
    """Put `part` in the place of the module that `name` names, which may be the whole model."""
    if not name:
        return part
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)
    return module
