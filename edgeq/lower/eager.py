"""Layers of a module that is run, not exported: what TorchScript archives are made of."""

from __future__ import annotations

from typing import Any

from edgeq.artifacts import Layer
from edgeq.lower.macs import conv_macs, matmul_macs

_MATRIX_OPS = {"addmm": (1, 2), "mm": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2)}


def eager_layers(module: Any, inputs: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Run `module` once and return its convolutions and matrix products in the order of execution."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[Layer] = []
    stack: list[str] = []

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator below autograd."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            layer = _layer(func.__name__.split(".")[0], func.namespace, args, result, stack[-1] if stack else "")
            if layer is not None:
                found.append(layer)
            return result

    hooks = [hook for name, part in module.named_modules() if name for hook in _named(part, name, stack)]
    try:
        with Recorder():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


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
        weight = args[1]
    elif op in _MATRIX_OPS:
        left, weight = (args[i] for i in _MATRIX_OPS[op])
        macs = matmul_macs(left.shape, result.shape[-1])
    else:
        return None
    size = weight.numel() * weight.element_size()
    return Layer(name=name or op, op=op, macs=int(macs), weight_bytes=int(size), delegated=False)


def _quantized_layer(op: str, args: Any, result: Any, name: str) -> Layer | None:
    """Unpack the weights of a quantized convolution or linear; QNNPACK and FBGEMM hide them in an object."""
    if not op.startswith(("conv", "linear")) or op.endswith(("prepack", "unpack")):
        return None
    weight = args[1].weight() if hasattr(args[1], "weight") else args[1].unpack()[0]
    if op.startswith("linear"):
        macs = matmul_macs(args[0].shape, weight.shape[0])
    else:
        macs = conv_macs(weight.shape, result.shape, args[0].shape, transposed="transpose" in op)
    size = weight.numel() * weight.element_size()
    return Layer(name=name or op, op=op, macs=int(macs), weight_bytes=int(size), delegated=False)
