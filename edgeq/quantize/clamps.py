"""QNNPACK's clamp (relu6, hardtanh, clamp) reads a channels-last tensor as if it were contiguous.

Its kernel takes `input.contiguous()` for the values and keeps the memory format of the input for the result
(aten/src/ATen/native/quantized/cpu/qclamp.cpp, seen in torch 2.15), so that what a convolution gave comes out with its
elements in another order: mobilenet_v2 lost all but 9 dB. Of a tensor that was made contiguous before, it is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized import ReLU6

_NAMES = frozenset({"relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_"})
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
