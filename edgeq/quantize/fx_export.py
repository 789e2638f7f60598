"""The exported graph of a model as FX graph mode takes it: layers as modules, other operators as functions.

torch.export follows what torch.fx cannot: writes through slices, shape arithmetic, unpacked shapes, dicts and `*args`.
Its graph has operators (aten.conv2d) where FX's patterns want modules and torch's own functions. What has no such form
stays an operator, which FX leaves in float. This file needs torch to load.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional

from edgeq.core.errors import UsageError, first_line, user_line
from edgeq.core.operators import exported, open_steps, plain_cells, plain_layers, plain_operators
from edgeq.core.results.model import TensorSpec
from edgeq.core.speedups import decomposed
from edgeq.quantize.capture import (
    example_tensors,
    plain_convolutions,
    silenced,
    with_constants,
    with_plain_bags,
)
from edgeq.quantize.products import PRODUCT, WHY_IN_FLOAT, innermost, multiplies_constants, write_as_linear
from edgeq.quantize.pt2e_workarounds import coordinates, without_copies
from edgeq.quantize.spec import QuantizeSpec, inside

_ATEN = torch.ops.aten

_FUNCTIONS = {
    _ATEN.relu.default: functional.relu,
    _ATEN.add.Tensor: torch.add,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.matmul.default: torch.matmul,
    _ATEN.sigmoid.default: torch.sigmoid,
    _ATEN.tanh.default: torch.tanh,
    _ATEN.hardsigmoid.default: functional.hardsigmoid,
    _ATEN.hardswish.default: functional.hardswish,
    _ATEN.hardtanh.default: functional.hardtanh,
    _ATEN.leaky_relu.default: functional.leaky_relu,
    _ATEN.elu.default: functional.elu,
    _ATEN.relu6.default: functional.relu6,
    _ATEN.clamp.default: torch.clamp,
    _ATEN.cat.default: torch.cat,
    _ATEN.stack.default: torch.stack,
    _ATEN.flatten.using_ints: torch.flatten,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.unsqueeze.default: torch.unsqueeze,
    _ATEN.squeeze.dim: torch.squeeze,
    _ATEN.mean.dim: torch.mean,
    _ATEN.softmax.int: torch.softmax,
    _ATEN.adaptive_avg_pool2d.default: functional.adaptive_avg_pool2d,
    _ATEN.max_pool2d.default: functional.max_pool2d,
    _ATEN.avg_pool2d.default: torch._C._nn.avg_pool2d,
}

_SIZE = _ATEN.sym_size.int

_TO_THE_END = 2**63 - 1  # of a slice, as torch.export writes it

_METHODS = {_ATEN.view.default: "reshape", _ATEN.reshape.default: "reshape", _ATEN.permute.default: "permute"}

# the layer of an operator, and the operator's arguments behind weight and bias, with their defaults
_PLAIN = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_CONVOLUTIONS = {
    _ATEN.conv1d.default: (nn.Conv1d, _PLAIN),
    _ATEN.conv2d.default: (nn.Conv2d, _PLAIN),
    _ATEN.conv3d.default: (nn.Conv3d, _PLAIN),
    _ATEN.conv_transpose1d.default: (nn.ConvTranspose1d, _TRANSPOSED),
    _ATEN.conv_transpose2d.input: (nn.ConvTranspose2d, _TRANSPOSED),
    _ATEN.conv_transpose3d.input: (nn.ConvTranspose3d, _TRANSPOSED),
}

# the layer of an operator, and how many gates it has
_RECURRENT = {
    _ATEN.lstm.input: (nn.LSTM, 4),
    _ATEN.gru.input: (nn.GRU, 3),
    _ATEN.rnn_tanh.input: (nn.RNN, 1),
    _ATEN.rnn_relu.input: (functools.partial(nn.RNN, nonlinearity="relu"), 1),
}

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


# in the `meta` of an exported graph
_PRODUCTS = "edgeq_products"

_Used = TypeVar("_Used")


class Products(NamedTuple):
    """What became of a graph's products with constants, and by which names users know its modules.

    Attributes:
        layers: the modules that they became, with the names that users know these by: one for all that share a weight.
        in_float: why others stay in float, as `write_as_linear` has it.
        renamed: modules that have a name of their own, since several share a weight, with the model's names of them.
    """

    layers: Mapping[str, str]
    in_float: Collection[str]
    renamed: Mapping[str, str]

    def like(self, kept: Collection[str]) -> frozenset[str]:
        """Return the graph's own names, too, of modules that are named in `kept`, or are inside one of these."""
        known = {**self.renamed, **self.layers}
        return frozenset({*kept, *(name for name, source in known.items() if inside(source, kept))})


_NO_PRODUCTS = Products({}, (), {})


def exported_graph(module: Any, specs: Sequence[TensorSpec]) -> Any:
    """Return a torch.fx.GraphModule that computes what a module does, its layers by their own names.

    Args:
        module: the float module in eval mode.
        specs: its inputs.

    Raises:
        Exception: torch.export's own, where it cannot capture the model.
    """
    with silenced(), torch.no_grad():
        inputs = example_tensors(specs)
        with plain_operators(), plain_layers():
            program = with_plain_bags(exported(module, inputs, specs), inputs, specs)
        cells = {getattr(_ATEN, name).default: cell for name, cell in plain_cells().items()}
        with open_steps(specs):
            # without writes in place, so that what is computed from weights alone can be told
            program = decomposed(plain_convolutions(program), cells)
        program = with_constants(program, inputs, specs)
        graph_module = without_copies(program.module(check_guards=False))
        write_as_linear(graph_module)
    graph = graph_module.graph
    in_float_for = {node.meta[WHY_IN_FLOAT] for node in graph.nodes if WHY_IN_FLOAT in node.meta}
    in_float = coordinates(graph)
    tables: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _calls_table(graph_module, node, tables):
            continue
        functions = {} if node in in_float else _FUNCTIONS
        layer = _recurrent(graph_module, node) if node.target in _RECURRENT else _layer(graph_module, node)
        if layer is not None:
            _call(graph_module, node, layer)
        elif node.target in (_ATEN.fill.Scalar, _ATEN.zero.default):  # a trace makes what TorchScript has not of these
            source, *value = node.args
            shape = list(node.meta["val"].shape)
            if all(isinstance(size, int) for size in shape):
                node.op, node.target, node.args = "call_method", "new_full", (source, shape, *(value or [0]))
            else:
                node.target, node.args = torch.full_like, (source, *(value or [0]))
        elif node.target is _ATEN.fill.Tensor:
            node.op, node.target, node.args = "call_method", "expand_as", (node.args[1], node.args[0])
        elif node.target is _ATEN.dropout.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in functions and not (node.target is _ATEN.add.Tensor and node.kwargs):
            node.target = functions[node.target]
        elif node.target is _SIZE:  # of a method, and not of an operator, a trace keeps what it depends on
            node.op, node.target = "call_method", "size"
        elif any(isinstance(arg.meta.get("val"), torch.SymInt) for arg in node.all_input_nodes):
            _take_traced_sizes(node)
        elif node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
            node.args = (node.args[0], *node.args[1])
    # the tensors in order, and plain containers of results: FX does not trace torch.export's own wrapping
    (output,) = graph.output_node().args
    result = torch.utils._pytree.tree_unflatten(list(output), graph_module._out_spec)
    graph.output_node().args = (dict(result) if isinstance(result, dict) else result,)
    graph.set_codegen(torch.fx.graph.CodeGen())
    graph.eliminate_dead_code()
    graph_module.recompile()
    made = torch.fx.GraphModule(graph_module, graph).eval()
    calls = [node for node in graph.nodes if node.op == "call_module"]
    layers = {node.target: node.meta[PRODUCT] for node in calls if PRODUCT in node.meta}
    renamed = {node.target: name for node in calls if node.target not in layers and (name := innermost(node))}
    made.meta[_PRODUCTS] = Products(layers, in_float_for, renamed)
    return made


def with_product_layers(module: Any, spec: QuantizeSpec, use: Callable[[Any], _Used]) -> tuple[_Used, Products]:
    """Return what `use` gives of a model, and what became of its products with constants.

    Of a model that multiplies by parameters `use` gets the exported graph, where those products are layers; the model
    itself, with a note that says why, where that graph cannot be made or used.

    Args:
        module: the float module in eval mode.
        spec: whose inputs it takes, and whose progress shows the note.
        use: quantizes a module; any error but a UsageError means that it cannot.
    """
    products = _NO_PRODUCTS
    try:
        if multiplies_constants(module, example_tensors(spec.inputs)):
            graph = exported_graph(module, spec.inputs)
            if products_of(graph).layers:
                return use(graph), products_of(graph)
            products = products_of(graph)
    except UsageError:
        raise
    except Exception as err:  # torch.export, FX and the engines' packing raise many types
        with spec.progress.task(f"export {spec.label}") as task:
            what = f"the exported graph cannot be used{user_line(err)}: {first_line(err)}"
            task.note(f"products with parameters stay in float, since {what}")
    return use(module), products


def products_of(module: Any) -> Products:
    """Return what became of a module's products with constants; of one that was not exported nothing did."""
    found: Products = getattr(module, "meta", {}).get(_PRODUCTS, _NO_PRODUCTS)
    return found


def _call(graph_module: Any, node: Any, layer: Any) -> None:
    """Put a layer where its weights were, and let the node call it instead of the operator."""
    graph = graph_module.graph
    weight = node.args[2][0] if node.target in _RECURRENT else node.args[1]
    owner = str(weight.target).rpartition(".")[0]
    product = node.meta.get(PRODUCT)
    readers = [user for other in graph.nodes if other.target == weight.target for user in other.users]
    mine = {str(arg.target) for arg in node.all_input_nodes}
    others = [
        other for other in graph.nodes if other.op == "get_attr" and str(other.target).rpartition(".")[0] == owner
    ]
    is_shared = any(str(other.target) not in mine for other in others)  # such as a cell's, of two products
    has_parts = bool(owner) and next(graph_module.get_submodule(owner).children(), None) is not None
    if product and len(readers) == 1 and _is_free(graph_module, product):
        graph_module.set_submodule(product, layer.eval())
        owner = product
    # a tied weight, a layer that is called again, or a weight of a module that has parts or other weights
    elif not owner or len(readers) > 1 or has_parts or is_shared:
        owner = f"{(product or owner).replace('.', '_')}_{node.name}"
        graph_module.add_submodule(owner, layer.eval())
    else:
        graph_module.set_submodule(owner, layer.eval())
    if node.target is _ATEN._native_batch_norm_legit_no_training.default:
        for first in list(node.users):  # a tuple, of which the module gives the first alone
            first.replace_all_uses_with(node)
            graph.erase_node(first)
        node.meta["val"] = node.meta["val"][0]
    arguments = [node.args[0]]
    if node.target in _RECURRENT:
        state = node.args[1]  # of an LSTM both h and c
        arguments.append(state if isinstance(state, torch.fx.Node) else tuple(state))
        for item in list(node.users) if node.target is _ATEN.lstm.input else ():
            if item.args[1] > 0:  # the operator gives (output, h, c), the module (output, (h, c))
                with graph.inserting_before(item):
                    pair = graph.call_function(operator.getitem, (node, 1))
                item.args = (pair, item.args[1] - 1)
    node.op, node.target, node.args, node.kwargs = "call_module", owner, tuple(arguments), {}


def _is_free(graph_module: Any, name: str) -> bool:
    """Whether a module can take a name: nothing has it, or a module without parts that the graph does not read."""
    place, _, leaf = name.rpartition(".")
    part = getattr(graph_module.get_submodule(place), leaf, None)
    read = any(str(node.target).startswith(f"{name}.") for node in graph_module.graph.nodes)
    return part is None or (isinstance(part, nn.Module) and not read and next(part.children(), None) is None)


def _calls_table(graph_module: Any, node: Any, tables: dict[str, str]) -> bool:
    """Let a lookup call an nn.Embedding; whether the node is one. A lookup of constant rows is a constant.

    Args:
        graph_module: what gets the module.
        node: any call.
        tables: the modules' names by that of their table, which several lookups may read; changed in place.
    """
    if node.target is not _ATEN.embedding.default or node.args[0].op != "get_attr" or node.args[1].op == "get_attr":
        return False
    name = str(node.args[0].target)
    if name not in tables:
        owner = name.rpartition(".")[0]
        readers = [user for other in graph_module.graph.nodes if other.target == name for user in other.users]
        is_tied = any(reader.target is not _ATEN.embedding.default for reader in readers)
        if not owner or is_tied or [*graph_module.get_submodule(owner).state_dict(keep_vars=True)] != ["weight"]:
            owner = f"{owner.replace('.', '_')}_{node.name}"
        layer = nn.Embedding.from_pretrained(_attribute(graph_module, node.args[0]))
        graph_module.set_submodule(owner, layer.eval())
        tables[name] = owner
    node.op, node.target, node.args, node.kwargs = "call_module", tables[name], (node.args[1],), {}
    return True


def _take_traced_sizes(node: Any) -> None:
    """Write an operator that takes a size as the method or function of torch that does: a trace follows only these."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return  # Python's arithmetic
    name = node.target._schema.name.partition("::")[2]
    if node.target is _ATEN.slice.Tensor:
        given = list(node.args)
        source, axis, start, end, step = given + [0, None, None, 1][len(given) - 1 :]
        whole = [slice(None)] * (axis % node.meta["val"].dim())
        part = slice(start, None if end == _TO_THE_END else end, step)
        node.target, node.args = operator.getitem, (source, (*whole, part))
    elif name in ("view", "_unsafe_view", "reshape"):
        node.op, node.target, node.args = "call_method", "reshape", (node.args[0], *node.args[1])
    elif isinstance(node.args[0], torch.fx.Node) and hasattr(torch.Tensor, name):
        node.op, node.target = "call_method", name
    elif hasattr(torch, name):
        node.target = getattr(torch, name)


def _layer(graph_module: Any, node: Any) -> Any:
    """Return the module of an operator whose weights are the model's own, else None."""
    arguments = list(node.args)
    weights = [arg for arg in arguments[1:] if isinstance(arg, torch.fx.Node)]
    if not weights or arguments[1] is not weights[0] or any(weight.op != "get_attr" for weight in weights):
        return None
    values = [_attribute(graph_module, arg) if isinstance(arg, torch.fx.Node) else arg for arg in arguments[1:]]
    with torch.no_grad():
        if node.target is _ATEN.linear.default:
            weight, bias = values[0], values[1] if len(values) > 1 else None
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        elif node.target in _CONVOLUTIONS:
            kind, defaults = _CONVOLUTIONS[node.target]
            weight, bias, *given = (*values, None) if len(values) == 1 else values
            settings = defaults | dict(zip(defaults, given, strict=False))
            settings = {name: value if isinstance(value, int) else tuple(value) for name, value in settings.items()}
            # a plain one's weights are [out, in / groups, …], a transposed one's [in, out / groups, …]
            first, second = weight.shape[0], weight.shape[1] * settings["groups"]
            channels = (second, first) if defaults is _PLAIN else (first, second)
            layer = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, **settings)
        elif node.target is _ATEN._native_batch_norm_legit_no_training.default and len(weights) == 4:
            weight, bias, mean, variance, _momentum, eps = values
            layer = _NORMS[node.args[0].meta["val"].dim()](len(mean), eps)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        else:
            return None
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def _recurrent(graph_module: Any, node: Any) -> Any:
    """Return the module of a recurrent operator whose weights are the model's own, else None."""
    kind, gates = _RECURRENT[node.target]
    _, _, weights, has_biases, layers, _dropout, _train, bidirectional, batch_first = node.args
    if any(weight.op != "get_attr" for weight in weights):
        return None
    values = [_attribute(graph_module, weight) for weight in weights]
    hidden, out = values[0].shape[0] // gates, values[1].shape[1]
    sizes = {"proj_size": out} if out != hidden else {}
    layer = kind(
        values[0].shape[1],
        hidden,
        num_layers=layers,
        bias=has_biases,
        bidirectional=bidirectional,
        batch_first=batch_first,
        **sizes,
    )
    with torch.no_grad():
        for weight, value in zip(layer._flat_weights, values, strict=True):
            weight.copy_(value)
    return layer.requires_grad_(False)


def _attribute(graph_module: Any, node: Any) -> Any:
    value = graph_module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value.detach()
