"""Layers of an ONNX graph: multiply-accumulates from inferred shapes, bytes and elements from its constants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgeq.artifacts import Layer, TensorSpec
from edgeq.lower.macs import conv_macs, matmul_macs

_MATRIX = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm"})
_CONV = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
# operators whose inputs have a scale and a zero point each
_WITH_SCALES = frozenset({"QLinearMatMul", "QGemm", "QLinearConv"})
LAYER_OPS = _MATRIX | _CONV | RECURRENT
# they hand on a constant's values, in another type or order
_PASSING = frozenset({"DequantizeLinear", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"})


def onnx_layers(proto: Any, macs: Mapping[str, int] | None = None) -> tuple[Layer, ...]:
    """Return the layers in the graph's order, by their nodes' names.

    Args:
        proto: a model, with the shapes of all its values where `macs` is None.
        macs: multiply-accumulates by node, for a model whose operators onnx cannot infer shapes of.
    """
    graph = proto.graph
    known = layer_macs(proto) if macs is None else macs
    held = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return tuple(
        Layer(
            name=node.name,
            op=node.op_type,
            macs=known.get(node.name, 0),
            weight_bytes=sum(_nbytes(held, makers, name) for name in node.input),
            delegated=False,
        )
        for node in graph.node
        if node.op_type in LAYER_OPS
    )


def layer_macs(proto: Any) -> dict[str, int]:
    """Return the multiply-accumulates of one inference, by node; of a model with the shapes of all its values.

    Raises:
        KeyError: a value without a shape.
    """
    shapes = _shapes(proto.graph)
    return {node.name: int(_macs(node, shapes)) for node in proto.graph.node if node.op_type in LAYER_OPS}


def fixed(proto: Any, inputs: Sequence[TensorSpec]) -> Any:
    """Return a copy with the inputs' sizes stated, and of all values that onnx can infer."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    sizes = {spec.name: spec.shape for spec in inputs}
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del copy.graph.value_info[:]
    for value in copy.graph.output:  # an open size is inferred anew
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def elements(proto: Any) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype the graph holds as constants."""
    import onnx

    tally: Counter[str] = Counter()
    for item in proto.graph.initializer:
        tally[str(onnx.helper.tensor_dtype_to_np_dtype(item.data_type))] += math.prod(item.dims)
    return tuple(sorted(tally.items()))


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name, of the values that have one: onnx notes the type alone where it cannot infer more."""
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {item.name: tuple(item.dims) for item in graph.initializer}


def _macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    second = 3 if node.op_type in _WITH_SCALES else 1
    source, weight, output = node.input[0], node.input[second], node.output[0]
    if node.op_type in _CONV:
        transposed = node.op_type == "ConvTranspose"
        return conv_macs(shapes[weight], shapes[output], shapes[source], transposed=transposed)
    if node.op_type in _MATRIX:
        if output in shapes and source in shapes:
            return matmul_macs(shapes[source], shapes[output][-1] if shapes[output] else 1)
        # [..., K] x [..., K, columns]: where onnx infers no more, the weight tells one of the factors
        swapped = any(item.name == "transB" and item.i for item in node.attribute)
        inner, columns = shapes[weight][-2:] if not swapped else shapes[weight][-2:][::-1]
        return matmul_macs(shapes[source], columns) if source in shapes else math.prod(shapes[output]) * inner
    # input [T, B, I]; the weights of input and hidden state, [directions, gates * H, I or H], meet every step; outputs
    # that nothing uses have empty names
    return math.prod(shapes[source][:2]) * (math.prod(shapes[weight]) + math.prod(shapes[node.input[2]]))


def _nbytes(held: Mapping[str, Any], makers: Mapping[str, Any], name: str) -> int:
    """Return the bytes of the constant that a value comes from; 0 where it comes from the input."""
    import onnx

    while name not in held:
        node = makers.get(name)
        if node is None or node.op_type not in _PASSING:
            return 0
        name = node.input[0]
    item = held[name]
    width = int(onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize)
    return int(math.prod(item.dims)) * width
