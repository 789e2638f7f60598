"""Products with a parameter, written as the linear layers that they are.

Quantizers and int8 kernels know a linear layer by its operator. They leave `x @ w`, `torch.einsum` and `torch.addmm`
(as of a Conv1D in the manner of GPT-2) in float, whose weights are the same but for their order. A graph without such
products stays what it was, and so do products that int8 would make noise of: of positions, of angles, and of the values
of a wide softmax. This file needs torch to load.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgeq.core.results.model import BATCHED, EXACT
from edgeq.core.system import Uncompiled
from edgeq.quantize.capture import MODULE_KEY, written_into
from edgeq.quantize.fake_quant import part_at
from edgeq.quantize.pt2e_workarounds import LAYERS, coordinates, wide_softmaxes

_aten = torch.ops.aten

_ADDED = frozenset({_aten.addmm.default, _aten.baddbmm.default})  # (added, left, right)

_MATMUL = frozenset({_aten.matmul.default, _aten.mm.default, _aten.bmm.default}) | _ADDED

_FUNCTIONS = frozenset(
    {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot"}
    | {"addmm_", "baddbmm_"}
)

# what gives the sine of an angle
_ANGLES = ("aten.sin.", "aten.cos.", "aten.sin_.", "aten.cos_.")

# in a node's `meta`: the name of the layer that a product became; why a product with a constant stays
PRODUCT = "edgeq_product"
WHY_IN_FLOAT = "edgeq_why_in_float"


class _Product(NamedTuple):
    """A product of two tensors, as an einsum writes it, with a label for each axis.

    Attributes:
        of_left, of_right, of_result: labels by axis.
        added: what is added to it: a node, or None.
    """

    left: Any
    right: Any
    of_left: Sequence[Any]
    of_right: Sequence[Any]
    of_result: Sequence[Any]
    added: Any = None


def multiplies_constants(module: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether forward multiplies by parameters or buffers, or by what it computes from these alone, but in a layer.

    Tables of embeddings do not count: a product and a lookup share one that is stored once.

    Args:
        module: the float module in eval mode.
        inputs: tensors that it takes.
    """
    held = {_memory(value) for value in (*module.parameters(), *module.buffers())}
    held -= {_memory(part.weight) for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)}
    computed: list[Any] = []  # so that no memory is used again
    found = False

    class Watch(Uncompiled, TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal found
            result = func(*args, **(kwargs or {}))
            given = torch.utils._pytree.tree_leaves((args, kwargs))
            tensors = [arg for arg in given if isinstance(arg, torch.Tensor)]
            fixed = [_memory(tensor) in held for tensor in tensors]
            name = getattr(func, "__name__", "")
            found = found or (name in _FUNCTIONS and any(fixed[-2:]) and not all(fixed))
            if fixed and all(fixed) and isinstance(result, torch.Tensor):
                computed.append(result)
                held.add(_memory(result))
            return result

    with torch.no_grad(), Watch():
        module(*inputs)
    return found


def _memory(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else id(tensor)


def write_as_linear(graph: Any) -> None:
    """Write products with a parameter, a buffer, or what is computed from these alone, as linear layers, in place.

    The weights are the parameter's values in the order [out, in]; a constant that is added behind becomes the bias. A
    layer is named after the parameter, or after its module where that is no more than a layer (`weight` of a Conv1D).
    The others stay, with the reason in their nodes' `meta`: "" where no layer computes them, as a sum over the rows.

    Args:
        graph: a torch.fx.GraphModule of an exported program.
    """
    products = [node for node in graph.graph.nodes if _product(node) is not None]
    exact = _exact(graph.graph, products)
    constant = _constants(graph)
    weights: dict[Any, Any] = {}  # by their values and the order of these: their nodes
    sources: set[str] = set()
    for node in products:
        product = _product(node)  # again: what it reads may be a layer by now
        if product is None or node.meta["val"].dtype != torch.float32:
            continue
        left, right = constant(product.left), constant(product.right)
        if (left is None) == (right is None):
            continue
        if right is None:
            product = product._replace(
                left=product.right, right=product.left, of_left=product.of_right, of_right=product.of_left
            )
        own = _sources(product.right)
        name = _name_after(node, own[0])
        weight = left if right is None else right
        why: str | None
        if node in exact:
            why = EXACT if _terms(product) > 1 else ""
        else:
            why = _as_linear(graph, node, product, weight, constant, weights, name)
        if why is None:
            sources.update(own)
            continue
        node.meta[WHY_IN_FLOAT] = why
        if why:
            _name(node, name, "torch.nn.Parameter")
    if sources:
        graph.graph.eliminate_dead_code()
        read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
        for source in sources - read:
            place, _, leaf = source.rpartition(".")
            delattr(graph.get_submodule(place), leaf)
        graph.recompile()


def _exact(graph: Any, products: Collection[Any]) -> set[Any]:
    """Return the products that int8 would make noise of, as it would not of layers further away.

    They compute positions of `grid_sample`, or angles, such as a rotary embedding's; or they multiply the values of a
    wide softmax, most of which are below half a step of the largest.
    """
    found = coordinates(graph)
    angles = [node for node in graph.nodes if str(node.target).startswith(_ANGLES)]
    for starts, nexts in ((angles, "all_input_nodes"), (wide_softmaxes(graph), "users")):
        left, seen = [*starts], set(starts)
        while left:
            node = left.pop()
            for other in [other for other in getattr(node, nexts) if other not in seen]:
                seen.add(other)
                if other in products:
                    found.add(other)
                elif other.op == "call_function" and other.target not in LAYERS:
                    left.append(other)
    return found


def _product(node: Any) -> _Product | None:
    """Return the product of two tensors that a node computes, else None."""
    if node.op != "call_function" or not all("val" in each.meta for each in (node, *node.all_input_nodes)):
        return None
    if node.target in _MATMUL:
        if any(number != 1 for number in node.kwargs.values()):  # alpha, beta
            return None
        added, left, right = node.args[:3] if node.target in _ADDED else (None, *node.args[:2])
        ranks = [factor.meta["val"].dim() for factor in (left, right)]
        if min(ranks) < 2:
            return None
        batch = [f"batch{axis}" for axis in range(max(ranks) - 2, 0, -1)]
        first, second = (batch[len(batch) - (rank - 2) :] for rank in ranks)
        return _Product(left, right, [*first, "m", "k"], [*second, "k", "n"], [*batch, "m", "n"], added)
    if node.target is _aten.einsum.default and len(node.args[1]) == 2:
        left, right = node.args[1]
        labels = _labels(node.args[0], [factor.meta["val"].dim() for factor in (left, right)])
        if any(len(set(own)) < len(own) for own in labels[:2]):  # a diagonal
            return None
        return _Product(left, right, *labels)
    if node.target is _aten.tensordot.default:
        left, right, axes, others = node.args[:4]
        of_left: list[Any] = [f"left{axis}" for axis in range(left.meta["val"].dim())]
        of_right: list[Any] = [f"right{axis}" for axis in range(right.meta["val"].dim())]
        for axis, other in zip(axes, others, strict=True):
            of_right[other] = of_left[axis]
        of_result = [label for label in (*of_left, *of_right) if (label in of_left) != (label in of_right)]
        return _Product(left, right, of_left, of_right, of_result)
    return None


def _labels(equation: str, ranks: Sequence[int]) -> list[list[str]]:
    """Return the labels of each axis of an einsum's two factors, and of its result."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:  # as torch.einsum's documentation has it: the labels that appear once, in their order
        names = operands.replace(",", "").replace(".", "")
        result = "." * 3 * ("..." in operands) + "".join(sorted(name for name in names if names.count(name) == 1))
    factors = operands.split(",")
    covered = [rank - len(factor.replace(".", "")) for factor, rank in zip(factors, ranks, strict=True)]
    others = [f"batch{axis}" for axis in range(max(covered), 0, -1)]  # what "..." stands for, the last axis as 1
    labels = []
    for text, count in zip((*factors, result), (*covered, len(others)), strict=True):
        before, dots, behind = text.partition("...")
        labels.append([*before, *(others[len(others) - count :] if dots else ()), *behind])
    return labels


def _as_linear(
    graph: Any,
    node: Any,
    product: _Product,
    weight: Any,
    constant: Callable[[Any], Any],
    weights: dict[Any, Any],
    name: str,
) -> str | None:
    """Write a product whose right factor is the constant `weight` as a linear layer.

    One over a single value is no layer: it scales each value by another, as a table of frequencies does positions.

    Returns:
        None where it is one now; else why it is none, "" without a reason of its own.
    """
    x, of_x, of_weight, of_result = product.left, list(product.of_left), list(product.of_right), product.of_result
    given = dict(zip(of_x, x.meta["val"].shape, strict=True))
    # where one factor has a size of 1, or is one matrix over and over, the axis is the other's alone
    alone = [label for label in of_weight if label in of_x and label in of_result]
    weight = _once(weight, [of_weight.index(label) for label in alone])
    sizes = dict(zip(of_weight, weight.shape, strict=True))
    of_one = [label for label in alone if sizes[label] == 1]
    spread = [label for label in alone if sizes[label] != 1 and isinstance(given[label], int) and given[label] == 1]
    if len(of_one) + len(spread) < len(alone):
        return BATCHED
    matrix_labels = [label for label in of_weight if label not in of_one]
    x_labels = [label for label in of_x if label not in spread]
    inner = [label for label in x_labels if label in matrix_labels]
    rows = [label for label in x_labels if label not in inner]
    columns = [label for label in of_result if label in matrix_labels]
    is_summed = any(label not in of_result for label in (*rows, *set(matrix_labels).difference(inner)))
    is_spread = any(given[label] != sizes[label] for label in inner)
    if is_summed or is_spread or not rows or not columns or _terms(product) == 1:
        return ""
    order = [*columns, *inner]
    width = math.prod(sizes[label] for label in columns)

    def call(target: Any, *args: Any) -> Any:
        result = graph.graph.call_function(target, args)
        result.meta.update({key: value for key, value in node.meta.items() if key != "val"})
        values = torch.fx.node.map_arg(args, lambda arg: arg.meta["val"])
        result.meta["val"] = target(*values)
        return result

    squeezed = weight.reshape([sizes[label] for label in matrix_labels])
    matrix = squeezed.permute([matrix_labels.index(label) for label in order]).reshape(width, -1)
    added, last, bias = product.added, node, None
    if list(of_result[-len(columns) :]) == columns:
        last, bias = _sum(constant, node, added, [sizes[label] for label in columns])
    with graph.graph.inserting_before(node):
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride(), tuple(map(of_weight.index, order)))
        if key not in weights:
            weights[key] = _held(graph, x, product.right, matrix)
        held_bias = None if bias is None else _parameter(graph, x, f"{name}_bias", bias)
        value = x
        if spread:
            value = call(_aten.squeeze.dims, value, [of_x.index(label) for label in spread])
        arranged = [x_labels.index(label) for label in (*rows, *inner)]
        if arranged != sorted(arranged):
            value = call(_aten.permute.default, value, arranged)
        if len(inner) > 1:
            value = call(_aten.flatten.using_ints, value, len(rows), len(rows) + len(inner) - 1)
        value = call(_aten.linear.default, value, weights[key], *([] if held_bias is None else [held_bias]))
        value.meta[PRODUCT] = name
        _name(value, name, "torch.nn.Linear")
        if len(columns) > 1:
            value = call(_aten.unflatten.int, value, len(rows), [sizes[label] for label in columns])
        labels = [*rows, *columns]
        if labels != list(of_result):
            value = call(_aten.permute.default, value, [labels.index(label) for label in of_result])
        if added is not None and bias is None:
            value = call(_aten.add.Tensor, value, added)
    last.replace_all_uses_with(value)
    return None


def _once(weight: Any, axes: Sequence[int]) -> Any:
    """Return what of a constant is not the same values over and over along one of the axes."""
    for axis in axes:
        if weight.stride(axis) == 0:
            weight = weight.narrow(axis, 0, 1)
    return weight


def _terms(product: _Product) -> int:
    """Return how many products of two numbers each value of the result adds up."""
    sizes = zip(product.of_right, product.right.meta["val"].shape, strict=True)
    return math.prod(size for label, size in sizes if label in product.of_left and label not in product.of_result)


def _sum(constant: Callable[[Any], Any], node: Any, added: Any, columns: list[int]) -> tuple[Any, Any]:
    """Return the node that a layer with a bias replaces, and the bias, [out]; the product's and None without one."""
    last, other = (node, added) if added is not None else _added_behind(node)
    bias = _bias(constant(other), columns, node.meta["val"].dim())
    return (node, None) if bias is None else (last, bias)


def _added_behind(node: Any) -> tuple[Any, Any]:
    """Return the sum that alone reads a product, and what it adds; the node itself and None where it is no sum."""
    readers = [*node.users]
    if len(readers) != 1 or readers[0].target is not _aten.add.Tensor or readers[0].kwargs:
        return node, None
    others = [arg for arg in readers[0].args if arg is not node]
    return (readers[0], others[0]) if len(others) == 1 else (node, None)


def _bias(value: Any, columns: list[int], rank: int) -> Any:
    """Return the bias, [out], that adds what `value` does to a layer's output [..., *columns] of a rank, else None."""
    if value is None or value.dtype != torch.float32 or value.dim() > rank:
        return None
    is_bias = list(value.shape[-len(columns) :]) == columns and value.numel() == math.prod(columns)
    return value.reshape(-1) if is_bias else None


def _constants(graph: Any) -> Callable[[Any], Any]:
    """Return what gives the value of a node that depends on no input and that nothing writes into, and None of others.

    It keeps the values, so that equal addresses mean equal values.
    """
    written = {node.target for node in written_into(graph.graph)}
    fixed: set[Any] = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "get_attr":
            is_fixed = node.target not in written and isinstance(part_at(graph, node.target), torch.Tensor)
        else:
            is_fixed = node.op == "call_function" and schema is not None and not schema.is_mutable
            is_fixed = is_fixed and bool(node.all_input_nodes) and fixed.issuperset(node.all_input_nodes)
        if is_fixed:
            fixed.add(node)
    values: dict[Any, Any] = {}

    def value(node: Any) -> Any:
        if node not in values:
            if node.op == "get_attr":
                values[node] = part_at(graph, node.target).detach()
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), value)
                with torch.no_grad():
                    values[node] = node.target(*args, **kwargs)
        return values[node]

    def constant(node: Any) -> Any:
        found = value(node) if node in fixed else None
        return found if isinstance(found, torch.Tensor) else None

    return constant


def _sources(node: Any) -> list[str]:
    """Return the names of the parameters and buffers that a constant is computed from."""
    if node.op == "get_attr":
        return [str(node.target)]
    return [name for source in node.all_input_nodes for name in _sources(source)]


def _name_after(node: Any, source: str) -> str:
    """Return the name of the layer that a product is, as the user knows it."""
    owner, _, leaf = source.rpartition(".")
    return owner if owner and leaf == "weight" and innermost(node) == owner else source


def innermost(node: Any) -> str:
    """Return the name of the innermost module that a node belongs to; "" for the whole model."""
    stack = [*node.meta.get("nn_module_stack", {}).values()]
    return str(stack[-1][0]).removeprefix("L['self'].").removeprefix("L__self__.") if stack else ""


def _name(node: Any, name: str, kind: str) -> None:
    """Let a node belong to a layer of a name, in the table of layers and for --keep-fp32."""
    node.meta["custom"] = {**node.meta.get("custom", {}), MODULE_KEY: name}
    if innermost(node) != name:  # the whole dict is replaced, since nodes may share one
        node.meta["nn_module_stack"] = {**node.meta.get("nn_module_stack", {}), name: (name, kind)}


def _held(graph: Any, x: Any, source: Any, matrix: Any) -> Any:
    """Return the node of a parameter with the values of `matrix`: the model's own where it has these in this order."""
    owner = source
    while owner.op != "get_attr":
        owner = owner.all_input_nodes[0]
    value = part_at(graph, owner.target)
    is_same = value.data_ptr() == matrix.data_ptr() and (value.shape, value.stride()) == (matrix.shape, matrix.stride())
    if is_same and isinstance(value, nn.Parameter):
        return owner
    return _parameter(graph, x, f"{owner.target}_linear", matrix)


def _parameter(graph: Any, x: Any, name: str, value: Any) -> Any:
    """Add a parameter, and return the node that reads it."""
    stem = name.replace(".", "_")
    free = next(free for i in itertools.count() if not hasattr(graph, free := f"{stem}_{i}"))
    setattr(graph, free, nn.Parameter(value.contiguous().clone(), requires_grad=False))
    node = graph.graph.get_attr(free)
    node.meta["val"] = x.meta["val"].fake_mode.from_tensor(value.contiguous(), static_shapes=True)
    return node
