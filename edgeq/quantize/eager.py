"""Eager mode quantization, for modules that mark their int8 part with QuantStub and DeQuantStub themselves."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Collection
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.result import type_names
from edgeq.quantize.spec import QuantizeSpec, matched_names

# kinds that fuse_modules takes, the longest first
_CHAINS = (
    ("Conv", "BatchNorm", "ReLU"),
    ("Conv", "BatchNorm"),
    ("Conv", "ReLU"),
    ("Linear", "ReLU"),
)

_SAME = 1e-3  # folding a batch norm into its convolution rounds in float32


def has_stubs(module: Any) -> bool:
    """Whether a module says itself where int8 starts."""
    from torch.ao.quantization import QuantStub

    return any(type(part) is QuantStub for part in module.modules())


def prepare_eager(spec: QuantizeSpec, qconfig: Any) -> Any:
    """Fuse a copy of the module and give it observers.

    Raises:
        UnsupportedError: fusion changes what the model computes, or a module cannot be observed.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    from torch.ao.quantization import prepare

    module = copy.deepcopy(spec.model.model)
    kept = matched_names(spec.keep_fp32, type_names(module))
    _fuse(module, kept, example_tensors(spec.inputs))
    module.qconfig = qconfig
    parts = dict(module.named_modules())
    for name in kept:
        if name in parts:  # fused modules are gone
            parts[name].qconfig = None
    try:
        return prepare(module)
    except Exception as err:  # torch.ao raises many types
        what = f"eager mode cannot prepare the model: {first_line(err)}"
        raise UnsupportedError(what, "keep that module in float (--keep-fp32)") from err


def convert_eager(prepared: Any, inputs: tuple[Any, ...]) -> Any:
    """Convert what was calibrated, and run it once: only that shows an operator between two stubs that has no int8.

    Raises:
        UnsupportedError: the converted model does not run.
    """
    import torch
    from torch.ao.quantization import convert

    converted = convert(prepared)
    try:
        with torch.no_grad():
            converted(*inputs)
    except Exception as err:  # the engines raise many types
        what = f"the converted model does not run: {first_line(err)}"
        fix = "put a DeQuantStub before the part that stays in float, and use FloatFunctional for add, mul and cat"
        raise UnsupportedError(what, fix) from err
    return converted


def _fuse(module: Any, kept: Collection[str], inputs: tuple[Any, ...]) -> None:
    """Fuse by the module's own `fuse_model()`, as torchvision's have, or else what follows each other in a run."""
    import torch
    from torch.ao.quantization import fuse_modules

    with torch.no_grad():
        before = torch.utils._pytree.tree_leaves(module(*inputs))
        own = getattr(module, "fuse_model", None)
        if callable(own):
            own(**({"is_qat": False} if "is_qat" in inspect.signature(own).parameters else {}))
        else:
            chains = [chain for chain in _chains(module, inputs) if not set(chain) & set(kept)]
            if chains:
                fuse_modules(module, chains, inplace=True)
        after = torch.utils._pytree.tree_leaves(module(*inputs))
    same = all(
        torch.allclose(a, b, rtol=_SAME, atol=_SAME * float(a.abs().max())) for a, b in zip(before, after, strict=True)
    )
    if not same:
        what = "fusing conv, batch norm and relu changes what the model computes: one of them is used twice"
        raise UnsupportedError(
            what,
            "give the model a fuse_model() that fuses only valid groups, or keep that module in float (--keep-fp32)",
        )


def _chains(module: Any, inputs: tuple[Any, ...]) -> list[list[str]]:
    """Return the names of modules that feed each other in one run and can be fused."""
    calls: list[tuple[str, Any, Any]] = []
    hooks = [
        part.register_forward_hook(lambda _part, args, result, name=name: calls.append((name, args[0], result)))
        for name, part in module.named_modules()
        if next(part.children(), None) is None
    ]
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    kinds = type_names(module)
    chains: list[list[str]] = []
    index = 0
    while index < len(calls):
        chain = next((found for kind in _CHAINS if (found := _matched(calls[index:], kind, kinds))), None)
        if chain is not None:
            chains.append(chain)
        index += len(chain) if chain else 1
    return chains


def _matched(calls: list[tuple[str, Any, Any]], kind: tuple[str, ...], kinds: dict[str, str]) -> list[str] | None:
    """Return the names of the first calls where they are of these kinds, each fed by the one before."""
    run = calls[: len(kind)]
    fits = len(run) == len(kind) and all(
        kinds[name].rstrip("123d") == wanted for (name, _, _), wanted in zip(run, kind, strict=True)
    )
    fed = all(after[1] is before[2] for before, after in itertools.pairwise(run))
    once = all([name for name, _, _ in calls].count(name) == 1 for name, _, _ in run)
    return [name for name, _, _ in run] if fits and fed and once else None
