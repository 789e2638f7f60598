"""True half precision, for runtimes with half kernels (XNNPACK)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError, first_line
from edgeq.quantize.capture import capture, example_tensors
from edgeq.quantize.names import inside, matched_names
from edgeq.quantize.result import quantized_model, type_names
from edgeq.quantize.spec import QuantizeSpec
from edgeq.quantize.weights import check_half_range


def true_half(spec: QuantizeSpec) -> QuantizedModel:
    """Convert weights and arithmetic to half; inputs and outputs stay float32.

    Raises:
        UnsupportedError: a weight beyond what half holds, no float weight at all, or a model that fixes float32 inside.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    exported = spec.model.kind == "exported"
    module = spec.model.model.module() if exported else copy.deepcopy(spec.model.model)
    kept = matched_names(spec.keep_fp32, type_names(module))
    names = _float_owners(module)
    halved = [name for name in names if not inside(name, kept)]
    for name in halved:
        check_half_range(name, module.get_submodule(name))
    module.half()
    _cast(module, torch.float16, torch.float32)
    for name in kept:
        if not inside(name.rpartition(".")[0], kept):  # the outermost bring their parts along
            _cast(module.get_submodule(name).float(), torch.float32, torch.float16)
    try:
        with torch.no_grad():
            module(*example_tensors(spec.inputs))
    except Exception as err:  # mixed dtypes raise many types
        what = f"the model cannot compute in half precision: {first_line(err)}"
        raise UnsupportedError(what, "leave the module that mixes dtypes in float (--keep-fp32)") from err
    program = capture(dataclasses.replace(spec.model, kind="module", model=module))
    left = [name for name in names if name not in halved]
    return dataclasses.replace(
        quantized_model("fp16", program.module(), (halved, left), covers="float"), exported=program
    )


def _float_owners(module: Any) -> list[str]:
    """Return the modules that hold float parameters of their own."""
    return [
        name
        for name, part in module.named_modules()
        if any(value.is_floating_point() for value in part.parameters(recurse=False))
    ]


def _cast(part: Any, own: Any, outside: Any) -> None:
    """Let a module that computes in dtype `own` take tensors of dtype `outside`, and return such."""
    import torch

    def to(value: Any, dtype: Any) -> Any:
        def converted(leaf: Any) -> Any:
            return leaf.to(dtype) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf

        return torch.utils._pytree.tree_map(converted, value)

    part.register_forward_pre_hook(lambda _part, args: to(args, own))
    part.register_forward_hook(lambda _part, _args, result: to(result, outside))
