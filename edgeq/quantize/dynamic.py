"""Dynamic quantization for TorchScript's engines: int8 weights, activations quantized on the fly, no calibration."""

from __future__ import annotations

import warnings

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError, first_line
from edgeq.quantize.fx import engine
from edgeq.quantize.names import inside, matched_names
from edgeq.quantize.result import float_copy, quantized_model, type_names
from edgeq.quantize.spec import QuantizeSpec


def dynamic_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Convert linear and recurrent layers; nn.MultiheadAttention is taken apart into linear layers first.

    Raises:
        UnsupportedError: an exported program, a layer that the engine cannot pack, or no layer of these kinds.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch
    from torch.ao.quantization import quantize_dynamic

    from edgeq.quantize.attention import open_attention

    module = float_copy(spec, "dynamic-int8")
    kept = matched_names(spec.keep_fp32, type_names(module))
    open_attention(module)
    with engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        layers = [
            name
            for name, part in module.named_modules()
            if type(part) in (torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU)
        ]
        chosen = [name for name in layers if not inside(name, kept)]
        if chosen:
            try:
                module = quantize_dynamic(module, set(chosen), dtype=torch.qint8)
            except Exception as err:  # the engines' packing raises many types
                what = f"the {spec.backend} engine cannot take a layer: {first_line(err)}"
                raise UnsupportedError(what, "leave that layer in float (--keep-fp32)") from err
    left = [name for name in layers if name not in chosen]
    return quantized_model("dynamic-int8", module, (chosen, left), covers="linear, LSTM or GRU")
