"""Capture a model with torch.export, once for all ExecuTorch targets of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from edgeq._replace import replaced
from edgeq.artifacts import LoadedModel, TensorSpec
from edgeq.blame import user_line
from edgeq.errors import UnsupportedError, UsageError, first_line

MODULE_KEY = "edgeq_module"  # survives decomposition and lowering in `meta["custom"]`


def example_tensors(specs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    """Return one seeded tensor for each input, contiguous, within the input's range."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            values = torch.rand(spec.shape, generator=generator) * (spec.high - spec.low) + spec.low
        else:
            values = torch.randint(int(spec.low), int(spec.high) + 1, spec.shape, generator=generator)
        tensors.append(values.to(dtype))
    return tuple(tensors)


def run_once(model: LoadedModel) -> tuple[TensorSpec, ...]:
    """Run the float model on one random input and return its outputs: a misfit shows before minutes are spent.

    Raises:
        UsageError: the model does not take the inputs that were given.
        UnsupportedError: an output that is no tensor.
    """
    import torch

    module = model.model.module() if model.kind == "exported" else model.model
    try:
        with torch.no_grad():
            result = module(*example_tensors(model.inputs))
    except Exception as err:  # the user's forward may raise anything
        given = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in model.inputs)
        what = f"the model fails on its inputs ({given}){user_line(err)}: {first_line(err)}"
        raise UsageError(what, _advice(module, model.inputs)) from err
    leaves = torch.utils._pytree.tree_leaves(result)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        came = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise UnsupportedError(f"the model returns {came}, expected tensors", "return tensors only")
    return tuple(
        TensorSpec(name=f"output{i}", dtype=str(leaf.dtype).removeprefix("torch."), shape=tuple(leaf.shape))
        for i, leaf in enumerate(leaves)
    )


def capture(model: LoadedModel) -> Any:
    """Return the model as a torch.export.ExportedProgram; each node knows the module that it came from.

    Raises:
        UnsupportedError: the model cannot be captured (data-dependent control flow); names the line.
    """
    import torch

    if model.kind == "exported":
        program = model.model
    else:
        try:
            with silenced():
                program = torch.export.export(model.model, example_tensors(model.inputs))
        except Exception as err:  # export raises many types, most of them internal
            what = f"torch.export cannot capture the model{user_line(err)}: {first_line(err)}"
            # TorchScript keeps one branch for ever, and so its targets refuse these too
            depends = "data-dependent" in str(err)
            fix = "take out control flow that depends on data (torch.where, torch.cond)"
            fix += "" if depends else ", or try a TorchScript target"
            raise UnsupportedError(what, fix) from err
    return _with_modules(program)


def capture_batched(model: LoadedModel) -> Any | None:
    """Return the model captured for batches of any size, which train faster; None where it takes one size only.

    Inputs without a batch axis, a program that was exported before, and a forward that counts on its batch are such.
    """
    import torch

    if model.kind == "exported" or not all(spec.shape for spec in model.inputs):
        return None
    batch = torch.export.Dim("batch", min=1)
    # two rows, since torch.export takes sizes of 0 and 1 for constants
    wider = [dataclasses.replace(spec, shape=(2 * spec.shape[0], *spec.shape[1:])) for spec in model.inputs]
    try:
        with silenced():
            program = torch.export.export(
                model.model, example_tensors(wider), dynamic_shapes=tuple({0: batch} for _ in wider)
            )
    except Exception:  # export raises many types; the capture of one size says what is wrong with the model
        return None
    return _with_modules(program)


def dynamic_capture(model: LoadedModel) -> Any:
    """Return the model captured for batches of any size.

    Raises:
        UnsupportedError: it takes one size only.
    """
    program = capture_batched(model)
    if program is None:
        what = "the model takes batches of one size only: --dynamic-batch cannot capture it"
        raise UnsupportedError(
            what, "take fixed sizes out of its forward (x.flatten(1), not x.view(1, -1)), or give one"
        )
    return program


def _advice(module: Any, specs: Sequence[TensorSpec]) -> str:
    """Return what to do about a forward that fails: weights in half need no other --input, but float32."""
    floats = {str(value.dtype).removeprefix("torch.") for value in module.parameters() if value.is_floating_point()}
    others = sorted(floats - {"float32", *(spec.dtype for spec in specs)})
    if others:
        return f"its weights are {' and '.join(others)}: give it in float32 (model.float()); schemes make the rest"
    return "give --input with the shapes and dtypes that its forward takes"


def _with_modules(program: Any) -> Any:
    """Let each node know the module that it came from."""
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            # the whole dict is replaced, since nodes may share one
            name = str(list(stack.values())[-1][0])
            node.meta["custom"] = {**node.meta.get("custom", {}), MODULE_KEY: _plain(name)}
    return program


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep torch from logging and printing whole graphs beside an error that is told in two lines."""
    import torch.export._trace

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # its only use of sys; standard error itself belongs to the progress bars
        with replaced(torch.export._trace, "sys", SimpleNamespace(stderr=io.StringIO())):
            yield
    finally:
        logging.disable(before)


def _plain(name: str) -> str:
    """Take torch.export's prefix off a module's name."""
    return name.removeprefix("L['self'].").removeprefix("L__self__.").removeprefix("L['self']")
