"""A captured graph in which each node has its own precision: casts stand where two of them meet."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.core.config import Task
from edgeq.core.errors import UnsupportedError, UsageError, first_line
from edgeq.core.half import emulation
from edgeq.core.operators import exported
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, batches
from edgeq.core.speedups import decomposed
from edgeq.quantize.capture import MODULE_KEY, example_tensors, silenced

# What torch.autocast computes in float32: exponentials, powers and long sums leave half's range or its 11 bits first.
# Normalizations and softmax are among them.
_FLOAT_OPS = frozenset(
    {"softmax", "_softmax", "log_softmax", "_log_softmax", "logsumexp", "softplus"}
    | {"layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm", "batch_norm"}
    | {"_native_batch_norm_legit_no_training", "norm", "linalg_vector_norm", "renorm", "var", "std", "var_mean"}
    | {"exp", "expm1", "exp2", "log", "log10", "log1p", "log2", "pow", "rsqrt", "reciprocal", "erfinv"}
    | {"sum", "prod", "cumsum", "cumprod", "dist", "cdist", "cosine_similarity"}
    | {"cosh", "sinh", "tan", "acos", "asin", "nll_loss", "cross_entropy_loss", "mse_loss", "kl_div"}
)

# their results have a dtype of their own, whatever they are given
_OWN_DTYPE = frozenset({"to", "_to_copy", "type_as"})

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})

_NORM = "_native_batch_norm_legit_no_training"

Wanted = Callable[[Any], Any]


def functional_graph(program: Any) -> Any:
    """Return a program's graph as a module of its own: nothing in place, batch norms folded into convolutions.

    Its tensors are those of the program, and are never changed, only exchanged.
    """
    module = decomposed(program, {}).module()
    for node in list(module.graph.nodes):
        # the first guards shapes, which the artifact's own program does; the second would forbid another dtype
        if node.op == "call_module" or op_name(node) == "_assert_tensor_metadata":
            module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if op_name(node) == _NORM:
            _fold(module, node)
    module.graph.eliminate_dead_code()
    # take out what no node reads any more, which would be stored all the same
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in read]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    module.recompile()
    return module


def op_name(node: Any) -> str:
    """Return an ATen operator's name without overload; "" for any other node."""
    import torch

    return str(node.target._schema.name.partition("::")[2]) if isinstance(node.target, torch._ops.OpOverload) else ""


def module_of(node: Any) -> str:
    """Return the name of the user's module that a node came from; "" for the model itself."""
    return str(node.meta.get("custom", {}).get(MODULE_KEY) or "")


def tensor_at(module: Any, target: str) -> Any:
    """Return the parameter, buffer or constant of a `get_attr` node."""
    return operator.attrgetter(target)(module)


def put_tensor(module: Any, target: str, tensor: Any) -> None:
    """Exchange the parameter, buffer or constant of a `get_attr` node."""
    import torch

    owner, _, name = target.rpartition(".")
    part = module.get_submodule(owner)
    delattr(part, name)
    part.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


def float_op(node: Any, limit: float) -> bool:
    """Whether an operator is to be computed in float32 wherever it stands.

    Args:
        node: of the graph.
        limit: the largest number of the other precision; a constant beyond it, such as a mask's -1e9, has no place in
            it.
    """
    scalars = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, int | float)]
    return op_name(node) in _FLOAT_OPS or any(limit < abs(scalar) < float("inf") for scalar in scalars)


def with_precisions(module: Any, wanted: Wanted, specs: Sequence[TensorSpec]) -> Any:
    """Cast what flows into each node to the precision that it wants, and capture the result.

    Args:
        module: of `functional_graph`; it is changed.
        wanted: the dtype that a node computes in; None where it takes what comes.
        specs: the model's inputs.

    Returns:
        A torch.export.ExportedProgram that takes and returns the dtypes that `module` did.

    Raises:
        UnsupportedError: an operator takes no such dtypes.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    (output,) = (node for node in module.graph.nodes if node.op == "output")
    returned = {node: getattr(node.meta.get("val"), "dtype", None) for node in output.all_input_nodes}
    _cast_parameters(module, wanted)
    inputs = example_tensors(specs)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            _caster(module, wanted, returned).run(*(mode.from_tensor(tensor) for tensor in inputs))
        module.graph.lint()
        module.recompile()
        with silenced():
            program = exported(module, inputs, specs)
    except Exception as err:  # operators' meta kernels raise many types
        what = f"the model cannot compute in this precision: {first_line(err)}"
        raise UnsupportedError(what, "keep the module that mixes dtypes in float (--keep-fp32)") from err
    for node in list(program.graph.nodes):
        if op_name(node) == "_assert_tensor_metadata":  # a loader may widen what is stored
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _cast_parameters(module: Any, wanted: Wanted) -> None:
    """Store a parameter in the precision of its readers, where they agree."""
    import torch

    readers: dict[str, set[Any]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            own = {wanted(user) if user.op == "call_function" else None for user in node.users}
            readers.setdefault(node.target, set()).update(own)
    made: dict[tuple[int, Any], Any] = {}  # tied weights stay tied
    kept = []  # the number of an object that is gone may be another's
    for target, dtypes in readers.items():
        tensor = tensor_at(module, target)
        if len(dtypes) == 1 and None not in dtypes and torch.is_tensor(tensor) and tensor.dtype == torch.float32:
            (dtype,) = dtypes
            key = (id(tensor), dtype)
            made.setdefault(key, tensor.detach().to(dtype))
            kept.append(tensor)
            put_tensor(module, target, made[key])


def _caster(module: Any, wanted: Wanted, returned: dict[Any, Any]) -> Any:
    """Return an interpreter that puts a cast before each node that needs one, as it meets it."""
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16)

    class Caster(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
        """Runs on shapes and dtypes alone."""

        def __init__(self) -> None:
            super().__init__(module, garbage_collect_values=False)
            self.casts: dict[tuple[Any, Any], Any] = {}

        def run_node(self, node: Any) -> Any:
            for source in node.all_input_nodes:
                value = self.env[source]
                dtype = returned.get(source) if node.op == "output" else self.dtype_for(node)
                if dtype in floats and torch.is_tensor(value) and value.dtype in floats and value.dtype != dtype:
                    node.replace_input_with(source, self.cast(source, node, dtype))
            return super().run_node(node)

        def dtype_for(self, node: Any) -> Any:
            return wanted(node) if node.op == "call_function" else None

        def cast(self, source: Any, before: Any, dtype: Any) -> Any:
            if (source, dtype) not in self.casts:
                with module.graph.inserting_before(before):
                    made = module.graph.call_function(torch.ops.aten.to.dtype, (source, dtype))
                self.env[made] = self.env[source].to(dtype)
                self.casts[source, dtype] = made
            return self.casts[source, dtype]

    return Caster()


def takes_what_comes(node: Any) -> bool:
    """Whether a node is none that computes, or one that states the dtype of its result itself."""
    return node.target is operator.getitem or op_name(node) in _OWN_DTYPE or op_name(node).startswith("sym_")


def _fold(module: Any, norm: Any) -> None:
    """Fold a batch norm, in eval mode, into the convolution before it, where nothing else reads either."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv, scale, shift, mean, var = norm.args[:5]
    results = list(norm.users)
    read = Counter(node.target for node in module.graph.nodes if node.op == "get_attr")
    own = [conv.args[1], *(arg for arg in conv.args[2:3] if arg is not None)] if len(conv.args) > 1 else []
    constants = [*own, *(arg for arg in (scale, shift, mean, var) if arg is not None)]
    foldable = (
        op_name(conv) in _CONVOLUTIONS
        and len(conv.users) == 1
        and all(node.target is operator.getitem and node.args[1] == 0 for node in results)
        and all(arg.op == "get_attr" for arg in constants)
        and all(len(arg.users) == read[arg.target] == 1 for arg in own)
    )
    if not foldable:
        return
    weight, *bias = (tensor_at(module, arg.target) for arg in own)
    rest = [None if arg is None else tensor_at(module, arg.target) for arg in (mean, var)]
    affine = [None if arg is None else tensor_at(module, arg.target) for arg in (scale, shift)]
    with torch.no_grad():
        folded, moved = fuse_conv_bn_weights(weight, bias[0] if bias else None, *rest, norm.args[6], *affine)
    put_tensor(module, own[0].target, folded.detach())
    name = f"{own[0].target}_folded_bias"
    owner, _, attribute = name.rpartition(".")
    module.get_submodule(owner).register_parameter(attribute, torch.nn.Parameter(moved.detach(), requires_grad=False))
    with module.graph.inserting_before(conv):
        shift_node = module.graph.get_attr(name)
    conv.args = (conv.args[0], own[0], shift_node, *conv.args[3:])
    for node in results:
        node.replace_all_uses_with(conv)
        module.graph.erase_node(node)
    module.graph.erase_node(norm)


# --- What half precision would lose, node by node: how far values reach, and how far the node's own result moves.


_ERROR_SAMPLES = 8  # a range is a maximum over all samples, an error is much the same for each


@dataclass(slots=True)
class NodeRange:
    """What was seen of a node's result.

    Attributes:
        largest: the largest finite magnitude, as float32 computes it.
        signal, noise: sums of squares of the result, and of its difference when this one node is computed in half.
    """

    largest: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to the difference that half precision makes; infinite if there is none, or no signal."""
        if math.isnan(self.noise) or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else math.inf


def scan(module: Any, dtype: Any, dataset: Dataset, specs: Sequence[TensorSpec], task: Task) -> dict[Any, NodeRange]:
    """Run a float32 graph over the samples and return what was seen of each node's float results.

    Args:
        module: of `functional_graph`.
        dtype: the half precision.
        dataset: samples, at least one.
        specs: the model's inputs.
        task: advanced by each sample.

    Raises:
        UsageError: a sample that does not fit, or that the model fails on (named).
    """
    import torch

    seen: dict[Any, NodeRange] = {}
    samples = 0
    for batch in batches(dataset, specs):
        scanner = _scanner(module, dtype if samples < _ERROR_SAMPLES else None, seen)
        try:
            with torch.no_grad():
                scanner.run(*(torch.from_numpy(array.copy()) for array in batch.inputs))
        except Exception as err:  # the user's forward may raise anything
            what = f"the range scan fails on {batch.samples[0].name}: {first_line(err)}"
            raise UsageError(what, "fix or remove this sample") from err
        samples += batch.rows
        task.advance(batch.rows)
    return seen


def _scanner(module: Any, dtype: Any, seen: dict[Any, NodeRange]) -> Any:
    """Return an interpreter that notes ranges in `seen`, and with a dtype errors too."""
    import torch

    class Scanner(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
        """Computes in float32."""

        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf)]
            if node.op == "output" or not leaves:
                return result
            found = seen.setdefault(node, NodeRange())
            found.largest = max(
                found.largest, *(float(leaf.abs().nan_to_num(nan=0.0, posinf=0.0).max()) for leaf in leaves)
            )
            if dtype is not None and op_name(node) and not float_op(node, float(torch.finfo(dtype).max)):
                self.note_error(node, leaves, found)
            return result

        def note_error(self, node: Any, expected: list[Any], found: NodeRange) -> None:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            args, kwargs = torch.utils._pytree.tree_map(_narrowed, (args, kwargs))
            try:
                with emulation():
                    result = node.target(*args, **kwargs)
            except RuntimeError:  # it takes no half tensors at all
                found.noise = math.inf
                return
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if _is_float(leaf)]
            for own, half in zip(expected, leaves, strict=True):
                finite = torch.isfinite(own)  # a mask's -inf is no signal
                found.signal += float(own[finite].double().square().sum())
                found.noise += float((own - half.float())[finite].double().square().sum())

    def _narrowed(value: Any) -> Any:
        return value.to(dtype) if torch.is_tensor(value) and value.dtype == torch.float32 else value

    return Scanner(module)


def _is_float(leaf: Any) -> bool:
    import torch

    return bool(torch.is_tensor(leaf) and leaf.is_floating_point() and leaf.numel() > 0)
