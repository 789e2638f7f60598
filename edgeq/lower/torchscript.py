"""TorchScript lowering: trace, freeze, the mobile passes, and an archive without paths or debug records."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import EdgeqError, UnsupportedError, calling_line, first_line, user_line
from edgeq.core.operators import plain_operators
from edgeq.core.results.model import Layer, LoweredModel, QuantizedModel, TensorSpec
from edgeq.core.samples import fixed_at, sizes_text, tried_sizes
from edgeq.core.system import Uncompiled
from edgeq.lower.layers import (
    MATRIX_OPS,
    archive_elements,
    archive_weights,
    conv_macs,
    matmul_macs,
    stored_layers,
    zero_share,
)
from edgeq.lower.spec import LowerSpec
from edgeq.lower.torchscript_archive import strip_archive


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Trace, freeze and save for the lite interpreter; for x86 hosts, save the smaller of that and a full archive.

    Raises:
        UnsupportedError: TorchScript cannot express the model.
    """
    import torch

    if spec.backend not in torch.backends.quantized.supported_engines:
        what = f"this torch has no quantized engine {spec.backend!r}"
        raise UnsupportedError(what, "run on a host with a torch build that has it")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = spec.backend
    try:
        with (
            spec.progress.task(f"lower {spec.label}"),
            warnings.catch_warnings(),
            plain_operators(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # torch.jit announces its deprecation on every call
            inputs = _inputs(spec.inputs)
            versions = [value._version for value in inputs]
            computed = eager_layers(quantized.graph, inputs)
            # an artifact leaves to its caller what it was given, also where forward writes in place (x.sub_(0.5))
            written = frozenset(i for i, value in enumerate(inputs) if value._version != versions[i])
            traced = _traced(_root(quantized.graph, written), _inputs(spec.inputs))
            if spec.backend == "qnnpack" and any(f"aten::{name}" in str(traced.inlined_graph) for name in _IN_2_1):
                traced = _traced(_root(quantized.graph, written, older=True), _inputs(spec.inputs))
            module, passes = _optimized(traced, spec.backend)
            layers = _left_in(module, computed)
            _refuse_kept_sizes(module, quantized.graph, spec)
            path = _save(module, spec)
            version, operators = _archive_facts(module)
    finally:
        torch.backends.quantized.engine = before
    return LoweredModel(
        path=path,
        runtime="torchscript",
        runtime_version=str(torch.__version__).partition("+")[0],
        bytecode_version=version,
        passes=passes,
        operators=operators,
        undelegated=(),
        layers=stored_layers(layers, quantized),
        delegated_macs=None,
        stored=archive_elements(path),
        zeros=zero_share(archive_weights(path)),
    )


def _inputs(specs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    import torch

    # whole numbers at their highest: 0 may be out of range, and a mask of zeros leaves nothing to compute
    tensors = []
    for item in specs:
        most = torch.tensor(
            item.highs or item.high if item.dtype.startswith(("int", "uint")) else 0.0, dtype=torch.float64
        )
        if item.highs:
            most = most.reshape(item.shape[1:])
        tensors.append(most.expand(item.shape).to(getattr(torch, item.dtype)).contiguous())
    return tuple(tensors)


def _refuse_kept_sizes(module: Any, graph: Any, spec: LowerSpec) -> None:
    """Refuse a trace that kept a size of its example: at other ones it fails, or gives outputs of other shapes.

    Raises:
        UnsupportedError: with the line of forward that took the size for a number of Python's.
    """
    import torch

    leaves = torch.utils._pytree.tree_leaves
    for sizes in tried_sizes(spec.inputs)[1:]:
        inputs = _inputs(fixed_at(spec.inputs, sizes))
        expected = [leaf.shape for leaf in leaves(graph(*(value.clone() for value in inputs)))]
        try:
            came = [leaf.shape for leaf in leaves(module(*inputs))]
            why = "" if came == expected else "gives outputs of other shapes"
        except Exception as err:  # the interpreter raises many types
            why = f"fails: {str(err).strip().splitlines()[-1][:200]}"  # what stands before is the interpreter's stack
        if why:
            what = f"TorchScript cannot let {', '.join(sizes)} vary: the trace keeps sizes of its example, and at"
            fix = "take sizes from the inputs in forward without int(), or use an ExecuTorch, ONNX or OpenVINO target"
            raise UnsupportedError(f"{what} {sizes_text(sizes)} it {why}", fix)


def _traced(root: Any, inputs: tuple[Any, ...]) -> Any:
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            # strict=False lets a forward return a dict, as torchvision's segmentation models do
            traced = torch.jit.trace(root, inputs, strict=False, check_trace=False)
        except Exception as err:  # the tracer raises many types
            what = f"TorchScript cannot trace this model{user_line(err)}: {first_line(err)}"
            raise UnsupportedError(what, "use an ExecuTorch target, or make that line traceable") from err
    # of the tracer's other warnings, most concern shapes, which are fixed; values in Python are `eager_layers`' concern
    left = next((warning for warning in warned if "to a NumPy array" in str(warning.message)), None)
    if left is not None:
        raise _converted(f" at {left.filename}:{left.lineno}")
    return traced


def _root(graph: Any, written: frozenset[int] = frozenset(), *, older: bool = False) -> Any:
    """Return a module of edgeq's own around `graph`: the archive names its root's class, which is the user's to know.

    The name of a user's file holds a hash of where it lies, and PyTorch counts the classes that it traced.

    Args:
        graph: what is traced.
        written: the places of inputs that it writes into, which it gets copies of.
        older: whether torch 2.1.0 is to run it, whose operators then do what newer ones do.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Older(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            same = _IN_2_1.get(str(getattr(func, "__name__", "")).partition(".")[0])
            return (same or func)(*args, **(kwargs or {}))

    class Model(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Calls the graph."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *inputs: Any) -> Any:
            """Return what the graph returns."""
            with Older() if older else contextlib.nullcontext():
                return self.graph(*(value.clone() if i in written else value for i, value in enumerate(inputs)))

    root = Model()
    root.training = False  # not eval(), which a module of torch.export refuses; the graph is in eval mode as it is
    return root


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Return torch.rms_norm, of which torch 2.1.0 has no operator."""
    import torch

    dims = list(range(-len(normalized_shape), 0))
    epsilon = torch.finfo(input.dtype).eps if eps is None else eps
    normed = input * torch.rsqrt((input * input).mean(dims, keepdim=True) + epsilon)
    return normed if weight is None else normed * weight


def _safe_softmax(self: Any, dim: int, dtype: Any = None) -> Any:
    """Return ATen's _safe_softmax: rows of -inf alone become zeros. torch 2.1.0 has no operator of it."""
    import torch

    nothing = (self == -math.inf).all(dim, keepdim=True)
    return torch.softmax(self, dim, dtype).masked_fill(nothing, 0.0)


# newer operators by name, and functions that do the same with those of torch 2.1.0
_IN_2_1: dict[str, Callable[..., Any]] = {"rms_norm": _rms_norm, "_safe_softmax": _safe_softmax}


def _optimized(module: Any, backend: str) -> tuple[Any, tuple[str, ...]]:
    """Run the mobile passes: `optimize_for_mobile` where this torch has XNNPACK, else the same one by one.

    The passes of `optimize_for_mobile` beside freezing (conv-bn folding, dropout removal) and add-relu fusion
    prepack float layers for XNNPACK, which only builds that have it can run.
    """
    import torch
    import torch.backends.xnnpack

    frozen = torch.jit.freeze(module.eval())
    # freezing lowers tuples last: what a layer hands on in one, of parameters alone, is known to be a constant now
    torch._C._jit_pass_constant_propagation(frozen.graph)
    if backend == "qnnpack" and torch.backends.xnnpack.enabled:
        from torch.utils.mobile_optimizer import MobileOptimizerType, optimize_for_mobile

        # prepacked XNNPACK operators are not in every runtime in the field
        kept_out = {MobileOptimizerType.INSERT_FOLD_PREPACK_OPS}
        return optimize_for_mobile(frozen, kept_out), ("trace", "freeze", "optimize_for_mobile")
    torch._C._jit_pass_fuse_add_relu(frozen.graph)
    return frozen, ("trace", "freeze", "fuse_add_relu")


def _save(module: Any, spec: LowerSpec) -> Path:
    """Save and strip; x86 packing makes lite archives hold weights twice, so hosts take the smaller form.

    By way of memory: PyTorch's own file writer ends the process when the disk is full.
    """
    lite = spec.folder / "model.ptl"
    lite.write_bytes(module._save_to_buffer_for_lite_interpreter())
    strip_archive(lite)
    if spec.backend == "qnnpack":
        return lite
    full = spec.folder / "model.pt"
    full.write_bytes(module.save_to_buffer())
    strip_archive(full)
    smaller, larger = sorted((lite, full), key=lambda path: path.stat().st_size)
    larger.unlink()
    return smaller


def _archive_facts(module: Any) -> tuple[int, tuple[str, ...]]:
    """Return the bytecode version and the root operators of the lite form."""
    import io

    import torch
    from torch.jit.mobile import _get_model_bytecode_version

    buffer = io.BytesIO(module._save_to_buffer_for_lite_interpreter())
    return int(_get_model_bytecode_version(buffer)), tuple(sorted(torch.jit.export_opnames(module)))


# --- Layers of a module that is run, not exported: what TorchScript archives are made of.


# operators that do a whole block at once
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"

_RECURRENT = "mkldnn_rnn_layer"

_RECURRENT_INT8 = ("quantized_lstm", "quantized_gru")

_TRANSFORMER = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")

# functions that give Python a tensor's value, and those that give its size
_READ = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item", "tolist", "is_nonzero"}
    | {"equal", "allclose"}
)

_TO_NUMPY = frozenset({"numpy", "__array__", "__dlpack__"})

_SIZE = frozenset({"size", "numel", "nelement"})

_DATA_SIZED = frozenset(
    {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "unique_dim", "_unique2"}
)


def eager_layers(module: Any, inputs: tuple[Any, ...]) -> tuple[tuple[Layer, bool], ...]:
    """Run `module` once and return its convolutions and matrix products in the order of execution.

    Those that no output depends on, such as a pooler whose result the model drops, are not in an artifact, nor here.
    Beside each is whether the inputs decide its result. One of parameters alone, such as a table of relative positions,
    is a constant once the module is frozen, unless its size is read from an input.

    Raises:
        UnsupportedError: forward turns input-dependent tensors into Python values, which tracing would freeze; or the
            model fails on these inputs.
    """
    import torch

    found: list[tuple[Layer, bool]] = []
    stack: list[str] = []
    data_sized: list[str] = []
    reaching: dict[int, frozenset[int]] = {}  # by storage, which views share: the layers that its values depend on

    def note(func: Any, args: Any, kwargs: Any, result: Any, is_fed: Callable[[Any], bool]) -> None:
        op, namespace = func.__name__.split(".")[0], func.namespace
        layer = _layer(op, namespace, args, result, stack[-1] if stack else "")
        # packed weights of int8, which forward may compute, are objects
        holding = (torch.Tensor, torch.ScriptObject)
        leaves = torch.utils._pytree.arg_tree_leaves(*args, **kwargs)
        taken = [_storage(leaf) for leaf in leaves if isinstance(leaf, holding)]
        layers = frozenset().union(*(reaching.get(place, ()) for place in taken))
        if layer is not None:
            # a recurrent layer is one operator of the archive, which multiplies its first state of zeros too
            of_inputs = any(map(is_fed, leaves)) or stack[-1:] in recurrent
            factors = [args[i] for i in MATRIX_OPS.get(op, (0, 1) if op == _ATTENTION else ())]
            of_activations = bool(factors) and all(map(is_fed, factors))
            layers |= {len(found)}
            layer = dataclasses.replace(layer, of_activations=of_activations and namespace == "aten")
            found.append((layer, of_inputs))
        written = [_storage(arg) for arg in _written(func, args)]
        given = [_storage(leaf) for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, holding)]
        for place in (*written, *given):
            reaching[place] = layers if place else layers | reaching.get(0, frozenset())

    recurrent = [[name] for name, part in _parts(module).items() if isinstance(part, torch.nn.RNNBase)]
    hooks = [hook for name, part in _parts(module).items() for hook in _named(part, name, stack)]
    try:
        with _recorder(inputs, note, data_sized), _reads_refused(inputs):
            outputs = torch.utils._pytree.tree_leaves(module(*inputs))
        for hook in hooks:  # torch.jit.trace would compile them
            hook.remove()
        if data_sized:
            # a size shows as a tensor in a traced run only; this trace is not the one that is kept, which takes the
            # names of its values from the frames that call it
            with _reads_refused(inputs), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.trace(module, inputs, strict=False, check_trace=False)
    except EdgeqError:
        raise
    except Exception as err:  # the user's forward may raise anything
        what = f"the model fails on the inputs that TorchScript traces it with{user_line(err)}: {first_line(err)}"
        raise UnsupportedError(
            what, "make the model accept zeros for float inputs and the highest values for integer inputs"
        ) from err
    finally:
        for hook in hooks:
            hook.remove()
    if not all(leaf is None or isinstance(leaf, (torch.Tensor, bool, int, float, str)) for leaf in outputs):
        return tuple(found)  # a container that cannot be looked into
    kept = [leaf for leaf in (*outputs, *module.buffers()) if torch.is_tensor(leaf)]  # an archive has writes to state
    live = frozenset().union(*(reaching.get(_storage(leaf), ()) for leaf in kept))
    return tuple(one for i, one in enumerate(found) if i in live)


def _left_in(module: Any, computed: Sequence[tuple[Layer, bool]]) -> list[Layer]:
    """Return what an optimized trace still computes of the layers that `eager_layers` found.

    A layer of constants is none any more where the trace has no more products of its module than the inputs decide.
    """
    products: Counter[str] = Counter()
    for node in module.graph.nodes():
        op = node.kind().rpartition("::")[2].strip("_")
        if op in MATRIX_OPS or op.startswith(("conv", "linear")):
            products[node.scopeName().rpartition("/")[2].removeprefix("__module.graph.")] += 1
    products.subtract(layer.name for layer, of_inputs in computed if of_inputs)
    left = []
    for layer, of_inputs in computed:
        if of_inputs or products[layer.name] > 0:
            left.append(layer)
            products[layer.name] -= not of_inputs
    return left


def _storage(tensor: Any) -> int:
    """Return what views of a tensor share with it; 0 of a sparse or an opaque tensor, and of an object."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, AttributeError):
        return 0


def _written(func: Any, args: tuple[Any, ...]) -> list[Any]:
    """Return the tensors among an operator's arguments that it writes into."""
    import torch

    formals = zip(args, func._schema.arguments, strict=False)
    return [
        arg
        for arg, formal in formals
        if torch.is_tensor(arg) and formal.alias_info is not None and formal.alias_info.is_write
    ]


def _recorder(inputs: tuple[Any, ...], note: Callable[[Any, Any, Any, Any, Any], None], data_sized: list[str]) -> Any:
    """Return a mode that tells function, arguments and result of every operator below autograd, and what of them the
    inputs decide.

    It follows what the inputs decide, and raises UnsupportedError where that is read into Python; operators whose
    result has as many elements as the inputs decide are added to `data_sized`.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.weak import WeakTensorKeyDictionary

    fed = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))
    # memory that was written to through another tensor (z[0] = x.sum()), which is held: its place must not be reused
    written: dict[int, Any] = {}

    def is_fed(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and (value in fed or (bool(written) and _storage(value) in written))

    class Recorder(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            op = func.__name__.split(".")[0]
            if any(is_fed(arg) for arg in torch.utils._pytree.arg_tree_leaves(*args)):
                if op in ("_local_scalar_dense", "equal"):
                    raise _data_dependent(calling_line())
                if torch.Tag.dynamic_output_shape in func.tags:
                    data_sized.append(op)
                result = func(*args, **kwargs)
                fed.update((leaf, True) for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf))
                written.update((_storage(arg), arg) for arg in _written(func, args) if _storage(arg))
            else:
                result = func(*args, **kwargs)
            note(func, args, kwargs, result, is_fed)
            return result

    return Recorder()


def _reads_refused(inputs: tuple[Any, ...]) -> Any:
    """Return a mode that raises UnsupportedError where Python reads what the inputs decide: values, in a trace sizes.

    `nonzero(x)`, `x[x > 0]` and what is computed from them have sizes of that kind. In a traced run a size is a tensor,
    which the trace keeps, until Python asks for its value (`if n > 4`, `range(n)`).
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils.weak import WeakTensorKeyDictionary

    leaves = torch.utils._pytree.arg_tree_leaves
    fed = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))
    sized = WeakTensorKeyDictionary()

    class Reads(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = str(getattr(func, "__name__", func))
            owner = str(getattr(getattr(func, "__self__", None), "__name__", ""))  # of a property's __get__
            tensors = [leaf for leaf in leaves(*args, **kwargs) if torch.is_tensor(leaf)]
            of_inputs = [one for one in tensors if one in fed]
            of_size = [one for one in tensors if one in sized]
            if (name in _READ and of_inputs) or (name == "__len__" and of_size):
                raise _data_dependent(calling_line())
            if name in _TO_NUMPY and of_inputs:  # the tracer's own warning names a line of torch for `np.asarray(x)`
                raise _converted(calling_line())
            result = func(*args, **kwargs)
            made = [leaf for leaf in leaves(result) if torch.is_tensor(leaf)]
            if name in _SIZE or (name == "__get__" and owner == "shape"):
                fed.update((one, True) for one in made if of_size)
                return result
            fed.update((one, True) for one in made if of_inputs)
            if of_size or (of_inputs and _is_data_sized(name, args, kwargs)):
                sized.update((one, True) for one in made if one.ndim)
            return result

    return Reads()


def _is_data_sized(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function's result has as many elements as the values of its arguments say."""
    import torch

    if name == "__getitem__":
        index = args[1] if isinstance(args[1], (tuple, list)) else [args[1]]
        return any(torch.is_tensor(part) and part.dtype in (torch.bool, torch.uint8) for part in index)
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        return any(torch.is_tensor(arg) for arg in (*args[1:], kwargs.get("repeats")))
    return name in _DATA_SIZED


def _converted(where: str) -> UnsupportedError:
    what = f"forward converts a tensor to NumPy{where}; tracing would freeze the example's value"
    return UnsupportedError(what, "compute this in PyTorch, outside of forward, or in preprocessing")


def _data_dependent(where: str) -> UnsupportedError:
    what = (
        f"forward turns an input-dependent tensor into a Python value{where}; tracing would freeze the example's value"
    )
    return UnsupportedError(what, "use torch.where instead, or an ExecuTorch target with torch.cond")


def _parts(module: Any) -> dict[str, Any]:
    """Return the modules by name; a fused conv-relu goes by its own name, not by its inner convolution's."""
    from torch.ao.nn import intrinsic

    parts = dict(module.named_modules())
    return {
        name: part
        for name, part in parts.items()
        if name and not isinstance(parts[name.rpartition(".")[0]], intrinsic._FusedModule)
    }


def _named(part: Any, name: str, stack: list[str]) -> tuple[Any, Any]:
    """Keep `name` on the stack while `part` runs."""
    enter = part.register_forward_pre_hook(lambda _module, _args: stack.append(name))
    leave = part.register_forward_hook(lambda _module, _args, _result: (stack.pop(), None)[1])
    return enter, leave


def _layer(op: str, namespace: str, args: Any, result: Any, name: str) -> Layer | None:
    if namespace == "quantized":
        return _quantized_layer(op, args, result, name)
    if namespace != "aten":
        return None
    if op == "convolution":
        macs = conv_macs(args[1].shape, result.shape, args[0].shape, transposed=bool(args[6]))
        weights = [args[1]]
    elif op in MATRIX_OPS:
        left, right = (args[i] for i in MATRIX_OPS[op])
        macs, weights = matmul_macs(left.shape, result.shape[-1]), [right]
    else:
        macs, weights = _block(op, args)
    if not macs:
        return None
    return Layer(name=name or op, op=op, macs=int(macs), weight_bytes=_nbytes(weights), delegated=False)


def _block(op: str, args: Any) -> tuple[int, list[Any]]:
    """Return MACs and weights of an operator that does a whole block; 0 for any other."""
    if op == _RECURRENT:  # input [T, B, I], then the weights of input and hidden state, [gates * H, …]
        weights = [args[1], args[2]]
        return math.prod(args[0].shape[:2]) * sum(weight.numel() for weight in weights), weights
    if op in _RECURRENT_INT8:  # input [T, B, I] or [B, T, I], state, then a cell for each layer and direction
        weights = [weight for cell in args[2] for weight in _cell_weights(cell)]
        return math.prod(args[0].shape[:2]) * sum(weight.numel() for weight in weights), weights
    if op == _ATTENTION:  # query [B, heads, L, E], key [B, heads, S, E], value [B, heads, S, Ev]
        query, key, value = args[:3]
        return math.prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3]), []
    if op in _TRANSFORMER:  # query [B, L, E]; each of the matrices meets every token, and every token every other
        batch, length, width = args[0].shape
        weights = [arg for arg in args if getattr(arg, "ndim", 0) == 2]
        return batch * length * (sum(weight.numel() for weight in weights) + 2 * length * width), weights
    return 0, []


def _cell_weights(cell: Any) -> list[Any]:
    """Return the matrices of a dynamically quantized cell; it shows them in its state only."""
    import torch

    leaves = torch.utils._pytree.tree_leaves(cell.__getstate__())
    return [leaf.unpack()[0] for leaf in leaves if hasattr(leaf, "unpack")]


def _nbytes(tensors: list[Any]) -> int:
    return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)


def _quantized_layer(op: str, args: Any, result: Any, name: str) -> Layer | None:
    """Unpack the weights of a quantized convolution or linear; QNNPACK and FBGEMM hide them in an object."""
    if not op.startswith(("conv", "linear")) or op.endswith(("prepack", "unpack")):
        return None
    weight = args[1].weight() if hasattr(args[1], "weight") else args[1].unpack()[0]
    if op.startswith("linear"):
        macs = matmul_macs(args[0].shape, weight.shape[0])
    else:
        macs = conv_macs(weight.shape, result.shape, args[0].shape, transposed="transpose" in op)
    return Layer(name=name or op, op=op, macs=int(macs), weight_bytes=_nbytes([weight]), delegated=False)


# --- `run_example.py`: how a program without edgeq runs a bundle's artifact, in ten lines.


_EXPORTED = """\
program = torch.export.load(here / "{artifact}")
model = torch.export.passes.move_to_device_pass(program, device).module(){widened}
"""

_TORCHSCRIPT = """\
model = torch.jit.load(here / "{artifact}", map_location=device){widened}
"""

_SCRIPT = '''\
"""Runs {artifact} with torch alone, on the GPU where there is one: python run_example.py"""
import pathlib
import torch{imports}

here, device = pathlib.Path(__file__).parent, "cuda" if torch.cuda.is_available() else "cpu"
{loading}inputs = ({inputs},)
with torch.no_grad():
    result = model(*(value.to(device) for value in inputs))
for output in torch.utils._pytree.tree_leaves(result):
    print(device, output.dtype, list(output.shape), output.flatten()[:5].tolist())
'''


def example_script(artifact: str, scheme: str, inputs: Sequence[TensorSpec]) -> str:
    """Return the script.

    Args:
        artifact: the file's name.
        scheme: `storage-fp16` is widened to float32 once if there is no GPU, instead of at each use.
        inputs: the model's inputs.
    """
    widened = '\nmodel = model if device == "cuda" else model.float()' if scheme == "storage-fp16" else ""
    is_exported = artifact.endswith(".pt2")
    loading = (_EXPORTED if is_exported else _TORCHSCRIPT).format(artifact=artifact, widened=widened)
    return _SCRIPT.format(
        artifact=artifact,
        imports="\nimport torch.export.passes" if is_exported else "",
        loading=loading,
        inputs=", ".join(_value(spec) for spec in inputs),
    )


def _value(spec: TensorSpec) -> str:
    shape = ", ".join(str(size) for size in spec.shape)
    if spec.dtype.startswith("float"):
        return (
            f"torch.rand({shape}, dtype=torch.{spec.dtype})"
            if shape
            else f"torch.tensor(0.5, dtype=torch.{spec.dtype})"
        )
    return f"torch.zeros({shape}, dtype=torch.{spec.dtype})" if shape else f"torch.tensor(0, dtype=torch.{spec.dtype})"
