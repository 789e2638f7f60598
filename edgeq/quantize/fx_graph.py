"""What FX graph mode takes wrongly, mended before it sees the model and after it has put in its observers."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.observer import _is_activation_post_process

from edgeq.quantize.names import matched_names

# modules whose int8 form holds the scale of its output
_SCALED = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ELU,
    nn.Hardswish,
    nn.LeakyReLU,
)


def mend(module: Any) -> None:
    """Exchange in place what the int8 engines compute wrongly or cannot take for its equal that they can."""
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):  # named_children leaves out what it has given before
            if type(child) is nn.PReLU:
                setattr(part, name, _FloatPReLU(child.weight))
            elif isinstance(child, nn.modules.conv._ConvNd) and isinstance(child.padding, str):
                child.padding = _padding(child)


class _FloatPReLU(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Computes in float: torch's int8 module lets negative values through as they are (torch 2.15)."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.prelu(x, self.weight)


def _padding(conv: Any) -> Any:
    """Return padding "same" or "valid" as numbers, or as it is where "same" pads one side more than the other."""
    totals = [
        0 if conv.padding == "valid" else d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    ]
    return conv.padding if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)


def containers(module: Any, types: Mapping[str, str], keep: Sequence[str]) -> list[str]:
    """Return the names of the modules with parts that `keep` names, by name or type: in float, they need no trace."""
    named = [name for name, kind in types.items() if name in keep or kind in keep]
    return [name for name in named if next(module.get_submodule(name).children(), None) is not None]


def plain(module: Any, inputs: tuple[Any, ...], opaque: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Take off what FX cannot see: arguments that have defaults, and modules that are called more than once.

    FX gives every argument of forward a proxy, of which `is None` is false. It converts a module once, with the output
    range of one call, and clips the outputs of the others: each call gets a module of its own.

    Args:
        module: the float model, in eval mode; taken over.
        inputs: tensors that it takes.
        opaque: names of modules that are not traced.

    Returns:
        The module, traced where it had either, and what each new module is a copy of, by its name.
    """
    defaults = _defaults(module, len(inputs))
    if not defaults and not _called_again(module, inputs):
        return module, {}
    graph = QuantizationTracer(list(opaque), []).trace(module, defaults or None)
    _drop_inputs(graph, len(inputs))
    traced = torch.fx.GraphModule(module, graph)
    calls: Counter[str] = Counter()
    copies: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(traced.get_submodule(node.target), _SCALED):
            continue
        calls[node.target] += 1
        if calls[node.target] > 1:
            name = f"{node.target}_call{calls[node.target]}"
            traced.add_submodule(name, copy.deepcopy(traced.get_submodule(node.target)))
            copies[name] = node.target
            node.target = name
    traced.recompile()
    return traced, copies


def _defaults(module: Any, given: int) -> dict[str, Any]:
    """Return the arguments of forward beyond the first `given`, which keep their defaults."""
    parameters = list(inspect.signature(module.forward).parameters.values())[given:]
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _drop_inputs(graph: Any, kept: int) -> None:
    """Take the inputs after the first `kept` out, with the checks that FX made that they have their defaults."""
    dropped = set([node for node in graph.nodes if node.op == "placeholder"][kept:])
    for node in graph.nodes:
        if not dropped.isdisjoint(node.all_input_nodes):
            dropped.add(node)
    for node in reversed(graph.nodes):
        if node in dropped:
            graph.erase_node(node)


def kept_names(keep: Sequence[str], types: Mapping[str, str], copies: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that `keep` names, sorted; a module's name or type means all its calls.

    Args:
        keep: names or types of modules.
        types: of the model's own modules, by name.
        copies: what `plain` returned.

    Raises:
        UsageError: an entry that matches no module.
    """
    kept = matched_names(keep, {**types, **{name: types[source] for name, source in copies.items()}})
    return sorted({*kept, *(name for name, source in copies.items() if source in kept)})


def _called_again(module: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether a module that gets a scale is called more than once for one input."""
    calls: Counter[int] = Counter()

    def count(part: Any, _inputs: Any) -> None:
        calls[id(part)] += 1

    hooks = [part.register_forward_pre_hook(count) for part in module.modules() if isinstance(part, _SCALED)]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return any(number > 1 for number in calls.values())


def observe_floats_only(prepared: Any, inputs: tuple[Any, ...]) -> Any:
    """Take the observers out that FX put on whole numbers, such as a mask before it is cast to float.

    Args:
        prepared: a graph with observers, changed in place and returned.
        inputs: tensors that it takes.
    """
    run = _Watched(prepared)
    with torch.no_grad():
        run.run(*inputs)
    for name in run.whole_numbers:
        prepared.set_submodule(name, nn.Identity())
    return prepared


class _Watched(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph, its observers left out, and sees which of them would get tensors that are not floats."""

    def __init__(self, prepared: Any) -> None:
        super().__init__(prepared)
        self.whole_numbers: set[str] = set()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pass by an observer; call everything else."""
        if not _is_activation_post_process(self.fetch_attr(target)):
            return super().call_module(target, args, kwargs)
        (value,) = args
        if isinstance(value, torch.Tensor) and not value.dtype.is_floating_point:
            self.whole_numbers.add(str(target))
        return value


def bound_clamps(prepared: Any) -> None:
    """Give in place a clamp of one bound its other one, the end of its input's int8 range: int8 kernels want both.

    Args:
        prepared: a graph with observers that have seen their ranges.
    """
    for node in prepared.graph.nodes:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op not in ("call_method", "call_function") or name not in ("clamp", "clamp_", "clip", "clip_"):
            continue
        source = node.args[0]
        observer = prepared.get_submodule(source.target) if source.op == "call_module" else None
        if observer is None or not _is_activation_post_process(observer):
            continue
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        scale, zero_point = (float(value) for value in observer.calculate_qparams())
        ends = {"min": observer.quant_min, "max": observer.quant_max}
        missing = {side: (end - zero_point) * scale for side, end in ends.items() if bounds.get(side) is None}
        if len(missing) == 1:
            node.args, node.kwargs = (source,), bounds | missing
    prepared.recompile()
