"""Cross-layer equalization: scale the channels of consecutive layers to equal ranges, exactly and in float.

One step size has to serve all channels of a weight in engines such as QNNPACK; a channel whose weights are small beside
the others' is then rounded away. The scale that moves between two layers is that of Nagel et al., arXiv:1906.04721,
equation 11. This file needs torch to load.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from edgeq.core.results.model import LoadedModel

_SWEEPS = 20  # over all pairs: a layer in the middle of a chain settles in a few

_SETTLED = 1e-3  # largest change of a scale, as a logarithm, in the last sweep

# f(s x) = s f(x) for s > 0, element by element; pools do so channel by channel of an image
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d)

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

_ELEMENTWISE_CALLS = ("relu", "relu_", "dropout")

_POOL_CALLS = ("max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d")


def equalized(model: LoadedModel) -> LoadedModel | None:
    """Return the model with batch norms folded and layers equalized; None where no two layers follow each other.

    It computes the same function up to float32 rounding. Names of modules stay.

    Args:
        model: a module that FX can trace, in eval mode; where it cannot, None is returned.
    """
    from torch.ao.quantization.quantize_fx import fuse_fx

    try:
        fused = fuse_fx(copy.deepcopy(model.model))
    except Exception:  # FX's tracer raises its own and Python's errors; the method itself says so to the user
        return None
    pairs = tuple(_pairs(fused))
    if not pairs:
        return None
    with torch.no_grad():
        for _ in range(_SWEEPS):
            if max(_even_out(first, second) for first, second in pairs) < _SETTLED:
                break
    return dataclasses.replace(model, model=fused)


def _pairs(graph: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield two layers where the output of the first goes into the second alone, and nothing between them minds."""
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    for node in graph.graph.nodes:
        first = _layer(graph, node)
        if first is None or uses[node.target] > 1:
            continue
        between, following = [], _only_user(node)
        while following is not None and (kind := _kind(graph, following)):
            between.append(kind)
            following = _only_user(following)
        second = _layer(graph, following)
        if following is None or second is None or uses[following.target] > 1:
            continue
        if _fits(first, second, between):
            yield first, second


def _only_user(node: Any) -> Any | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _layer(graph: Any, node: Any) -> nn.Module | None:
    """Return the convolution or linear layer of a node, out of its fusion with ReLU; None for all else."""
    if node is None or node.op != "call_module":
        return None
    part = graph.get_submodule(str(node.target))
    if isinstance(part, nn.Sequential):
        part = part[0] if all(isinstance(rest, nn.ReLU) for rest in list(part)[1:]) else None
    return part if type(part) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear) else None


def _kind(graph: Any, node: Any) -> str:
    """Return what a node does to the channels' scales, where it minds them: "" for all that is not known not to."""
    part = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if isinstance(part, nn.Flatten):
        return "flatten" if (part.start_dim, part.end_dim) == (1, -1) else ""
    if part is None and name == "flatten":
        return "flatten" if node.args[1:] == (1,) and not node.kwargs else ""
    if isinstance(part, _POOLS) or (part is None and name in _POOL_CALLS):
        return "pool"
    return "element" if isinstance(part, _ELEMENTWISE) or (part is None and name in _ELEMENTWISE_CALLS) else ""


def _fits(first: nn.Module, second: nn.Module, between: Sequence[str]) -> bool:
    """Whether the channels that the one writes are those that the other reads, each for itself."""
    channels = first.weight.shape[0]
    if isinstance(second, nn.Linear):
        # linear layers keep channels last, where a flattened image has each channel in one piece
        wanted = 0 if isinstance(first, nn.Linear) else 1
        plain = between.count("flatten") == wanted and (wanted or "pool" not in between)
        return bool(plain and second.weight.shape[1] % channels == 0 and (wanted or second.in_features == channels))
    same = type(first) is type(second) and "flatten" not in between
    return bool(same and second.in_channels == channels and second.groups in (1, channels))


def _even_out(first: nn.Module, second: nn.Module) -> float:
    """Give each channel the same range in both weights; return the largest logarithm of a scale."""
    channels = first.weight.shape[0]
    before = first.weight.reshape(channels, -1).abs().amax(1)
    after = _by_input(second, channels).abs().amax((0, 2))
    alive = (before > 0) & (after > 0) & before.isfinite() & after.isfinite()
    scale = torch.where(alive, (before / after).sqrt(), torch.ones_like(before))
    first.weight /= scale.view(-1, *[1] * (first.weight.dim() - 1))
    if first.bias is not None:
        first.bias /= scale
    _by_input(second, channels).mul_(scale.view(1, -1, 1))
    return float(scale.log().abs().max())


def _by_input(layer: nn.Module, channels: int) -> torch.Tensor:
    """Return a view of a weight as [outputs, input channels, values]."""
    weight = layer.weight
    if getattr(layer, "groups", 1) == channels > 1:
        return weight.view(1, channels, -1)  # a depthwise one: each channel has filters of its own
    return weight.view(weight.shape[0], channels, -1)
