"""Exported programs: `.pt2` files of this torch version and older ones, checked before the long steps start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, first_line, nearest
from edgeq.core.results.model import TensorSpec
from edgeq.core.safe_load import load_program
from edgeq.core.sources import unreadable
from edgeq.load.inputs import parse_input, tensor_spec

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
        return torch.export.export(module, inputs)
    except Exception as err:  # export raises many types
        what = f"the exported program is in channels_last and cannot be captured again: {first_line(err)}"
        raise UnsupportedError(what, "export model.to(memory_format=torch.contiguous_format)") from err


def exported_inputs(program: Any, path: Path, texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the inputs that a program states, with the ranges that `texts` of --input give.

    Raises:
        UnsupportedError: an input is not a tensor, or has a dynamic shape or a dtype that no runtime takes.
        UsageError: --input names an unknown input, or gives another shape or dtype.
    """
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names = program.graph_signature.user_inputs
    examples = _examples(program, len(names))
    specs = {}
    for name, example in zip(names, examples, strict=True):
        value = placeholders.get(name)
        if value is None or not hasattr(value, "shape"):
            raise UnsupportedError(
                f"{path}: input {name!r} is not a tensor", "export the model with tensor inputs only"
            )
        if not all(isinstance(side, int) for side in value.shape):
            what = f"{path}: input {name!r} has a dynamic shape {list(value.shape)}"
            raise UnsupportedError(what, "export it again with fixed shapes")
        specs[name] = tensor_spec(name, value if example is None else example, str(path))
    for index, text in enumerate(texts):
        given = parse_input(text, index)
        name = given.name if "=" in text else names[index] if index < len(names) else given.name
        if name not in specs:
            what = f"{path} has no input {name!r}.{nearest(name, names)}"
            raise UsageError(what, f"it takes: {', '.join(names)}")
        stated = specs[name]
        if (given.dtype, given.shape) != (stated.dtype, stated.shape):
            what = f"--input {text!r} does not fit {path}, whose {name!r} is {stated.dtype} {list(stated.shape)}"
            raise UsageError(what, "omit --input, or export the model again with that shape")
        specs[name] = dataclasses.replace(stated, low=given.low, high=given.high)
    return tuple(specs.values())


def _examples(program: Any, count: int) -> tuple[Any, ...]:
    """Return the inputs that it was exported with, where the file still holds them."""
    given = program.example_inputs[0] if program.example_inputs else ()
    return tuple(given) if len(given) == count else (None,) * count
