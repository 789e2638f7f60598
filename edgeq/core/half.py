"""Half precision as a GPU computes it, emulated on the CPU."""

from __future__ import annotations

from typing import Any

from edgeq.core.system import Uncompiled

# the largest finite float16 (IEEE 754 binary16); beyond it comes infinity
HALF_MAX = 65504.0

_NO_KERNEL = (
    "not implemented for",
    "not supported",
    "unsupported",
    "expected scalar type",
    "could not create a primitive",
)

# these multiply half values and add them up in float32 on tensor cores, and round once
_PRODUCTS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "dot", "_convolution"})

_PRODUCTS_PREFIX = "_scaled_dot_product"


def emulation() -> Any:
    """Return a context in which half tensors are computed with as on a GPU: products by float32 sums, rounded once.

    Convolutions and matrix products are computed in float32 from the half values, since tensor cores add up in float32
    and the CPU's own half kernels need not. All else takes the CPU's half kernels; where an operator has none, it is
    computed in float32 and its result rounded to half.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Emulation(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator below autograd."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            # the half dtype among the tensors; None where there is none
            values = (args, kwargs)
            halves = (torch.float16, torch.bfloat16)
            leaves = torch.utils._pytree.tree_leaves(values)
            dtype = next((leaf.dtype for leaf in leaves if torch.is_tensor(leaf) and leaf.dtype in halves), None)
            if dtype is None:
                return func(*args, **kwargs)
            name = func.__name__.partition(".")[0]
            if name not in _PRODUCTS and not name.startswith(_PRODUCTS_PREFIX):
                try:
                    return func(*args, **kwargs)
                except (NotImplementedError, RuntimeError) as err:
                    if not any(words in str(err) for words in _NO_KERNEL):
                        raise
            return _rounded(torch, func, args, kwargs, dtype)

    return Emulation()


def emulated(graph: Any) -> Any:
    """Return a module that runs `graph` under `emulation`; it takes and returns what `graph` does."""
    import torch

    class Emulated(torch.nn.Module):  # type: ignore[misc]
        """Calls the graph."""

        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *inputs: Any) -> Any:
            """Return what the graph returns."""
            with emulation():
                return self.graph(*inputs)

    return Emulated()


def _rounded(torch: Any, func: Any, args: Any, kwargs: Any, dtype: Any) -> Any:
    """Compute in float32 and round the result; results of in-place operators are copied into the original tensors."""
    tree_map = torch.utils._pytree.tree_map

    def wider(value: Any) -> Any:
        return value.float() if torch.is_tensor(value) and value.dtype == dtype else value

    wide_args, wide_kwargs = tree_map(wider, (args, kwargs))
    result = func(*wide_args, **wide_kwargs)
    if func._schema.is_mutable:
        pairs = zip(
            torch.utils._pytree.tree_leaves((args, kwargs)),
            torch.utils._pytree.tree_leaves((wide_args, wide_kwargs)),
            strict=True,
        )
        changed = {id(wide): own.copy_(wide) for own, wide in pairs if torch.is_tensor(own) and own is not wide}
        return tree_map(lambda leaf: changed.get(id(leaf), leaf), result)
    if kwargs.get("dtype") is not None:
        return result
    return tree_map(
        lambda leaf: leaf.to(dtype) if torch.is_tensor(leaf) and leaf.dtype == torch.float32 else leaf, result
    )
