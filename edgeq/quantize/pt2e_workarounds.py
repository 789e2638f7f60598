"""What the PT2E route gets wrong upstream, and the rewrites of a captured graph that avoid it.

Seen in torchao 0.18.0 and ExecuTorch 1.5.1 with torch 2.15.0 and onnxruntime 1.31.1 (`fx_workarounds` has the list of
the FX route):

- `prepare_pt2e` folds every batch norm into the layer before it, although something else reads that layer's output, or
  other calls use its weights (`torchao.quantization.pt2e.utils._fuse_conv_bn_`, `_fuse_linear_bn_`): `prepare_layers`.
- Of calls that share weights, the quantizer annotates the first alone; and XNNPACK's serializer writes a shared bias
  once, with the scales of one call, so that creating the other's operator fails (`invalid_parameter`):
  `prepare_layers`.
- The quantizer makes floats of the numbers that integers are added to or multiplied by (`_convert_scalars_to_attrs`),
  and a position plus an offset can then index nothing: `keep_whole_numbers`.
- The quantizer rounds the products of a softmax's output to int8, for any number of values: `leave_wide_softmax`.
- It rounds positions in pixels, and what a flow or an offset adds to them, to the 256 values of int8:
  `coordinates`.
- `convert_pt2e` gives each reader of a quantized value a dequantize node of its own, and `prepare_pt2e` puts an
  observer right behind the node that it observes: what is written into that value afterwards, through a view, is lost:
  `functional`.
- XNNPACK's `ChannelsLastTaggedReshapePass` exchanges a dequantize node for all its readers when the output wants
  it in NCHW, also for those that it has given NHWC before, so that `y.sigmoid(), y` does not run: `separate_outputs`.
- The quantizer gives all parts of a concatenation and its output one observer, and a mask of -1e9 takes the range of
  what it is added to: `shared_ranges`.
- It observes what a layer gives and what the clamp behind it gives by one observer, whose range the clamp cuts; ONNX
  Runtime then computes layer and clamp apart: `fx_workarounds.observe_after_activations`.
- It gives a SiLU neither input nor output in int8 of its own, and ONNX Runtime computes it in float: `part_silu`.
- It observes what comes before a relu6 or a clamp apart from what comes behind it. XNNPACK merges the clamp into the
  layer, and rounds once where the graph rounds twice, by up to 5 steps: `plain_clamps` writes them as the hardtanh or
  the relu that the delegate merges, and `fx_workarounds.observe_after_activations` leaves the rounding behind it alone.
- `convert_pt2e` leaves the float weights in the graph's modules: `pt2e._without_unused`.
- `prepare_qat_pt2e` resets the eps and the momentum of batch norms: `pt2e.qat_int8` does without it.
- ExecuTorch lowers some convolutions of dynamic int8, on which its runtime fails: `pt2e.dynamic_int8` leaves them out.
- XNNPACK's passes want every PReLU's input in NHWC: `lower.executorch` writes those of other ranks as two relus.
- ExecuTorch has no `_embedding_bag_forward_only` and no `_upsample_bicubic2d_aa`, and quantizers take weights that
  forward computes for activations: `capture` writes bags as lookups, and computes constants once.
- XNNPACK's partitioner takes operators on whose arguments its passes then fail (a maximum over channels):
  `lower.executorch` tries again without them. It takes a pad in float behind an int8 value too, which its runtime fails
  to create; and a partition that gives out a value in another layout than it computes it in ends with KeyError: 'val'.
- ExecuTorch's kernel takes no pads of negative sizes: `capture` writes them as slices.
- Quantizers take filters that forward computes for weights to be rounded: `pt2e.prepare` leaves those layers in float.
- onnxscript 0.7.2 gives attention rows that see nothing the mean of all values, or NaN: `lower.onnx` makes them zero.

Every rewrite leaves a graph alone that has no such form, so that the artifacts of ordinary models stay what they were.
This file needs torch to load.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgeq.core.errors import UnsupportedError, traced_line
from edgeq.core.speedups import decomposed
from edgeq.quantize.capture import with_modules
from edgeq.quantize.fake_quant import part_at

_aten = torch.ops.aten

_CONVOLUTIONS = frozenset(
    {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default}
    | {_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding}
)

_TRANSPOSED = frozenset({_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input})

LAYERS = _CONVOLUTIONS | _TRANSPOSED | {_aten.linear.default}

_NORMS = frozenset({_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default})

# where the schema does not say that the result may be the argument itself
_MAY_RETURN_ITS_INPUT = frozenset({_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default})

_DEPTHWISE = {3: _aten.conv1d.default, 4: _aten.conv2d.default}

_GROUPS = 6  # of a transposed convolution: (input, weight, bias, stride, padding, output_padding, groups, dilation)

_SOFTMAX = frozenset({_aten.softmax.int, _aten._softmax.default})

_WIDE = 32  # values that sum to 1

# in a node's `meta`: the quantizer leaves it alone
IN_FLOAT = "edgeq_in_float"

# Below, the scale floor of the XNNPACK quantizer (2^-12) would round a norm's factors by more than half a step of its
# output: 2^-13 of the input against 1/512 of its largest factor.
_LEAST_FACTOR = 2**-4


def functional(program: Any) -> Any:
    """Return an exported program without writes that a quantized graph would lose; itself where it has none.

    `y[:, :4] = f(y)` and `y[:, 0].mul_(2)` become `slice_scatter` and the like (torch's functionalization).
    """
    if not _reads_after_write(program.graph):
        return program
    return with_modules(decomposed(program, {}))


def without_copies(graph: Any) -> Any:
    """Let the readers of a functionalized write read its values themselves; aten.copy has no derivative to train by.

    Args:
        graph: a torch.fx.GraphModule of an exported program, changed in place and returned.
    """
    for node in list(graph.graph.nodes):
        if node.target is not _aten.copy.default or not isinstance(node.args[1], torch.fx.Node):
            continue
        into, values = (arg.meta["val"] for arg in node.args[:2])
        if into.dtype != values.dtype:
            continue
        same = node.args[1]
        if into.shape != values.shape:
            with graph.graph.inserting_before(node):
                same = graph.graph.call_function(_aten.expand.default, (same, list(into.shape)))
            same.meta.update(node.meta)
        node.replace_all_uses_with(same)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _reads_after_write(graph: Any) -> bool:
    """Whether a value is read after a write to its memory that went by another name.

    After `b = a.relu_()` torch.export lets later readers of `a` read `b`, which is sound.
    """
    memory: dict[Any, Any] = {}  # the node that a node's memory is of
    written: dict[Any, set[Any]] = defaultdict(set)  # by memory: the names that a write made stale
    members: dict[Any, set[Any]] = defaultdict(set)
    for node in graph.nodes:
        if any(source in written[memory[source]] for source in node.all_input_nodes):
            return True
        aliased, is_write = _aliased(node)
        owner = memory[aliased] if aliased is not None else node
        if is_write and aliased is not None:
            written[owner] |= members[owner]
        memory[node] = owner
        members[owner].add(node)
    return False


def _aliased(node: Any) -> tuple[Any, bool]:
    """Return which argument's memory a node's result may be, else None, and whether the node writes into it."""
    if node.op != "call_function" or not node.args:
        return None, False
    first = node.args[0] if isinstance(node.args[0], torch.fx.Node) else None
    if node.target is operator.getitem or node.target in _MAY_RETURN_ITS_INPUT:
        return first, False
    schema = getattr(node.target, "_schema", None)
    if schema is None or first is None or schema.arguments[0].alias_info is None:
        return None, False
    return first, bool(schema.arguments[0].alias_info.is_write)


def prepare_layers(graph: Any, *, norms_in_float: Callable[[Any], bool]) -> None:
    """Give every call of a layer weights of its own, and take out the norms that torchao must not fold, in place.

    A norm is left to torchao where the layer before it has no other reader. Any other becomes a depthwise convolution
    of size 1, whose int8 weights, one to a channel, are exact but for their sign and scale; or an affine in float:
    where the norm is to stay in float, its factors are too small for the quantizer's scales, or its input is the
    model's, whose columns may differ in range as those of a table do.

    Args:
        graph: a torch.fx.GraphModule of an exported program.
        norms_in_float: whether a node of a norm is to stay in float.
    """
    changed = _separate(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _NORMS and not _may_fold(node):
            _replace_norm(graph, node, in_float=norms_in_float(node))
            changed = True
    if changed:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def plain_clamps(graph: Any) -> None:
    """Write relu6, and clamps of floats between numbers, as hardtanh or relu, which compute the same."""
    for node in graph.graph.nodes:
        if node.target in (_aten.relu6.default, _aten.relu6_.default):
            bounds: list[Any] = [0.0, 6.0]
        elif node.target in (_aten.clamp.default, _aten.clamp_.default):
            left_out = ("min", "max")[len(node.args) - 1 :]
            bounds = [*node.args[1:], *(node.kwargs.get(name) for name in left_out)]
        else:
            continue
        low, high = bounds
        if not all(bound is None or isinstance(bound, int | float) for bound in bounds):
            continue
        if not node.meta["val"].dtype.is_floating_point:
            continue
        in_place = node.target in (_aten.relu6_.default, _aten.clamp_.default)
        if low is not None and high is not None:
            node.target = _aten.hardtanh_.default if in_place else _aten.hardtanh.default
            node.args, node.kwargs = (node.args[0], float(low), float(high)), {}
        elif low == 0 and high is None:
            node.target = _aten.relu_.default if in_place else _aten.relu.default
            node.args, node.kwargs = (node.args[0],), {}
    graph.recompile()


def part_silu(graph: Any) -> None:
    """Write each SiLU of what a layer gives as the product with its sigmoid, in place: ONNX Runtime has both in int8.

    Of a whole one it makes floats, and int8 of what it gives again (1.31): efficientnet_b0 took 1.4 times as long.
    """
    for node in list(graph.graph.nodes):
        if node.target not in (_aten.silu.default, _aten.silu_.default) or node.args[0].target not in LAYERS | _NORMS:
            continue
        with graph.graph.inserting_before(node):
            sigmoid = graph.graph.call_function(_aten.sigmoid.default, (node.args[0],))
            product = graph.graph.call_function(_aten.mul.Tensor, (node.args[0], sigmoid))
        for made in (sigmoid, product):
            made.meta.update(node.meta)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def keep_whole_numbers(graph: Any) -> None:
    """Write the numbers that integers are added to or multiplied by as integers, in place."""
    for node in list(graph.graph.nodes):
        if node.target not in (_aten.add.Tensor, _aten.mul.Tensor) or node.meta["val"].is_floating_point():
            continue
        for number in [arg for arg in node.args if not isinstance(arg, torch.fx.Node)]:
            name = next(free for i in itertools.count() if not hasattr(graph, free := f"whole_number_{i}"))
            value = torch.tensor(number, dtype=node.meta["val"].dtype)
            graph.register_buffer(name, value)
            with graph.graph.inserting_before(node):
                held = graph.graph.get_attr(name)
            held.meta["val"] = node.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
            node.args = tuple(held if arg is number else arg for arg in node.args)
    graph.recompile()


def leave_wide_softmax(graph: Any) -> None:
    """Mark what adds and multiplies the values of a wide softmax, as an expected coordinate does, to stay in float.

    Of many values that sum to 1 most are below half a step of the largest one, and rounding takes them all away.
    """
    wide = set(wide_softmaxes(graph.graph))
    for node in graph.graph.nodes:
        spreads = node.op == "call_function" and node.target not in LAYERS | _SOFTMAX
        if spreads and not wide.isdisjoint(node.all_input_nodes):
            wide.add(node)
            node.meta[IN_FLOAT] = True


def wide_softmaxes(graph: Any) -> list[Any]:
    """Return the softmaxes over many values."""
    found = [node for node in graph.nodes if node.op == "call_function" and node.target in _SOFTMAX]
    return [node for node in found if node.meta["val"].shape[node.args[1]] > _WIDE]


def leave_scalars_and_empties(graph: Any) -> None:
    """Keep values without dimensions or elements in float: annotated, but as nothing.

    XNNPACK's quantizer (ExecuTorch 1.5.1) gives `x.mean()` and `x[:, :0]` their input's range, also where its filter
    leaves them out. Its partitioner then takes neither, and nothing else dequantizes them: "Missing out variants".
    """
    import torch
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and torch.is_tensor(value) and (value.dim() == 0 or 0 in value.shape):
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)


def samplers(graph: Any) -> list[Any]:
    """Return the nodes of `grid_sample`."""
    return [node for node in graph.nodes if str(node.target).startswith("aten.grid_sampler")]


def coordinates(graph: Any) -> set[Any]:
    """Return what computes the positions of `grid_sample`, back to the layers and inputs that they come from.

    A position has to be exact to a fraction of a pixel. Of 256 pixels a step of int8 is a whole one: a deformable
    convolution with rounded positions gave 2.8 dB on 256 × 256 pixels, and 25.9 dB with these nodes in float.
    """
    found: set[Any] = set()
    left = [node.args[1] for node in samplers(graph)]
    while left:
        node = left.pop()
        is_between = isinstance(node, torch.fx.Node) and node.op == "call_function" and node.target not in LAYERS
        if is_between and node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def separate_outputs(converted: Any) -> None:
    """Give the outputs of a converted graph dequantize nodes of their own where something else reads those too."""
    (output,) = (node for node in converted.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        if "dequantize_per_tensor" in str(node.target) and len(node.users) > 1:
            with converted.graph.inserting_before(output):
                own = converted.graph.node_copy(node)
            output.replace_input_with(node, own)
    converted.recompile()


def _separate(graph: Any) -> bool:
    """Give the second and later calls that use a layer's parameter copies of it: same memory, another name."""
    callers: dict[Any, list[Any]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in LAYERS:
            for source in dict.fromkeys(node.args[1:3]):
                if isinstance(source, torch.fx.Node) and source.op == "get_attr":
                    callers[source].append(node)
    changed = False
    for source, nodes in callers.items():
        for index, node in enumerate(nodes[1:], 2):
            value = part_at(graph, source.target)
            name = _free_name(graph, f"{source.target}_call{index}".replace(".", "_"))
            setattr(graph, name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
            with graph.graph.inserting_before(node):
                copy = graph.graph.get_attr(name)
            copy.meta.update(source.meta)
            node.args = tuple(copy if arg is source else arg for arg in node.args)
            changed = True
    return changed


def _may_fold(norm: Any) -> bool:
    """Whether torchao folds a norm into the layer before it, and rightly."""
    layer = norm.args[0]
    if layer.op != "call_function" or layer.target not in LAYERS or set(layer.users) != {norm}:
        return False
    weight = layer.args[1]
    if weight.op != "get_attr" or len(weight.users) != 1 or norm.args[3] is None:
        return False
    if layer.target is _aten.linear.default:
        return bool(layer.args[0].meta["val"].dim() == 2)  # of more axes, the norm is along another one
    # of more groups, the layout of a transposed convolution's weight is not what torch.nn.utils.fusion expects
    return layer.target not in _TRANSPOSED or len(layer.args) <= _GROUPS or layer.args[_GROUPS] == 1


def _replace_norm(graph: Any, norm: Any, *, in_float: bool) -> None:
    """Replace a norm by what computes the same from constants.

    Raises:
        UnsupportedError: it takes its statistics from its input, and torchao would fold others into the layer before.
    """
    source, weight, bias, mean, var = norm.args[:5]
    if mean is None or (norm.target is _aten.batch_norm.default and norm.args[5]):
        if source.target not in LAYERS:
            return
        what = f"a batch norm takes its statistics from each batch{traced_line(norm.meta.get('stack_trace'))}"
        raise UnsupportedError(what, "use running statistics (track_running_stats=True), or nn.InstanceNorm")
    eps = norm.args[7] if norm.target is _aten.batch_norm.default else norm.args[6]
    mean, var = _value(graph, mean), _value(graph, var)
    factor = torch.rsqrt(var.double() + eps) * (1.0 if weight is None else _value(graph, weight).double())
    shift = -mean.double() * factor + (0.0 if bias is None else _value(graph, bias).double())
    factor, shift = factor.to(mean.dtype), shift.to(mean.dtype)
    rank = source.meta["val"].dim()
    in_float = in_float or rank not in _DEPTHWISE or bool(factor.abs().max() < _LEAST_FACTOR) or _is_of_input(source)
    spatial = rank - 2
    with graph.graph.inserting_before(norm):
        if in_float:
            shape = (1, -1, *(1,) * spatial)
            factor, shift = (_constant(graph, norm, value.view(shape)) for value in (factor, shift))
            scaled = _call(graph, norm, _aten.mul.Tensor, (source, factor))
            result = _call(graph, norm, _aten.add.Tensor, (scaled, shift))
            scaled.meta[IN_FLOAT] = result.meta[IN_FLOAT] = True
        else:
            kernel = _constant(graph, norm, factor.view(-1, 1, *(1,) * spatial))
            offset = _constant(graph, norm, shift)
            ones, zeros = [1] * spatial, [0] * spatial
            args = (source, kernel, offset, ones, zeros, ones, factor.numel())
            result = _call(graph, norm, _DEPTHWISE[rank], args)
    for replaced in [norm] if norm.target is _aten.batch_norm.default else list(norm.users):
        replaced.replace_all_uses_with(result)


def _is_of_input(node: Any) -> bool:
    """Whether a value reaches back to an input of the model with no layer between."""
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        if node not in seen and node.target not in LAYERS:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _call(graph: Any, norm: Any, target: Any, args: tuple[Any, ...]) -> Any:
    """Add a node in the norm's place, which keeps its module and its line."""
    node = graph.graph.call_function(target, args)
    node.meta.update(norm.meta)
    node.meta["val"] = norm.args[0].meta["val"]  # of the same shape and dtype
    return node


def _constant(graph: Any, norm: Any, value: Any) -> Any:
    """Add a parameter, and the node that reads it."""
    name = _free_name(graph, f"{norm.name}_constant")
    setattr(graph, name, nn.Parameter(value.contiguous(), requires_grad=False))
    node = graph.graph.get_attr(name)
    node.meta["val"] = norm.args[0].meta["val"].fake_mode.from_tensor(value, static_shapes=True)
    return node


def _free_name(graph: Any, name: str) -> str:
    """Return a name for an attribute of `graph` that it does not have yet."""
    return next(free for i in itertools.count() if not hasattr(graph, free := f"{name}_{i}"))


def _value(graph: Any, node: Any) -> Any:
    """Return the tensor that a get_attr node reads."""
    value = part_at(graph, node.target)
    return value.detach() if isinstance(value, torch.Tensor) else value
