"""LiteRT lowering: the graph as a program that the converter reads in an environment of its own, then `.tflite`."""

from __future__ import annotations

import functools
import importlib.metadata
import operator
import tempfile
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.results.model import LoweredModel, QuantizedModel
from edgeq.core.system import quiet
from edgeq.lower import tflite
from edgeq.lower.layers import MATRIX_OPS, MODULE_KEY, zero_share
from edgeq.lower.lift import exported_again
from edgeq.lower.litert_environment import convert, ensure_converter
from edgeq.lower.spec import LowerSpec

_LAYERS = frozenset(
    {"convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", *MATRIX_OPS}
    | {"lstm", "gru", "rnn_tanh", "rnn_relu"}  # the converter makes matrix products of their steps
)

# by scheme: how float weights that were rounded are stored, and whether linear layers read int8 ones themselves
_STORED: dict[str, tuple[tflite.Shorten, bool]] = {
    "fp16": (tflite.in_half, False),
    "weight-only-int8": (tflite.in_int8, False),
    "dynamic-int8": (tflite.in_int8, True),
}

# what a node says of where it came from: paths of this machine, and names of the user's files
_ORIGINS = ("stack_trace", "source_fn_stack", "torch_fn", "from_node")


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Write `model.tflite`, with the inputs' names, shapes and dtypes, and `output0` and so on.

    Raises:
        UnsupportedError: the converter lacks an operator of the model.
        EnvironmentProblem: the converter's environment is missing and cannot be made.
    """
    python = ensure_converter(spec.progress)
    path = spec.folder / "model.tflite"
    with spec.progress.task(f"lower {spec.label}"), tempfile.TemporaryDirectory(dir=spec.folder) as scratch:
        program, names = _handed_over(quantized, spec)
        source, made = Path(scratch) / "model.pt2", Path(scratch) / "made.tflite"
        _save(program, source)
        convert(python, source, made, static=quantized.scheme not in _FLOATS)
        model = tflite.load_converted(made)
        tflite.give_float_ends(model, [item.dtype for item in spec.inputs])
        outputs = [*spec.output_names] or [f"output{i}" for i, _ in enumerate(model.subgraphs[0].outputs)]
        tflite.rename(model, names, [item.name for item in spec.inputs], outputs)
        if quantized.scheme in _STORED:
            shorten, dynamic = _STORED[quantized.scheme]
            tflite.store(model, shorten, dynamic=dynamic)
        tflite.strip(model)
        tflite.save(model, path)
    return LoweredModel(
        path=path,
        runtime="litert",
        runtime_version=importlib.metadata.version("ai-edge-litert"),
        bytecode_version=None,
        passes=("torch.export", "litert-torch"),
        operators=tflite.operators_of(model),
        undelegated=(),
        layers=tflite.layers_of(model),
        delegated_macs=None,
        stored=tflite.elements_of(model),
        zeros=zero_share(tflite.constants_of(model)),
    )


_FLOATS = frozenset({"fp32", "fp16", "weight-only-int8", "dynamic-int8"})  # the converter sees their graphs in float


def _handed_over(quantized: QuantizedModel, spec: LowerSpec) -> tuple[Any, frozenset[str]]:
    """Return the program that the converter is given, and the names of its layers."""
    try:
        with quiet():
            program = quantized.exported
            if program is None:
                program = exported_again(quantized.graph, spec)
            module = program.module(check_guards=False)
            if quantized.scheme == "dynamic-int8":
                _leave_inputs_in_float(module)
            _round_in_graph(module, fold=quantized.scheme in _FLOATS)
            names = _name(module)
            return exported_again(module, spec), names
    except Exception as err:  # torch.export raises many types
        what = f"the graph cannot be exported for LiteRT's converter: {first_line(err)}"
        raise UnsupportedError(what, "use another target, such as android-arm64-xnnpack") from err


def _leave_inputs_in_float(module: Any) -> None:
    """Take out what quantizes the inputs of linear layers as they run: LiteRT's own operators do that."""
    import torch

    ops = torch.ops.quantized_decomposed
    for node in list(module.graph.nodes):
        if node.target is ops.dequantize_per_tensor.tensor and node.args[0].op == "call_function":
            node.replace_all_uses_with(node.args[0].args[0])
    module.graph.eliminate_dead_code()
    module.recompile()


def _round_in_graph(module: Any, *, fold: bool) -> None:
    """Write int8 constants as float ones, of the same values, that the graph rounds.

    The converter refuses constants that are int8 already ("must be ranked tensor of per-tensor integer quantized …").

    Args:
        module: the graph's module, changed in place.
        fold: whether the graph is to hold the float values alone.
    """
    import torch

    ops = torch.ops.quantized_decomposed
    quantizes = {
        ops.dequantize_per_channel.default: ops.quantize_per_channel.default,
        ops.dequantize_per_tensor.default: ops.quantize_per_tensor.default,
        ops.dequantize_per_tensor.tensor: ops.quantize_per_tensor.tensor,
    }
    value_of = functools.partial(_value, module)
    for index, node in enumerate(list(module.graph.nodes)):
        if node.target not in quantizes or node.args[0].op != "get_attr":
            continue
        with torch.no_grad():
            values = node.target(*map(value_of, node.args))
        name = f"edgeq_rounded_{index}"
        module.register_buffer(name, values)
        with module.graph.inserting_before(node):
            source = module.graph.get_attr(name)
            if fold:
                node.replace_all_uses_with(source)
            else:
                rounded = module.graph.call_function(quantizes[node.target], (source, *node.args[1:]))
                node.replace_input_with(node.args[0], rounded)
    module.graph.eliminate_dead_code()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in read]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    module.recompile()


def _value(module: Any, argument: Any) -> Any:
    """Return the constant that a node stands for, or what is no node."""
    return operator.attrgetter(argument.target)(module) if hasattr(argument, "op") else argument


def _name(module: Any) -> frozenset[str]:
    """Give each layer's node its name as its place, which the converter keeps; return the names."""
    names = set()
    for node in module.graph.nodes:
        for key in _ORIGINS:
            node.meta.pop(key, None)
        node.meta["nn_module_stack"] = {}
        target = getattr(node.target, "__name__", "").partition(".")[0]
        if node.op == "call_function" and target in _LAYERS:
            name = str(node.meta.get("custom", {}).get(MODULE_KEY) or node.name).replace(";", ",")
            names.add(name)
            for part in (node, *(arg for arg in node.args[1:3] if getattr(arg, "op", "") == "call_function")):
                part.meta["nn_module_stack"] = {"layer": ("", name)}
    return frozenset(names)


def _save(program: Any, path: Path) -> None:
    import torch

    with quiet():
        torch.export.save(program, path)
