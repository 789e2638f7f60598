"""What FX graph mode takes wrongly, mended before it sees the model and after it has put in its observers."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.observer import _is_activation_post_process
from torch.nn.utils import parametrize

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
        _without_parametrizations(part)
    padded: dict[int, Any] = {}
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):  # named_children leaves out what it has given before
            if type(child) is nn.PReLU:
                setattr(part, name, _FloatPReLU(child.weight))
            elif type(child) is nn.AvgPool2d and child.padding not in (0, (0, 0)) and not child.count_include_pad:
                setattr(part, name, _FloatAvgPool2d(child))
            elif isinstance(child, nn.modules.conv._ConvNd):
                _number_padding(child)
                if isinstance(child.padding, str) or (child.padding_mode != "zeros" and not child.transposed):
                    padded[id(child)] = padded.get(id(child)) or _padded_before(child)
                    setattr(part, name, padded[id(child)])


def _without_parametrizations(part: Any) -> None:
    """Let a layer hold the weight that weight or spectral norm computes: FX traces no hooks (torch 2.15)."""
    for hook in list(part._forward_pre_hooks.values()):
        if type(hook).__name__ == "WeightNorm":
            nn.utils.remove_weight_norm(part, hook.name)
        elif type(hook).__name__ == "SpectralNorm":
            nn.utils.remove_spectral_norm(part, hook.name)
    if parametrize.is_parametrized(part):
        weights = {name: getattr(part, name).detach() for name in part.parametrizations}
        # `remove_parametrizations` would change the class, which is that of the model that this is a copy of too
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part._modules["parametrizations"]
        for name, weight in weights.items():
            part.register_parameter(name, nn.Parameter(weight))


def _number_padding(conv: Any) -> None:
    """Give in place the padding in numbers where it is "same" or "valid", if one number a side says it.

    An even kernel's "same" pads the right by one more. One more tap of zeros before the kernel's first does the same
    with equal sides; with a dilation, a tap more is too far.
    """
    if not isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return
    sizes = tuple(zip(conv.dilation, conv.kernel_size, strict=True))
    totals = [0 if conv.padding == "valid" else d * (k - 1) for d, k in sizes]
    if any(total % 2 and d > 1 for total, (d, _) in zip(totals, sizes, strict=True)):
        return
    if any(total % 2 for total in totals):
        taps = [(total % 2, 0) for total in reversed(totals)]
        conv.weight = nn.Parameter(nn.functional.pad(conv.weight.detach(), [side for tap in taps for side in tap]))
        conv.kernel_size = tuple(conv.weight.shape[2:])
    conv.padding = tuple((total + 1) // 2 for total in totals)


def _padded_before(conv: Any) -> Any:
    """Return a convolution that has its padding from a module before it: engines only pad both sides with zeros."""
    sides = list(conv._reversed_padding_repeated_twice)
    kind = {
        "zeros": (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
        "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
        "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    }[conv.padding_mode][len(conv.kernel_size) - 1]
    pad = kind(sides, 0.0) if conv.padding_mode == "zeros" else kind(sides)
    conv.padding, conv.padding_mode = (0,) * len(conv.kernel_size), "zeros"
    conv._reversed_padding_repeated_twice = [0] * len(sides)
    return nn.Sequential(pad, conv)


class _FloatPReLU(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Computes in float: torch's int8 module lets negative values through as they are (torch 2.15)."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.prelu(x, self.weight)


class _FloatAvgPool2d(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Computes in float, by an operator that FX does not know: QNNPACK counts the padding in (torch 2.15)."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.sizes = tuple(
            (size,) if type(size) is int else size for size in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.ceil_mode, self.divisor = pool.ceil_mode, pool.divisor_override

    def forward(self, x: Any) -> Any:
        return torch.ops.aten.avg_pool2d(x, *self.sizes, self.ceil_mode, False, self.divisor)


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
    """Take the observers out that FX put on whole numbers, as a mask before it is cast, and on what is no tensor.

    Args:
        prepared: a graph with observers, changed in place and returned.
        inputs: tensors that it takes.
    """
    run = _Watched(prepared)
    with torch.no_grad():
        run.run(*inputs)
    for name in run.others:
        prepared.set_submodule(name, nn.Identity())
    return prepared


class _Watched(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a prepared graph, its observers left out, and sees which of them would get what is no tensor of floats."""

    def __init__(self, prepared: Any) -> None:
        super().__init__(prepared)
        self.others: set[str] = set()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pass by an observer; call everything else."""
        if not _is_activation_post_process(self.fetch_attr(target)):
            return super().call_module(target, args, kwargs)
        (value,) = args
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
            self.others.add(str(target))
        return value


def use_int8_forms(node: Any, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Write a traced node in place in the form that the int8 engines have, or in one that stays in float.

    - Sigmoid and tanh have no int8 kernel that works in place (what reads the result reads the node already).
    - A number before a tensor (`1 + x`) is one that the int8 kernel takes behind it only.
    - Functional convolutions are packed by arguments that FX takes from the call: defaults are written out.
    - Resizing has int8 kernels of some modes only.
    - A view of a convolution's int8 output is one of a channels-last tensor: where that has no such view, a copy.

    Args:
        node: of a traced graph.
        inputs: the values of its arguments by place.
        keywords: those by name.
    """
    if node.op == "call_method" and node.target in ("sigmoid_", "tanh_"):
        node.target = node.target.removesuffix("_")
    elif node.op == "call_method" and node.target == "view" and not _has_view(*inputs):
        node.target = "reshape"
    elif node.op != "call_function":
        return
    elif node.target in (torch.sigmoid_, torch.tanh_):
        node.target = torch.sigmoid if node.target is torch.sigmoid_ else torch.tanh
    elif node.target in (operator.add, operator.mul) and not isinstance(node.args[0], torch.fx.Node):
        node.args = (node.args[1], node.args[0])
    elif node.target in _CONVOLUTIONS:
        weight = inputs[1] if len(inputs) > 1 else keywords["weight"]
        _write_out(node, tuple(weight.shape[2:]))
    elif node.target is nn.functional.interpolate:
        given = dict(zip(("size", "scale_factor", "mode"), node.args[1:], strict=False)) | node.kwargs
        if given.get("antialias") or given.get("mode", "nearest") not in ("nearest", "bilinear"):
            node.target = _float_interpolate


def _float_interpolate(*args: Any, **kwargs: Any) -> Any:
    """Resize by an operator that FX does not know."""
    return nn.functional.interpolate(*args, **kwargs)


def _float_conv1d(*args: Any, **kwargs: Any) -> Any:
    """Convolve by an operator that FX does not know."""
    return nn.functional.conv1d(*args, **kwargs)


def _float_conv2d(*args: Any, **kwargs: Any) -> Any:
    """Convolve by an operator that FX does not know."""
    return nn.functional.conv2d(*args, **kwargs)


def _float_conv3d(*args: Any, **kwargs: Any) -> Any:
    """Convolve by an operator that FX does not know."""
    return nn.functional.conv3d(*args, **kwargs)


_CONVOLUTIONS = {
    nn.functional.conv1d: _float_conv1d,
    nn.functional.conv2d: _float_conv2d,
    nn.functional.conv3d: _float_conv3d,
}


def _write_out(node: Any, kernel: tuple[int, ...]) -> None:
    """Give a functional convolution all its arguments in order, as lists; one that pads unevenly stays in float."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    for name in ("stride", "dilation", "padding"):
        value = given[name]
        if value == "valid":
            value = 0
        elif value == "same":
            totals = [d * (k - 1) for d, k in zip(given["dilation"], kernel, strict=True)]
            if any(total % 2 for total in totals):
                node.target = _CONVOLUTIONS[node.target]
                return
            value = [total // 2 for total in totals]
        value = list(value) if isinstance(value, (list, tuple)) else [value]
        given[name] = value * len(kernel) if len(value) == 1 else value
    node.args, node.kwargs = tuple(given[name] for name in names), {}


def _has_view(value: Any, *sizes: Any) -> bool:
    """Whether a view of these sizes is one of the same tensor in channels-last order too."""
    if value.dim() not in (4, 5) or any(isinstance(size, torch.dtype) for size in sizes):
        return True
    order = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
    try:
        value.contiguous(memory_format=order).view(*sizes)
    except RuntimeError:
        return False
    return True


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
