"""Weights rounded to what int8 or half holds, in a graph that stays float32: OpenVINO's lowering stores them so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import QuantizedModel
from edgeq.core.schemes import INT8_STEPS
from edgeq.quantize import half_graph
from edgeq.quantize.half import module_types
from edgeq.quantize.result import quantized_model
from edgeq.quantize.spec import QuantizeSpec, inside, matched_names


def fp16(spec: QuantizeSpec) -> QuantizedModel:
    """Round weights to half.

    Raises:
        UnsupportedError: a weight beyond what half holds, or a model without weights.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    most = torch.finfo(torch.float16).max

    def rounded(name: str, weight: Any) -> Any:
        largest = float(weight.abs().max())
        if largest > most:
            what = f"{name} holds {largest:.3g}, but half precision holds at most {most:.0f}"
            raise UnsupportedError(what, f"give --keep-fp32 {name}, or use another scheme")
        return weight.half().float()

    return _rounded(spec, "fp16", rounded)


def weight_only_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Round weights to int8, with a scale for each row: an output of a linear layer, a word of an embedding.

    Raises:
        UnsupportedError: a model without weights.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    def rounded(_name: str, weight: Any) -> Any:
        rows = tuple(range(1, weight.ndim))
        scale = weight.abs().amax(dim=rows, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_STEPS
        return torch.round(weight / scale) * scale

    return _rounded(spec, "weight-only-int8", rounded)


def _rounded(spec: QuantizeSpec, scheme: str, rounded: Callable[[str, Any], Any]) -> QuantizedModel:
    """Round matrices and kernels, of layers that --keep-fp32 does not name; batch norms are folded before."""
    import torch

    module = half_graph.functional_graph(spec.captured)
    kept = matched_names(spec.keep_fp32, module_types(spec))
    chosen: dict[str, None] = {}
    left: dict[str, None] = {}
    for target in dict.fromkeys(node.target for node in module.graph.nodes if node.op == "get_attr"):
        tensor = half_graph.tensor_at(module, target)
        if not torch.is_tensor(tensor) or tensor.dtype != torch.float32 or tensor.ndim < 2:
            continue
        if not tensor.isfinite().all():  # a mask of attention, whose infinities have no step
            continue
        readers = [user for node in module.graph.nodes if node.target == target for user in node.users]
        owners = [half_graph.module_of(reader) or str(reader.name) for reader in readers]
        if any(inside(owner, kept) for owner in owners):
            left.update(dict.fromkeys(owners))
            continue
        half_graph.put_tensor(module, target, rounded(owners[0], tensor.detach()))
        chosen.update(dict.fromkeys(owners))
    layers = (list(chosen), [name for name in left if name not in chosen])
    program = half_graph.with_precisions(module, lambda _node: None, spec.inputs)
    made = quantized_model(scheme, program.module(), layers, covers="weight matrix or kernel")
    return dataclasses.replace(made, exported=program)
