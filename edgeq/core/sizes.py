"""Sizes of inputs that vary from call to call, such as a sequence's length: which are tried, and torch's form of them.

`TensorSpec.shape` holds the largest of such a size: memory, multiply-accumulates and latency are those of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from edgeq.core.operators import whole_recurrent
from edgeq.core.results.model import TensorSpec, VaryingSize

BATCH = "batch"  # the size that --dynamic-batch leaves open

Sizes = Mapping[str, int]  # by the names of the sizes


def varying_sizes(specs: Sequence[TensorSpec]) -> dict[str, VaryingSize]:
    """Return the sizes that vary within bounds, by name."""
    return {one.name: one for spec in specs for one in spec.varying if one.most is not None}


def tried_sizes(specs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Return what the sizes are set to in trials: all largest, all smallest, all in the middle; none if none varies.

    Of several sizes, each is also the smallest while the others are the largest.
    """
    found = varying_sizes(specs)
    if not found:
        return ()
    least = {name: one.least for name, one in found.items()}
    most = {name: _most(one) for name, one in found.items()}
    middle = {name: (one.least + _most(one)) // 2 // one.step * one.step for name, one in found.items()}
    mixed = [{**most, name: least[name]} for name in found] if len(found) > 1 else []
    tried = [most, least, {name: max(middle[name], least[name]) for name in found}, *mixed]
    return tuple(one for i, one in enumerate(tried) if one not in tried[:i])


def beyond_sizes(specs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Return sizes just outside of the bounds, one at a time: above, and below where that leaves any element."""
    found = varying_sizes(specs)
    most = {name: _most(one) for name, one in found.items()}
    least = {name: one.least for name, one in found.items()}
    above = [{**most, name: most[name] + one.step} for name, one in found.items()]
    below = [{**least, name: least[name] - one.step} for name, one in found.items() if one.least > one.step]
    return (*above, *below)


def drawn_sizes(specs: Sequence[TensorSpec], index: int, rng: Any) -> dict[str, int]:
    """Return the sizes of random sample `index`: the first ones are `tried_sizes`, the others are drawn evenly."""
    tried = tried_sizes(specs)
    if index < len(tried):
        return tried[index]
    return {
        name: one.step * int(rng.integers(one.least // one.step, _most(one) // one.step, endpoint=True))
        for name, one in varying_sizes(specs).items()
    }


def fixed_at(specs: Sequence[TensorSpec], sizes: Sizes) -> tuple[TensorSpec, ...]:
    """Return inputs of these sizes, which no longer vary."""
    return tuple(
        dataclasses.replace(
            spec,
            shape=tuple(
                next((sizes[one.name] for one in spec.varying if one.axis == axis and one.name in sizes), size)
                for axis, size in enumerate(spec.shape)
            ),
            varying=(),
        )
        if spec.varying
        else spec
        for spec in specs
    )


def sizes_text(sizes: Sizes) -> str:
    """Return "seq=8, time=400"."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def varying_outputs(
    tried: Sequence[Sizes], shapes: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[tuple[VaryingSize, ...], ...]:
    """Return which sizes of each output vary, by its shapes in trials; () for outputs whose ranks differ.

    A size that always equals one of the inputs' has its name, any other one of its own.

    Args:
        tried: the inputs' sizes.
        shapes: by trial, the shape of each output.
    """
    found = []
    for index, column in enumerate(zip(*shapes, strict=True)):
        varying = []
        for axis, sides in enumerate(zip(*column, strict=False)):
            if len(set(sides)) == 1:
                continue
            equal = [name for name in tried[0] if tuple(one[name] for one in tried) == sides]
            name = equal[0] if equal else f"output{index}_{axis}"
            varying.append(VaryingSize(axis=axis, name=name, least=min(sides), most=max(sides)))
        found.append(tuple(varying))
    return tuple(found)


def with_open_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return inputs whose first size is any: what --dynamic-batch asks for, and what trains faster."""
    batch = VaryingSize(axis=0, name=BATCH, least=1, most=None)
    return tuple(dataclasses.replace(spec, varying=(batch, *spec.varying)) for spec in specs)


def traced_at(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs to capture a model with: an open size of one is two, since torch.export takes 1 for fixed."""
    return tuple(
        dataclasses.replace(
            spec,
            shape=tuple(
                2 * size if any(one.axis == axis and one.most is None for one in spec.varying) else size
                for axis, size in enumerate(spec.shape)
            ),
        )
        for spec in specs
    )


def exported(module: Any, inputs: tuple[Any, ...], specs: Sequence[TensorSpec]) -> Any:
    """Return a module as a torch.export.ExportedProgram whose sizes vary as `specs` say.

    Args:
        module: a torch.nn.Module.
        inputs: example tensors, as large as `traced_at` says.
        specs: its inputs.

    Raises:
        Exception: torch.export's own.
    """
    import torch

    with open_steps(specs):
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(specs))


def open_steps(specs: Sequence[TensorSpec]) -> AbstractContextManager[None]:
    """Return a context in which torch leaves the number of a recurrent layer's steps open, where sizes vary."""
    return whole_recurrent() if any(spec.varying for spec in specs) else contextlib.nullcontext()


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[Any, ...] | None:
    """Return the sizes that vary as torch.export takes them; None if none does."""
    import torch

    dims: dict[str, Any] = {}
    for one in itertools.chain.from_iterable(spec.varying for spec in specs):
        if one.name in dims:
            continue
        if one.step == 1:
            dims[one.name] = torch.export.Dim(one.name, min=one.least, max=one.most)
        else:
            steps = torch.export.Dim(f"{one.name}_steps", min=one.least // one.step, max=_most(one) // one.step)
            dims[one.name] = one.step * steps
    if not dims:
        return None
    return tuple({one.axis: dims[one.name] for one in spec.varying} or None for spec in specs)


def size_bound(size: Any) -> int:
    """Return a size of a captured graph, the largest that it takes where it varies."""
    if isinstance(size, int):
        return size
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    hint = size.node.hint
    return int(bound) if bound.is_number and bound.is_finite and not math.isinf(float(bound)) else int(hint)


def _most(one: VaryingSize) -> int:
    if one.most is None:
        raise ValueError(f"{one.name} has no bound")
    return one.most
