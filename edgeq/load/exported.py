"""Exported programs: `.pt2` files of this torch version and older ones, checked before the long steps start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, first_line, nearest
from edgeq.core.operators import exported
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.core.safe_load import load_program
from edgeq.core.sources import unreadable
from edgeq.load.inputs import MAX_ELEMENTS, parse_inputs, tensor_spec

# the position of `training` among the arguments of operators that behave otherwise then
_TRAINING_ARGUMENT = {"batch_norm": 5, "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}


def load_exported(path: Path, *, trusted: bool = False) -> Any:
    """Return the torch.export.ExportedProgram in `path`, contiguous.

    Raises:
        UsageError: the file is damaged, not an exported program, or could run code and is not `trusted`.
        UnsupportedError: it was exported in training mode, or takes its inputs by keyword.
    """
    import torch

    try:
        program = load_program(path, trusted=trusted)
    except EdgeqError:
        raise
    except Exception as err:  # torch raises a different type for each way in which the archive is broken
        raise unreadable(path, f"{first_line(err)} (torch {torch.__version__})") from err
    for node in program.graph.nodes:
        position = _TRAINING_ARGUMENT.get(str(getattr(node.target, "__name__", "")).partition(".")[0])
        if position is not None and len(node.args) > position and node.args[position] is True:
            what = f"{path} was exported in training mode: {node.name} is in training mode"
            raise UnsupportedError(what, "call model.eval() before torch.export.export, and export it again")
    if program.call_spec.in_spec.child(1).num_children:
        what = f"{path} takes keyword inputs, but device runtimes only pass inputs by position"
        raise UnsupportedError(what, "export it again with positional arguments only")
    return program


def contiguous(program: Any, specs: Sequence[TensorSpec]) -> Any:
    """Return the program itself, or one captured again from it where weights are in channels_last.

    Args:
        program: an ExportedProgram, left as it is.
        specs: its inputs.

    Raises:
        UnsupportedError: it cannot be captured again.
    """
    import torch

    if all(tensor.is_contiguous() for tensor in program.state_dict.values()):
        return program
    module = program.module()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()
    inputs = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs)
    try:
        return exported(module, inputs, specs)
    except Exception as err:  # export raises many types
        what = f"the exported program is in channels_last and cannot be captured again: {first_line(err)}"
        raise UnsupportedError(what, "export model.to(memory_format=torch.contiguous_format)") from err


def exported_inputs(program: Any, path: Path, texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the inputs that a program states, with the ranges that `texts` of --input give.

    Raises:
        UnsupportedError: an input is not a tensor, or has a dtype that no runtime takes, or a size that depends on
            another one.
        UsageError: --input names an unknown input, gives another shape or dtype, or does not bound a size that varies.
    """
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names = program.graph_signature.user_inputs
    examples = _examples(program, len(names))
    specs: dict[str, TensorSpec] = {}
    named: dict[Any, str] = {}  # sizes that vary, by their symbols
    for index, (name, example) in enumerate(zip(names, examples, strict=True)):
        value = placeholders.get(name)
        if value is None or not hasattr(value, "shape"):
            raise UnsupportedError(
                f"{path}: input {name!r} is not a tensor", "export the model with tensor inputs only"
            )
        spec = tensor_spec(name, value if example is None else example, str(path))
        varying = []
        for axis, side in enumerate(value.shape):
            if isinstance(side, int):
                continue
            symbol = side.node.expr
            bounds = program.range_constraints.get(symbol)
            if not symbol.is_symbol or bounds is None:
                what = f"{path}: the size of input {name!r} in dimension {axis} is {symbol}, which depends on another"
                raise UnsupportedError(what, "export it again with independent sizes, or with fixed ones")
            most = int(bounds.upper) if bounds.upper < MAX_ELEMENTS else None
            shared = named.setdefault(symbol, f"size{index}_{axis}")
            varying.append(VaryingSize(axis=axis, name=shared, least=max(1, int(bounds.lower)), most=most))
        largest = {one.axis: one.most or one.least for one in varying}
        shape = tuple(largest.get(axis, size) for axis, size in enumerate(spec.shape))
        specs[name] = dataclasses.replace(spec, shape=shape, varying=tuple(varying))
    for text, given in zip(texts, parse_inputs(texts), strict=True):
        index = texts.index(text)
        name = given.name if "=" in text else names[index] if index < len(names) else given.name
        if name not in specs:
            what = f"{path} has no input {name!r}.{nearest(name, names)}"
            raise UsageError(what, f"it takes: {', '.join(names)}")
        stated = specs[name]
        same_axes = [one.axis for one in given.varying] == [one.axis for one in stated.varying]
        smallest = [next((one.least for one in given.varying if one.axis == i), n) for i, n in enumerate(given.shape)]
        fits = same_axes and stated.takes(tuple(smallest)) and stated.takes(given.shape)
        if given.dtype != stated.dtype or not fits:
            what = f"--input {text!r} does not fit {path}, whose {name!r} is {stated.dtype} {stated.shape_text()}"
            raise UsageError(what, "omit --input, or export the model again with that shape")
        specs[name] = dataclasses.replace(
            stated, low=given.low, high=given.high, shape=given.shape, varying=given.varying
        )
    for spec in specs.values():
        if any(one.most is None for one in spec.varying):
            what = f"{path}: sizes of input {spec.name!r} have no upper bound: {spec.shape_text()}"
            ranges = {one.axis: f"{{{one.name}={one.least}..{one.most or 'MOST'}}}" for one in spec.varying}
            sides = "x".join(ranges.get(axis, str(size)) for axis, size in enumerate(spec.shape))
            raise UsageError(what, f"give their range: --input {spec.name}={spec.dtype}:{sides}")
    return tuple(specs.values())


def _examples(program: Any, count: int) -> tuple[Any, ...]:
    """Return the inputs that it was exported with, where the file still holds them."""
    given = program.example_inputs[0] if program.example_inputs else ()
    return tuple(given) if len(given) == count else (None,) * count
