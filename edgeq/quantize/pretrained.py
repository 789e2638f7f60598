"""Models that come quantized, such as torchvision.models.quantization's: taken as they are, with no calibration."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError, UsageError, first_line
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.fx import engine
from edgeq.quantize.fx_layers import split_layers
from edgeq.quantize.result import quantized_model
from edgeq.quantize.spec import QuantizeSpec
from edgeq.quantize.steps import output_steps


def pretrained(spec: QuantizeSpec) -> QuantizedModel:
    """Repack the weights for the target's engine, and change nothing else.

    Raises:
        UnsupportedError: a float model, or layers that the engine cannot pack.
        UsageError: --keep-fp32 with it.
    """
    if spec.keep_fp32:
        raise UsageError("--keep-fp32 cannot undo what a pretrained model was quantized to", "leave it out")
    if spec.model.kind == "exported":
        what = "pretrained takes quantized modules, and an exported program has none"
        raise UnsupportedError(what, "give the model's factory")
    with engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        try:
            # packing is the engine's own, and a copy packs anew
            module = copy.deepcopy(spec.model.model)
        except Exception as err:  # the engines' packing raises many types
            what = f"the {spec.backend} engine cannot take the model's weights: {first_line(err)}"
            raise UnsupportedError(what, "use a target with the engine that the model was quantized for") from err
        quantized, kept = split_layers(module)
        steps = output_steps(module, example_tensors(spec.inputs)) if quantized else ()
    if not quantized:
        what = "the model is not quantized: it has no quantized convolution or linear layer"
        fix = "give one that is, such as torchvision:quantization.mobilenet_v2, or --scheme static-int8"
        raise UnsupportedError(what, fix)
    return quantized_model("pretrained", module, (quantized, kept), steps=steps)


def is_quantized(module: Any) -> bool:
    """Whether a module came quantized, in whole or in part."""
    parts = module.modules() if hasattr(module, "modules") else ()
    return any(".nn.quantized." in type(part).__module__ and hasattr(part, "weight") for part in parts)
