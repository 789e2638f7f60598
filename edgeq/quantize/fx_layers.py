"""Which layers an FX graph has, before and after it is converted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgeq.quantize.names import inside


def layer_of(prepared: Any, node: Any) -> str | None:
    """Return the module name of a prepared graph's node that is a convolution or a linear layer in int8, else None."""
    name = layer_name(prepared, node)
    is_int8 = name is not None and getattr(prepared.get_submodule(name), "qconfig", None) is not None
    return name if is_int8 else None


def layer_name(prepared: Any, node: Any) -> str | None:
    """Return the name of a convolution or linear, in int8 or in float, as the table of layers has it; else None."""
    import torch

    if node.op != "call_module":
        return None
    part = prepared.get_submodule(str(node.target))
    inner = part[0] if isinstance(part, torch.nn.Sequential) and len(part) else part
    return str(node.target) if isinstance(inner, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)) else None


def with_weights(prepared: Any, kept: Collection[str]) -> dict[Any, bool]:
    """Return whether each node with weights is in int8: the layers, and the modules that the user keeps in float."""
    found = {}
    for node in prepared.graph.nodes:
        if layer_of(prepared, node) is not None:
            found[node] = True
        elif node.op == "call_module" and inside(str(node.target), kept):
            weights = prepared.get_submodule(str(node.target)).parameters()
            found |= {node: False} if next(weights, None) is not None else {}
    return found


def split_layers(converted: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of convolutions and linears that compute in int8, and of those in float."""
    import torch
    from torch.ao.nn import intrinsic
    from torch.ao.nn.quantized import Linear
    from torch.ao.nn.quantized.modules.conv import _ConvNd

    graph = getattr(converted, "graph", None)  # of FX; eager mode leaves a plain module
    quantized = [node.name for node in graph.nodes if _is_quantized_call(node)] if graph else []
    kept: list[str] = []
    parts = dict(converted.named_modules())
    for name, part in parts.items():
        if isinstance(part, (Linear, _ConvNd)):
            quantized.append(name)
        elif isinstance(part, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            parent = name.rpartition(".")[0]
            # of a float conv-relu that was fused, people know the convolution's name
            kept.append(parent if isinstance(parts[parent], intrinsic._FusedModule) else name)
    return tuple(quantized), tuple(kept)


def _is_quantized_call(node: Any) -> bool:
    """Whether a node is torch.nn.functional's conv or linear, converted."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name.startswith(("conv", "linear")) and "quantized" in str(getattr(node.target, "__module__", ""))
