"""Layers of a module that is run, not exported: what TorchScript archives are made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from edgeq.artifacts import Layer
from edgeq.blame import calling_line, user_line
from edgeq.errors import EdgeqError, UnsupportedError, first_line
from edgeq.lower.macs import MATRIX_OPS, conv_macs, matmul_macs

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
_SIZE = frozenset({"size", "numel", "nelement"})
_DATA_SIZED = frozenset(
    {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "unique_dim", "_unique2"}
)


def eager_layers(module: Any, inputs: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Run `module` once and return its convolutions and matrix products in the order of execution.

    Raises:
        UnsupportedError: the model reads values that depend on its inputs into Python: a trace would keep those of
            this one run; or it fails on these inputs.
    """
    import torch

    found: list[Layer] = []
    stack: list[str] = []
    data_sized: list[str] = []

    def note(op: str, namespace: str, args: Any, result: Any) -> None:
        layer = _layer(op, namespace, args, result, stack[-1] if stack else "")
        if layer is not None:
            found.append(layer)

    hooks = [hook for name, part in _parts(module).items() for hook in _named(part, name, stack)]
    try:
        with _recorder(inputs, note, data_sized), _reads_refused(inputs):
            module(*inputs)
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
        raise UnsupportedError(what, "let it take floats of zero and the highest whole numbers of its inputs") from err
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def _recorder(inputs: tuple[Any, ...], note: Callable[[str, str, Any, Any], None], data_sized: list[str]) -> Any:
    """Return a mode that tells name, namespace, arguments and result of every operator below autograd.

    It follows what the inputs decide, and raises UnsupportedError where that is read into Python; operators whose
    result has as many elements as the inputs decide are added to `data_sized`.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.weak import WeakTensorKeyDictionary

    fed = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            op = func.__name__.split(".")[0]
            if any(isinstance(arg, torch.Tensor) and arg in fed for arg in torch.utils._pytree.arg_tree_leaves(*args)):
                if op in ("_local_scalar_dense", "equal"):
                    raise _data_dependent(calling_line())
                if torch.Tag.dynamic_output_shape in func.tags:
                    data_sized.append(op)
                result = func(*args, **kwargs)
                fed.update((leaf, True) for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf))
            else:
                result = func(*args, **kwargs)
            note(op, func.namespace, args, result)
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


def _data_dependent(where: str) -> UnsupportedError:
    what = f"the model reads a value that depends on its input{where}: TorchScript would keep that of one run"
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
