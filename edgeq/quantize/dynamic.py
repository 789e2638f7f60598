"""Dynamic quantization for TorchScript's engines: int8 weights, activations quantized on the fly, no calibration."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, first_line, user_line
from edgeq.core.results.model import ASKED, NO_KERNEL, QuantizedModel
from edgeq.quantize.capture import calls_of, example_tensors
from edgeq.quantize.fx import engine
from edgeq.quantize.fx_export import exported_graph, products_of, with_product_layers
from edgeq.quantize.fx_observers import split_layers
from edgeq.quantize.fx_workarounds import open_layers
from edgeq.quantize.result import float_copy, output_steps, quantized_model, type_names
from edgeq.quantize.spec import QuantizeSpec, inside, matched_names
from edgeq.quantize.weight_only import store_embeddings


def dynamic_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Convert linear and recurrent layers, and store the tables of embeddings in int8.

    nn.MultiheadAttention and recurrent cells are taken apart into linear layers first.

    Raises:
        UnsupportedError: an exported program, a layer that the engine cannot pack, or no layer of these kinds.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    module = float_copy(spec, "dynamic-int8")
    types = type_names(module)
    open_layers(module, example_tensors(spec.inputs))
    packed = functools.partial(_packed, spec, types)
    if not _weights_read_elsewhere(module, example_tensors(spec.inputs)):
        return with_product_layers(module, spec, packed)[0]
    try:
        module = exported_graph(module, spec.inputs)
    except Exception as err:  # torch.export raises many types
        what = f"forward reads the weights of layers that it does not call{user_line(err)}: {first_line(err)}"
        raise UnsupportedError(what, "call the layers, or use an ExecuTorch or ONNX target") from err
    return packed(module)


def _packed(spec: QuantizeSpec, types: Mapping[str, str], module: Any) -> QuantizedModel:
    """Convert the layers of a module that was opened, in place; `types` has the types of the model's own by name."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    inputs, products = example_tensors(spec.inputs), products_of(module)
    known = {**types, **dict.fromkeys(products.layers.values(), "Linear")}
    kept = products.like(matched_names(spec.keep_fp32, known))
    tables, in_float = store_embeddings(module, inputs, kept)
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
                what = f"the {spec.backend} engine cannot pack a layer: {first_line(err)}"
                raise UnsupportedError(what, "keep that layer in float (--keep-fp32)") from err
        if products.layers:  # a graph that does not run is known before it is lowered
            with torch.no_grad():
                module(*inputs)
    left = [name for name in layers if name not in chosen]
    # of tables alone dynamic-int8 makes nothing that runs in int8
    layers_and_tables = (chosen and [*chosen, *tables], [*left, *in_float])
    no_kernel = [name for name, part in module.named_modules() if type(part) is torch.nn.RNN]
    by_plan = {NO_KERNEL: no_kernel, ASKED: sorted(kept)}
    return quantized_model("dynamic-int8", module, layers_and_tables, covers="linear, LSTM or GRU", by_plan=by_plan)


def _weights_read_elsewhere(module: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether forward multiplies by the weight of a linear layer that it does not call, as torchvision's Swin does.

    Packed layers have no such weight.
    """
    import torch

    linear = [part for part in module.modules() if type(part) is torch.nn.Linear]
    called = calls_of(linear, module, inputs)
    waiting = [part for part in linear if part not in called]
    if not waiting:
        return False
    held = [dict(part.named_parameters(recurse=False)) for part in waiting]
    try:
        for part in waiting:
            del part.weight
        with torch.no_grad():
            module(*inputs)
    except AttributeError:
        return True
    finally:
        for part, own in zip(waiting, held, strict=True):
            for name in [*own]:
                part.register_parameter(name, None)
                delattr(part, name)
            for name, value in own.items():  # in their order, which is that of the file
                part.register_parameter(name, value)
    return False


# --- Models that come quantized, such as torchvision.models.quantization's: taken as they are, with no calibration.


def pretrained(spec: QuantizeSpec) -> QuantizedModel:
    """Repack the weights for the target's engine, and change nothing else.

    Raises:
        UnsupportedError: a float model, or layers that the engine cannot pack.
        UsageError: --keep-fp32 with it.
    """
    if spec.keep_fp32:
        raise UsageError("--keep-fp32 cannot change the layers of a pretrained quantized model", "omit --keep-fp32")
    if spec.model.kind == "exported":
        what = "--scheme pretrained needs quantized modules, but an exported program has none"
        raise UnsupportedError(what, "give the model's factory")
    with engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        try:
            # packing is the engine's own, and a copy packs anew
            module = copy.deepcopy(spec.model.model)
        except Exception as err:  # the engines' packing raises many types
            what = f"the {spec.backend} engine cannot pack the model's weights: {first_line(err)}"
            raise UnsupportedError(what, "use a target with the engine for which the model was quantized") from err
        quantized, kept = split_layers(module)
        steps = output_steps(module, example_tensors(spec.inputs)) if quantized else ()
    if not quantized:
        what = "the model is not quantized: it has no quantized convolution or linear layer"
        fix = "give a quantized model, such as torchvision:quantization.mobilenet_v2, or use --scheme static-int8"
        raise UnsupportedError(what, fix)
    return quantized_model("pretrained", module, (quantized, kept), steps=steps)


def is_quantized(module: Any) -> bool:
    """Whether a module is already quantized, in whole or in part."""
    parts = module.modules() if hasattr(module, "modules") else ()
    return any(".nn.quantized." in type(part).__module__ and hasattr(part, "weight") for part in parts)
