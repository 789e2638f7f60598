"""Matrices in int4 by groups, and the linear layers of a graph that multiply by them in int8.

This file needs torch to load.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch


def in_groups(
    matrix: Any, sizes: Sequence[int], *, scale_type: torch.dtype = torch.float16, is_signed: bool = True
) -> tuple[Any, Any] | None:
    """Round a matrix to int4, with the scale for each group that leaves the least squared error.

    Scales are tried from the one that spends all 16 steps on the group's range down to three quarters of it: what is
    clipped then costs less than the coarser steps of the rest. A negative scale gives the side with the larger end the
    eighth step.

    Args:
        matrix: float32 [out, in].
        sizes: of groups; the first that divides the rows is taken.
        scale_type: what a runtime keeps scales in.
        is_signed: whether it takes negative ones.

    Returns:
        The codes, int8 [out, groups, size], and the scales, float32 [out, groups] of values that `scale_type` holds;
        None where no size divides the rows, or `scale_type` does not hold a scale.
    """
    size = next((size for size in sizes if matrix.shape[1] % size == 0), None)
    if size is None:
        return None
    groups = matrix.detach().reshape(len(matrix), -1, size)
    end = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = torch.full_like(end, float("inf"))
    codes, scales = torch.zeros_like(groups, dtype=torch.int8), torch.ones_like(end)
    for steps in (-8, 7):
        for share in torch.linspace(1, 0.75, 11):
            scale = (end * share / steps).to(scale_type).float()
            scale = torch.where(
                scale == 0, 1, scale if is_signed else scale.abs()
            )  # zeros, and what is rounded to zero
            if not scale.isfinite().all():
                return None
            tried = (groups / scale).round().clamp(-8, 7)
            error = (tried * scale - groups).square().sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            codes, scales = torch.where(better, tried.to(torch.int8), codes), torch.where(better, scale, scales)
    return codes, scales.squeeze(-1)


def linear_weights(graph_module: Any, is_float: Callable[[Any], bool]) -> list[tuple[list[Any], Any]]:
    """Return the float32 weights that linear layers of an exported graph read: of each these layers, and the matrix.

    Args:
        graph_module: a torch.fx.GraphModule of ATen operators.
        is_float: whether a layer is to stay in float.
    """
    found: dict[str, tuple[list[Any], Any]] = {}
    for node in graph_module.graph.nodes:
        if node.target is not torch.ops.aten.linear.default or node.args[1].op != "get_attr" or is_float(node):
            continue
        weight = operator.attrgetter(node.args[1].target)(graph_module)
        if weight.dtype == torch.float32:
            found.setdefault(node.args[1].target, ([], weight.detach()))[0].append(node)
    return [*found.values()]


_ORIGIN = ("nn_module_stack", "stack_trace", "custom")  # what tells whose node it is


def multiply_in_int8(graph_module: Any, layers: Sequence[Any], codes: Any, scales: Any) -> None:
    """Let linear layers multiply int8 by a matrix in int4, each row of their inputs quantized as the graph runs.

    The operators are those that torchao's `Int8DynamicActivationIntxWeightConfig` exports, which XNNPACK's partitioner
    (ExecuTorch 1.5.1) takes for one kernel, QD8 by QB4W.

    Args:
        graph_module: changed in place.
        layers: its nodes of linear layers that read the matrix.
        codes: int8 [out, groups, size of a group], from -8 to 7.
        scales: float32 [out, groups], positive.
    """
    import torchao.quantization.quant_primitives  # noqa: F401  # registers the operators

    ao, graph = torch.ops.torchao, graph_module.graph
    name = f"{str(layers[0].args[1].target).replace('.', '_')}_int4"
    parts = {"": codes.flatten(1), "_scale": scales, "_zero_point": torch.zeros_like(scales, dtype=torch.int8)}
    for suffix, value in parts.items():
        graph_module.register_buffer(name + suffix, value.contiguous())
    for node in layers:
        source = node.args[0]
        row = [1] * (source.meta["val"].dim() - 1) + [source.meta["val"].shape[-1]]
        steps = (torch.int8, -128, 127)
        with graph.inserting_before(node):
            chosen = graph.call_function(
                ao.choose_qparams_affine.default, (source, "ASYMMETRIC", row, *steps, None, None, torch.int8)
            )
            scale, zero_point = (graph.call_function(operator.getitem, (chosen, place)) for place in (0, 1))
            rounded = graph.call_function(ao.quantize_affine.default, (source, row, scale, zero_point, *steps))
            value = graph.call_function(
                ao.dequantize_affine.default, (rounded, row, scale, zero_point, *steps, torch.float32)
            )
            held, its_scale, its_zero_point = (graph.get_attr(name + suffix) for suffix in parts)
            weight = graph.call_function(
                ao.dequantize_affine.default,
                (held, [1, codes.shape[-1]], its_scale, its_zero_point, torch.int8, -8, 7, torch.float32),
            )
        for made in (chosen, scale, zero_point, rounded, value, weight):
            made.meta = {
                key: node.meta[key] for key in ("nn_module_stack", "stack_trace", "custom") if key in node.meta
            }
        node.args = (value, weight, *node.args[2:])
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def is_grouped(node: Any) -> bool:
    """Whether a node is a matrix in int4, as a layer of `multiply_in_int8` reads it."""
    return getattr(node.target, "__name__", "") == "dequantize_affine.default" and node.args[0].op == "get_attr"
