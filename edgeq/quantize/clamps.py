"""Clamps (relu, relu6, hardtanh, clamp) of quantized models: what QNNPACK gets wrong, and what a range does anyway.

QNNPACK's clamp reads a channels-last tensor as if it were contiguous. Its kernel takes `input.contiguous()` for the
values and keeps the memory format of the input for the result (aten/src/ATen/native/quantized/cpu/qclamp.cpp, seen in
torch 2.15), so that what a convolution gave comes out with its elements in another order: mobilenet_v2 lost all but
9 dB. Of a tensor that was made contiguous before, it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized import ReLU6

_NAMES = frozenset({"relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_"})
# kernels that quantize what they give, and so saturate it
_SATURATING = frozenset({"linear", "add", "add_", "mul", "mul_", "convolution"}) | {
    f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)
}
_MODULES = (nn.Hardtanh, ReLU6)  # nn.ReLU6 is a Hardtanh


class _Contiguous(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Makes the values contiguous for a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.inner(values.contiguous())


def contiguous_clamps(converted: Any) -> Any:
    """Let a quantized module for QNNPACK clamp contiguous tensors only; it is changed in place, and returned.

    Args:
        converted: a graph (FX), or a module of eager mode, whose functional clamps cannot be seen.
    """
    if not isinstance(converted, torch.fx.GraphModule):
        for name, part in list(converted.named_modules()):
            if isinstance(part, _MODULES):
                parent, _, leaf = name.rpartition(".")
                setattr(converted.get_submodule(parent), leaf, _Contiguous(part))
        return converted
    for node in list(converted.graph.nodes):
        if _is_clamp(converted, node):
            _with_contiguous(converted.graph, node)
    converted.recompile()
    return converted


def _is_clamp(graph: Any, node: Any) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _MODULES)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _NAMES


def _with_contiguous(graph: Any, node: Any) -> None:
    source = node.all_input_nodes[0]
    with graph.inserting_before(node):
        held = graph.call_method("contiguous", (source,))
    later = [user for user in source.users if user > node]
    node.replace_input_with(source, held)
    # what was clamped in place is read by its old name
    for user in later if _is_in_place(graph, node) else ():
        user.replace_input_with(source, node)


def _is_in_place(graph: Any, node: Any) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.owning_module.get_submodule(str(node.target)), "inplace", False))
    name = node.target if node.op == "call_method" else node.target.__name__
    return name.endswith("_") or bool(node.kwargs.get("inplace", False))


def observe_after_clamps(prepared: Any, is_observer: Callable[[Any], bool], smallest_scale: float) -> None:
    """Let the range of a clamp's output be that of the layer before it, in place; the clamp then is its saturation.

    The XNNPACK quantizer observes what a layer gives and what the clamp makes of it by one observer, so that the layer
    is quantized over a range that the clamp cuts, and the clamp stays an operator of its own between two roundings.
    With the clamped values observed alone, each bound lies at or beyond an end of the range.
    Clamps stay as they are whose bounds have no zero between them or lie closer than `smallest_scale` can resolve.

    Args:
        prepared: a graph with observers, of torchao.
        is_observer: tells its observers from other modules.
        smallest_scale: the observers' floor of a scale.
    """

    def observes(node: Any) -> bool:
        return node.op == "call_module" and is_observer(prepared.get_submodule(str(node.target)))

    for clamp in list(prepared.graph.nodes):
        bounds = _bounds(clamp)
        if bounds is None or not bounds[0] <= 0 <= bounds[1] or bounds[1] - bounds[0] < 255 * smallest_scale:
            continue
        before, after = clamp.args[0], list(clamp.users)
        if not observes(before) or len(before.users) != 1 or len(after) != 1 or not observes(after[0]):
            continue
        layer = before.args[0]
        if (
            layer.op != "call_function"
            or layer.target.__name__.split(".")[0] not in _SATURATING
            or len(layer.users) != 1
        ):
            continue
        before.replace_all_uses_with(layer)
        prepared.graph.erase_node(before)
        if all(node.target != before.target for node in prepared.graph.nodes):
            prepared.delete_submodule(str(before.target))
    prepared.recompile()


def _bounds(node: Any) -> tuple[float, float] | None:
    """Return the least and the largest value that a clamp of an exported graph lets through; None of other nodes."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target.overloadpacket.__name__.removesuffix("_")
    if name == "relu":
        return 0.0, float("inf")
    if name not in ("hardtanh", "clamp"):
        return None
    # the operator's own defaults stand in for what the graph leaves out
    schema = node.target._schema.arguments[1:3]
    least, most = (
        node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(schema, start=1)
    )
    if not all(bound is None or isinstance(bound, int | float) for bound in (least, most)):
        return None
    return (float("-inf") if least is None else float(least), float("inf") if most is None else float(most))
