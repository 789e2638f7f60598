"""What torch.ao and its int8 engines get wrong, and the rewrites of model and graph that avoid it.

Seen in torch 2.15.0 (`pt2e_workarounds` has the list of the other routes):

- FX traces no hooks, and so no weight norm and no spectral norm: `exchange_layers`.
- It converts a module that is called twice with the output range of one call, and gives an argument with a default a
  proxy, for which `is None` is false: `plain`.
- It observes whole numbers, and values that are not tensors: `observe_floats_only`.
- It loses writes in place that the code reads by the tensor's old name (`x.clamp_(0, 1)` as a statement):
  `without_mutations`; where they go through views, `fx_export` has the graph from torch.export.
- Its shared and fixed ranges reach values that they do not fit: `fx_observers` has that list.
- The int8 nn.PReLU lets negative values through: `exchange_layers`.
- QNNPACK counts the padding of an average pool in, although it is to be left out: `exchange_layers`.
- It has no maximum over one value: `exchange_layers`, `use_int8_forms`.
- QNNPACK's clamp reads a channels-last tensor as if it were contiguous: `contiguous_clamps`.
- It gives a clamp and the layer before it one range, which the clamp cuts: `saturate_clamps`.
- Int8 pools, resizings and norms of both engines read tokens [1, H * W, C] that were transposed to an image as if they
  lay in channels-last order with another batch stride: `contiguous_images`.
- QNNPACK adds no values whose scales are very unlike: `leave_unlike_sums`.
- FBGEMM garbles the weights of a transposed convolution when it unpacks them: `fx._qconfig_mapping` keeps it in float.
- The engines pad both sides alike and with zeros, pack functional convolutions by arguments that must be written out,
  and have no int8 kernel of a sigmoid in place, of a number before a tensor, of most modes of resizing, of a clamp with
  one bound: `exchange_layers`, `use_int8_forms`, `bound_clamps`.
- nn.MultiheadAttention and recurrent cells multiply by raw parameters, which no method can exchange:
  `open_layers`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.ao.nn.quantized import ReLU6
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.observer import _is_activation_post_process
from torch.nn.utils import parametrize

from edgeq.core.errors import UnsupportedError, traced_line
from edgeq.core.operators import gru_step, lstm_step
from edgeq.core.system import replaced
from edgeq.quantize.capture import calls_of
from edgeq.quantize.spec import inside, matched_names

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


def exchange_layers(module: Any) -> None:
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
            elif type(child) is nn.MaxPool2d and child.kernel_size in (1, (1, 1)) and not child.return_indices:
                setattr(part, name, _Every(child.stride))
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


class _Every(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Takes every n-th row and column, as a maximum over one value does: QNNPACK has none of that (torch 2.15)."""

    def __init__(self, stride: Any) -> None:
        super().__init__()
        self.index = _every(stride)

    def forward(self, x: Any) -> Any:
        return x[self.index]


def _every(stride: Any) -> tuple[Any, ...]:
    """Return the index of every n-th row and column."""
    return (..., *(slice(None, None, step) for step in ((stride, stride) if type(stride) is int else stride)))


def containers(module: Any, types: Mapping[str, str], keep: Sequence[str]) -> list[str]:
    """Return the names of the modules with parts that `keep` names, by name or type: in float, they need no trace."""
    named = [name for name, kind in types.items() if name in keep or kind in keep]
    return [name for name in named if next(module.get_submodule(name).children(), None) is not None]


def plain(module: Any, inputs: tuple[Any, ...], opaque: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Take off what FX cannot see: arguments that have defaults, and modules that are called more than once.

    FX gives every argument of forward a proxy, for which `is None` is always false. It converts a module once, with the
    output range of one call, and clips the outputs of the others: each call gets a module of its own.

    Args:
        module: the float model, in eval mode; taken over.
        inputs: tensors that it takes.
        opaque: names of modules that are not traced.

    Returns:
        The module, traced where it had either, and what each new module is a copy of, by its name.
    """
    given = len(inputs)
    parameters = list(inspect.signature(module.forward).parameters.values())[given:]
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    if not defaults and not _called_again(module, inputs):
        return module, {}
    tracer = QuantizationTracer(list(opaque), [])
    tracer.record_stack_traces = False  # see `without_mutations`
    graph = tracer.trace(module, defaults or None)
    # take the inputs after the first `given` out, with the checks that FX made that they have their defaults
    dropped = set([node for node in graph.nodes if node.op == "placeholder"][given:])
    for node in graph.nodes:
        if not dropped.isdisjoint(node.all_input_nodes):
            dropped.add(node)
    for node in reversed(graph.nodes):
        if node in dropped:
            graph.erase_node(node)
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


def kept_names(keep: Sequence[str], types: Mapping[str, str], copies: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that `keep` names, sorted; a module's name or type means all its calls.

    Args:
        keep: names or types of modules.
        types: of the model's own modules, by name.
        copies: what `plain` returned.

    Raises:
        UsageError: an entry that matches no module.
    """
    # a linear layer of opened attention or of a cell has no type of the model's own
    kept = matched_names(keep, {**types, **{name: types.get(source, "") for name, source in copies.items()}})
    return sorted({*kept, *(name for name, source in copies.items() if inside(source, kept))})


def _called_again(module: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether a module that gets a scale is called more than once for one input."""
    scaled = [part for part in module.modules() if isinstance(part, _SCALED)]
    return any(number > 1 for number in calls_of(scaled, module, inputs).values())


def forget_configs(prepared: Any, nodes: Collection[Any]) -> None:
    """Let nodes of a prepared graph, whose observers were removed, be converted to nothing else."""
    configs = prepared.meta["_observed_graph_module_attrs"].node_name_to_qconfig
    for node in nodes:
        configs[node.name] = None
        if node.op == "call_module":
            prepared.get_submodule(str(node.target)).qconfig = None


def observe_floats_only(prepared: Any, inputs: tuple[Any, ...]) -> Any:
    """Remove the observers that FX put on integers, such as a mask before its cast, and on values that are not tensors.

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
    - QNNPACK has no maximum over one value, as detectors' pyramids end with: every n-th row and column is the same.
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
    elif node.target is nn.functional.max_pool2d:
        given = dict(zip(("kernel_size", "stride"), node.args[1:], strict=False)) | node.kwargs
        kernel, indices = given["kernel_size"], given.get("return_indices")
        if kernel in (1, [1], (1,), [1, 1], (1, 1)) and not indices:
            node.target, node.args, node.kwargs = operator.getitem, (node.args[0], _every(given.get("stride") or 1)), {}
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


# of QNNPACK's int8 sum: scale of a part / scale of the result (aten/src/ATen/native/quantized/cpu/qnnpack/src/add.c)
_SUM_RATIOS = (2.0**-14, 2.0**8)


def leave_unlike_sums(prepared: Any) -> None:
    """Compute the sums in float, in place, that QNNPACK refuses: of a part in whose scale the result would be a step.

    Such are the sum of a first value of zeros and what is added to it in a loop, and a difference of nearly equal
    values.

    Args:
        prepared: a graph with observers that have seen their ranges.
    """

    def scale(node: Any) -> float | None:
        if not isinstance(node, torch.fx.Node) or node.op != "call_module":
            return None
        observer = prepared.get_submodule(str(node.target))
        return float(observer.calculate_qparams()[0]) if _is_activation_post_process(observer) else None

    for node in prepared.graph.nodes:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op not in ("call_method", "call_function") or name not in ("add", "add_", "iadd"):
            continue
        parts = [scale(part) for part in node.args[:2]]
        after = [*node.users, *(later for user in node.users for later in user.users)]  # behind a relu that is fused
        result = next((found for user in after if (found := scale(user)) is not None), None)
        known = [part for part in parts if part is not None]
        if result is None or len(known) < len(parts):
            continue
        if not all(_SUM_RATIOS[0] <= part / result < _SUM_RATIOS[1] for part in known):
            node.op, node.target = "call_function", _float_add
    prepared.recompile()


def _float_add(x: Any, other: Any, **kwargs: Any) -> Any:
    """Add by an operator that FX does not know."""
    return torch.add(x, other, **kwargs)


# --- In-place operators in a traced graph: what reads the changed tensor later must read the operator's result.


@contextlib.contextmanager
def without_mutations(inputs: tuple[Any, ...]) -> Iterator[None]:
    """Let `prepare_fx` trace graphs in which no node reads a tensor that was changed in place since it was made.

    Args:
        inputs: tensors that the model takes; the traced graph runs on copies of them, once.

    Raises:
        UnsupportedError: a tensor is changed through a view, by out= or inside an untraced module, and read again.
    """

    class Tracer(quantize_fx.QuantizationTracer):  # type: ignore[misc]  # torch is not followed by mypy
        """Rewrites what it traced."""

        def create_node(self, *args: Any, **kwargs: Any) -> Any:
            node = super().create_node(*args, **kwargs)
            if not node.stack_trace:
                frames = reversed([(frame.f_code, line) for frame, line in traceback.walk_stack(None)])
                node.stack_trace = "".join(
                    f'File "{code.co_filename}", line {line}, in {code.co_name}\n' for code, line in frames
                )
            return node

        def trace(self, root: Any, *args: Any, **kwargs: Any) -> Any:
            # torch imports its compiler to print and filter the frames, which takes seconds: see create_node
            self.record_stack_traces = False
            graph = super().trace(root, *args, **kwargs)
            with torch.no_grad():
                _Rewriter(torch.fx.GraphModule(root, graph), graph).run(*(value.clone() for value in inputs))
            return graph

    with replaced(quantize_fx, "QuantizationTracer", Tracer):
        yield


class _Rewriter(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a graph, lets later readers of what a node changed read that node instead, and gives nodes int8 forms."""

    def __init__(self, module: Any, graph: Any) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self._attributes = {node: self.fetch_attr(node.target) for node in graph.nodes if node.op == "get_attr"}

    def run_node(self, n: Any) -> Any:
        """Run a node, and see which of the values that are read later it has changed."""
        for node in [node for node in self.env if not any(user >= n for user in node.users)]:
            del self.env[node]  # its readers may have become others', which the base class would not know
        # views share their base's version, which every write in place counts up
        before = {node: _versions(value) for node, value in self.env.items()}
        attributes = {node: _versions(value) for node, value in self._attributes.items()}
        values, keywords = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        for node, versions in before.items():
            later = [user for user in node.users if user > n]
            if not later or _versions(self.env[node]) == versions:
                continue
            if self.env[node] is not result or "out" in n.kwargs:  # quantized kernels have no out=
                raise _refused(n, node)
            for user in later:
                user.replace_input_with(node, n)
        # `o = torch.zeros(4); o[:2] = x` is traced as a write into a constant of the graph, read by another name later
        for node, versions in attributes.items():
            if _versions(self._attributes[node]) != versions and any(user > n for user in node.users):
                raise _refused(n, node)
        use_int8_forms(n, values, keywords)
        return result


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _refused(writer: Any, node: Any) -> UnsupportedError:
    name = getattr(writer.target, "__name__", str(writer.target))
    what = f"{name} changes the tensor {node.name} in place{traced_line(writer.stack_trace)}, through a view of it, by"
    what += " out=, by another name or inside a module that is not traced, and it is read again: FX would read the old"
    what += " value"
    return UnsupportedError(what, "write it out of place (x = x.clamp(0, 1)), or use an ExecuTorch target")


# --- Clamps (relu, relu6, hardtanh, clamp) of quantized models: what QNNPACK gets wrong, and what a range does
# anyway.


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
            source = node.all_input_nodes[0]
            with converted.graph.inserting_before(node):
                held = converted.graph.call_method("contiguous", (source,))
            later = [user for user in source.users if user > node]
            node.replace_input_with(source, held)
            # what was clamped in place is read by its old name
            for user in later if _is_in_place(converted.graph, node) else ():
                user.replace_input_with(source, node)
    converted.recompile()
    return converted


class Clamped(NamedTuple):
    """A clamp of what a layer or a sum rounds, with the observers' nodes before and after it, and its bounds."""

    before: Any
    clamp: Any
    after: Any
    low: float
    high: float


def clamped_layers(prepared: Any, is_layer: Callable[[Any], bool]) -> list[Clamped]:
    """Return the clamps of what a layer or a sum rounds.

    Args:
        prepared: a graph with observers, of torch.ao.
        is_layer: whether a node multiplies by weights in int8.
    """

    def observes(node: Any) -> bool:
        is_module = isinstance(node, torch.fx.Node) and node.op == "call_module"
        return is_module and _is_activation_post_process(prepared.get_submodule(str(node.target)))

    found = []
    for clamp in prepared.graph.nodes:
        bounds = _fx_bounds(prepared, clamp)
        if bounds is None:
            continue
        before, after = clamp.args[0], [user for user in clamp.users if observes(user)]
        if not observes(before) or len(before.users) != 1 or len(clamp.users) != 1 or not after:
            continue
        value = before.args[0]
        # a number is added to the zero point, and multiplied by the scale: that kernel rounds nothing
        is_sum = _plain_name(value) in ("add", "mul") and all(observes(part) for part in value.args[:2])
        if len(value.users) == 1 and (is_sum or is_layer(value)):
            found.append(Clamped(before, clamp, after[0], *bounds))
    return found


def saturate_clamps(prepared: Any, is_layer: Callable[[Any], bool], engine: str) -> None:
    """Let the range of a clamp's output be that of the layer before it, in place; the clamp then may be its saturation.

    FX observes what a layer gives and what the clamp makes of it by one observer (torch 2.15,
    `_get_share_qparams_op_configs`), so that the layer loses the steps that the clamp cuts, and QNNPACK's clamp wants
    a contiguous copy besides. Where a kernel's saturation of 0 to 255 lies within the bounds, the clamp goes. FBGEMM's
    and oneDNN's activations use 0 to 127 of it, and keep theirs.

    Args:
        prepared: a graph with observers that have seen their ranges.
        is_layer: whether a node multiplies by weights in int8.
        engine: of the process.
    """
    for before, clamp, after, low, high in clamped_layers(prepared, is_layer):
        observer = prepared.get_submodule(str(after.target))
        prepared._modules[str(before.target)] = observer
        scale, zero_point = (float(value) for value in observer.calculate_qparams())
        is_full = engine == "qnnpack" and (observer.quant_min, observer.quant_max) == (0, 255)
        # a bound between two steps is half a step from one of them
        if is_full and low <= (0.51 - zero_point) * scale and high >= (254.49 - zero_point) * scale:
            after.replace_all_uses_with(before)
            prepared.graph.erase_node(after)
            prepared.graph.erase_node(clamp)
    prepared.graph.lint()
    prepared.recompile()


def _fx_bounds(graph: Any, node: Any) -> tuple[float, float] | None:
    """Return the least and the largest value that a clamp lets through; None of other nodes."""
    if node.op == "call_module":
        part = graph.get_submodule(str(node.target))
        return (float(part.min_val), float(part.max_val)) if isinstance(part, nn.Hardtanh) else None
    name = _plain_name(node).removesuffix("_")
    if name == "relu6":
        return 0.0, 6.0
    names, defaults = {
        "hardtanh": (("min_val", "max_val"), (-1.0, 1.0)),
        "clamp": (("min", "max"), (None, None)),
        "clip": (("min", "max"), (None, None)),
    }.get(name, ((), ()))
    if not names or not node.args:
        return None
    given = dict(zip(names, defaults, strict=True)) | dict(zip(names, node.args[1:], strict=False))
    low, high = (node.kwargs.get(key, given[key]) for key in names)
    if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        return None
    return (float("-inf") if low is None else float(low), float("inf") if high is None else float(high))


_TRANSPOSING = frozenset({"transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "T"})

_READING_STRIDES = frozenset(
    {
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate", "upsample"),
        *("instance_norm", "group_norm"),
    }
)


def contiguous_images(converted: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Let int8 kernels that read strides wrongly have contiguous tensors where something was transposed before.

    Args:
        converted: a quantized graph, changed in place and returned.
    """
    for node in list(converted.graph.nodes):
        if not _reads_strides(converted, node) or not node.all_input_nodes:
            continue
        source, waiting, seen = node.all_input_nodes[0], [node.all_input_nodes[0]], set()
        while waiting:
            before = waiting.pop()
            if before in seen or _multiplies(converted, before):  # which gives a new tensor
                continue
            if _plain_name(before) in _TRANSPOSING:
                with converted.graph.inserting_before(node):
                    node.replace_input_with(source, converted.graph.call_method("contiguous", (source,)))
                break
            seen.add(before)
            waiting += before.all_input_nodes
    converted.recompile()
    return converted


def _reads_strides(graph: Any, node: Any) -> bool:
    if node.op != "call_module":
        return _plain_name(node) in _READING_STRIDES
    kind = type(graph.get_submodule(str(node.target))).__name__.lower().lstrip("_")
    return kind in {name.replace("_", "") for name in _READING_STRIDES} or kind.startswith(("instancenorm", "upsampl"))


def _multiplies(graph: Any, node: Any) -> bool:
    return node.op == "call_module" and hasattr(graph.get_submodule(str(node.target)), "weight")


def _plain_name(node: Any) -> str:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return str(name).partition(".")[0] if node.op in ("call_method", "call_function") else ""


def _is_clamp(graph: Any, node: Any) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _MODULES)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _NAMES


def _is_in_place(graph: Any, node: Any) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.owning_module.get_submodule(str(node.target)), "inplace", False))
    name = node.target if node.op == "call_method" else node.target.__name__
    return name.endswith("_") or bool(node.kwargs.get("inplace", False))


def observe_after_activations(
    prepared: Any,
    is_observer: Callable[[Any], bool],
    smallest_scale: float,
    layers: Collection[str] = _SATURATING,
    fused: Collection[str] = (),
) -> None:
    """Let a layer and the activation behind it be rounded once where the runtime computes both as one, in place.

    The XNNPACK quantizer rounds what a layer gives and what the activation makes of it. A clamp it observes with the
    layer's output by one observer, so that the layer is quantized over a range that the clamp cuts. With the clamped
    values observed alone, each bound lies at or beyond an end of the range, and the clamp is its saturation.
    Clamps stay as they are whose bounds have no zero between them or lie closer than `smallest_scale` can resolve.

    Args:
        prepared: a graph with observers, of torchao.
        is_observer: tells its observers from other modules.
        smallest_scale: the observers' floor of a scale.
        layers: names of the operators whose output the runtime saturates.
        fused: names of the activations that the runtime computes in float on what the layer before has summed.
    """

    def observes(node: Any) -> bool:
        return node.op == "call_module" and is_observer(prepared.get_submodule(str(node.target)))

    def name_of(node: Any) -> str:
        return node.target.__name__.split(".")[0] if node.op == "call_function" else ""

    for activation in list(prepared.graph.nodes):
        bounds = _bounds(activation)
        saturates = bounds and bounds[0] <= 0 <= bounds[1] and bounds[1] - bounds[0] >= 255 * smallest_scale
        if not saturates and name_of(activation).removesuffix("_") not in fused:
            continue
        before, after = activation.args[0], list(activation.users)
        if not observes(before) or len(before.users) != 1 or len(after) != 1 or not observes(after[0]):
            continue
        layer = before.args[0]
        if name_of(layer) not in layers or len(layer.users) != 1:
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
    if name == "relu6":
        return 0.0, 6.0
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


# --- Attention and recurrent cells as linear layers: they multiply by raw parameters, which no method can exchange.


def open_layers(module: Any, inputs: tuple[Any, ...]) -> bool:
    """Replace what multiplies by raw parameters by its equal made of linear layers, in place.

    These are nn.MultiheadAttention, nn.LSTMCell, nn.GRUCell and nn.RNNCell. Attention with rows added to key and value
    (`add_bias_kv`, `add_zero_attn`) stays as it is.

    Args:
        module: the float module in eval mode.
        inputs: tensors that it takes.

    Returns:
        Whether there was attention.
    """
    of_rows = _cells_of_rows(module, inputs)
    has_attention = False
    for part in list(module.modules()):
        for name, child in part.named_children():
            is_attention = type(child) is nn.MultiheadAttention and child.bias_k is None and not child.add_zero_attn
            if is_attention:
                setattr(part, name, OpenAttention(child).eval().requires_grad_(False))
            elif type(child) in _OPEN:
                opened = _OPEN[type(child)](child, takes_rows=child in of_rows)
                setattr(part, name, opened.eval().requires_grad_(False))
            has_attention |= is_attention
    return has_attention


class OpenAttention(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """What nn.MultiheadAttention computes in eval mode, step by step (Vaswani et al. 2017, section 3.2.2)."""

    in_proj_bias = None  # keeps PyTorch's encoder layer off its fused path, which reads weights as tensors
    _qkv_same_embed_dim = True

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.batch_first = attention.num_heads, attention.batch_first
        joint = attention.in_proj_weight
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        projections = zip(separate if joint is None else joint.chunk(3), biases, strict=True)
        self.linear_q, self.linear_k, self.linear_v = (_linear(weight, bias) for weight, bias in projections)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  # a hint for the fused path; the mask says it too
    ) -> tuple[Any, Any]:
        """Take and return what nn.MultiheadAttention does."""
        alone = query.ndim == 2
        q, k, v = (self._rows(rows, alone) for rows in (query, key, value))
        q, k, v = (
            self._heads(layer(rows))
            for layer, rows in zip((self.linear_q, self.linear_k, self.linear_v), (q, k, v), strict=True)
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            mask = attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(-1, self.num_heads, *attn_mask.shape[1:])
            scores = _masked(scores, mask)
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]))
        weights = torch.softmax(scores, -1)
        rows = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        rows = rows[0] if alone else rows if self.batch_first else rows.transpose(0, 1)
        shown = weights.mean(1) if average_attn_weights else weights
        return rows, (shown[0] if alone else shown) if need_weights else None

    def _rows(self, rows: Any, alone: bool) -> Any:
        return rows.unsqueeze(0) if alone else rows if self.batch_first else rows.transpose(0, 1)

    def _heads(self, rows: Any) -> Any:
        batch, length, width = rows.shape
        return rows.reshape(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def _cells_of_rows(module: Any, inputs: tuple[Any, ...]) -> set[Any]:
    """Return the recurrent cells that forward calls without a batch axis, which int8 layers need."""
    found: set[Any] = set()

    def see(cell: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args[0] if args else kwargs["input"]).dim() == 1:
            found.add(cell)

    cells = [part for part in module.modules() if type(part) in _OPEN]
    hooks = [cell.register_forward_pre_hook(see, with_kwargs=True) for cell in cells]
    try:
        if cells:
            with torch.no_grad():
                module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _OpenCell(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """What a recurrent cell of PyTorch computes, by two linear layers. It is of the cell's type: forward may ask."""

    def __init__(self, cell: Any, *, takes_rows: bool = False) -> None:
        nn.Module.__init__(self)  # the cell's own makes raw parameters
        self.input_size, self.hidden_size, self.bias = cell.input_size, cell.hidden_size, cell.bias
        self.linear_ih = _linear(cell.weight_ih, cell.bias_ih)
        self.linear_hh = _linear(cell.weight_hh, cell.bias_hh)
        self.takes_rows = takes_rows

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Take and return what the cell of PyTorch does."""
        states: tuple[Any, ...] = () if hx is None else (hx[0], hx[1]) if isinstance(self, nn.LSTMCell) else (hx,)
        if self.takes_rows:
            input, states = input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
        of_input = self.linear_ih(input)
        if hx is None:
            states = (torch.zeros_like(of_input[..., : self.hidden_size]),) * 2
        result = self._step(of_input, self.linear_hh(states[0]), states[-1])
        if not self.takes_rows:
            return result
        return tuple(one.squeeze(0) for one in result) if isinstance(result, tuple) else result.squeeze(0)

    def _step(self, of_input: Any, of_hidden: Any, state: Any) -> Any:
        """Return the new state of both products and the state before, of an LSTM the cell state."""
        raise NotImplementedError


class OpenLSTMCell(_OpenCell, nn.LSTMCell):  # type: ignore[misc]
    """nn.LSTMCell by linear layers."""

    def _step(self, of_input: Any, of_hidden: Any, state: Any) -> Any:
        return lstm_step(of_input, of_hidden, state)


class OpenGRUCell(_OpenCell, nn.GRUCell):  # type: ignore[misc]
    """nn.GRUCell by linear layers."""

    def _step(self, of_input: Any, of_hidden: Any, state: Any) -> Any:
        return gru_step(of_input, of_hidden, state)


class OpenRNNCell(_OpenCell, nn.RNNCell):  # type: ignore[misc]
    """nn.RNNCell by linear layers."""

    def __init__(self, cell: Any, *, takes_rows: bool = False) -> None:
        super().__init__(cell, takes_rows=takes_rows)
        self.nonlinearity = cell.nonlinearity

    def _step(self, of_input: Any, of_hidden: Any, state: Any) -> Any:  # noqa: ARG002
        gates = of_input + of_hidden
        return torch.tanh(gates) if self.nonlinearity == "tanh" else torch.relu(gates)


_OPEN = {nn.LSTMCell: OpenLSTMCell, nn.GRUCell: OpenGRUCell, nn.RNNCell: OpenRNNCell}


def _linear(weight: Any, bias: Any) -> Any:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _masked(scores: Any, mask: Any) -> Any:
    return scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
