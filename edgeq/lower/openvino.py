"""OpenVINO lowering: the ONNX graph that edgeq exports, read by OpenVINO, as its IR (model.xml with model.bin).

OpenVINO's own `convert_model` runs the same passes, and also reports each call to its makers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import GroupedWeight, Layer, LoweredModel, QuantizedModel, TensorSpec
from edgeq.core.schemes import INT4_SCHEME, INT8_STEPS
from edgeq.core.system import openvino
from edgeq.lower.int4 import packed_int4, read_back, unpacked_int4
from edgeq.lower.layers import zero_share
from edgeq.lower.onnx import RECURRENT, export, fixed, traced_layers
from edgeq.lower.spec import LowerSpec

# from float32 values, the operator that gives them from shorter ones, and by how much these are shorter; None where no
# shorter ones give them exactly
Shorten = Callable[[NDArray[Any]], tuple[Any, int] | None]

_PRODUCTS = frozenset(
    {"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}
)

_SEQUENCES = frozenset({"LSTMSequence", "GRUSequence", "RNNSequence"})

# of the error of OpenVINO's reader, what is wrong: its first lines speak of checks of its own
_FAILED = re.compile(r"^-- (No conversion rule found for .+|\S+ with a message:(?:\n.+)+)", re.MULTILINE)

_ROUNDING_STEPS = 1e-3  # float32 rounds a product of a whole number to 127 by a scale by some 1e-5


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Write `model.xml` and `model.bin`, with the layers' names.

    Raises:
        UnsupportedError: ONNX or OpenVINO lacks an operator of the model (named), or the graph is larger than 2 GB.
    """
    with spec.progress.task(f"lower {spec.label}"):
        proto = export(quantized, spec)
        passes = ("torch.onnx.export", "optimize", "check_model", "infer_shapes")
        return _written(proto, traced_layers(proto, spec), quantized.scheme, spec, passes, quantized.grouped)


def lower_file(file: LoweredModel, scheme: str, spec: LowerSpec) -> LoweredModel:
    """Write `model.xml` and `model.bin` of an ONNX file that `lower.onnx` wrote, with the sizes of the model's inputs.

    Layers have the names of its nodes with periods in place of slashes, after which OpenVINO appends names of its own.

    Raises:
        UnsupportedError: as `lower`.
    """
    import onnx

    with spec.progress.task(f"lower {spec.label} for OpenVINO"):
        proto = onnx.load(str(file.path))
        if not any(item.varying for item in spec.inputs):
            proto = fixed(proto, spec.inputs)
        names: dict[str, str] = {}
        for layer in file.layers:
            plain = re.sub(r"[^\w.#-]+", ".", layer.name).strip(".") or layer.op
            names[layer.name] = plain if plain not in names.values() else f"{plain}#{len(names)}"
        for node in proto.graph.node:
            node.name = names.get(node.name, node.name)
        layers = tuple(dataclasses.replace(layer, name=names[layer.name]) for layer in file.layers)
        return _written(proto, layers, scheme, spec, file.passes)


def _written(
    proto: Any,
    layers: tuple[Layer, ...],
    scheme: str,
    spec: LowerSpec,
    passes: tuple[str, ...],
    grouped: Sequence[GroupedWeight] = (),
) -> LoweredModel:
    """Write the IR of an ONNX graph."""
    library = openvino()
    from openvino._offline_transformations import apply_moc_transformations  # OpenVINO's converter and NNCF do as well

    _read_half_spectra(proto)
    del proto.graph.value_info[:]
    try:
        model = library.Core().read_model(proto.SerializeToString(deterministic=True), b"")
        _keep_unread_inputs(model, spec.inputs)
        if any(item.varying for item in spec.inputs):  # within bounds: others are refused, and memory is bounded
            model.reshape({item.name: _partial_shape(item) for item in spec.inputs})
        apply_moc_transformations(model, cf=False)
    except ValueError as err:  # protobuf's own limit
        raise UnsupportedError(f"the graph would be larger than 2 GB: {first_line(err)}", "quantize it") from err
    except RuntimeError as err:
        failed = _FAILED.search(str(err))
        lines = failed[1].replace(" with a message", "").splitlines() if failed else [first_line(err)]
        what = f"OpenVINO cannot read the ONNX graph: {' '.join(dict.fromkeys((lines[0], lines[-1])))}"
        raise UnsupportedError(what, "replace the operator named in this error, or use another target") from err
    _part_rounded_products(model)
    _part_square_attention(model)
    named = _named(model, layers)
    if scheme in _STORED:
        narrower = _store(model, named, functools.partial(_in_int4, grouped) if grouped else _STORED[scheme])
        layers = tuple(
            dataclasses.replace(layer, weight_bytes=layer.weight_bytes // narrower.get(layer.name, 1))
            for layer in layers
        )
    _number(model, named)
    if scheme in ("weight-only-int8", INT4_SCHEME):
        # OpenVINO's CPU plugin else quantizes the inputs of linear layers with such weights as it runs
        model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    path = spec.folder / "model.xml"
    library.serialize(model, str(path))
    # a third of the file is indentation; values are attributes, so that no text lies between the tags
    path.write_bytes(re.sub(rb">\s+<", b"><", path.read_bytes()))
    return LoweredModel(
        path=path,
        runtime="openvino",
        runtime_version=library.__version__.partition("-")[0],
        bytecode_version=None,
        passes=(*passes, "moc_transformations"),
        operators=operators(model),
        undelegated=(),
        layers=layers,
        delegated_macs=None,
        stored=_elements(model),
        zeros=zero_share(_weights(model)),
        int4_db=read_back(grouped, _int4_weights(library.Core().read_model(str(path)))) if grouped else (),
        companions=(("weights", path.with_suffix(".bin")),),
    )


def _keep_unread_inputs(model: Any, specs: Sequence[TensorSpec]) -> None:
    """Give a model the inputs that nothing reads, in their places: OpenVINO's reader (2026.4) drops them."""
    from openvino import opset13

    read = {name: op for op in model.get_parameters() for name in op.output(0).get_names()}
    if all(spec.name in read for spec in specs):
        return
    for op in set(read.values()):
        model.remove_parameter(op)
    ordered = []
    for spec in specs:
        op = read.get(spec.name) or opset13.parameter(_partial_shape(spec), np.dtype(spec.dtype), spec.name)
        op.output(0).get_tensor().set_names({*op.output(0).get_names(), spec.name})
        ordered.append(op)
    model.add_parameters(ordered)
    model.validate_nodes_and_infer_types()


def _read_half_spectra(proto: Any) -> None:
    """Reshape half spectra of real signals to what ONNX says that they are, [..., frequencies, 2], and signals of them.

    OpenVINO's reader (2026.4) leaves the signal's last axis, of one real part, in front of the two parts, and leaves it
    out of what an inverse gives.
    """
    import onnx
    from onnx import helper

    def is_set(node: Any, name: str) -> bool:
        return any(one.name == name and one.i for one in node.attribute)

    halves = [node for node in proto.graph.node if node.op_type == "DFT" and is_set(node, "onesided")]
    if not halves:
        return
    known = onnx.shape_inference.infer_shapes(proto).graph
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in (*known.value_info, *known.output)}
    for node in halves:
        (value,) = node.output
        if value not in ranks:
            continue
        # 0 stands for the size that is there
        sizes = np.array([*[0] * (ranks[value] - 1), 1 if is_set(node, "inverse") else 2], np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(sizes, f"{value}/sizes"))
        node.output[0] = f"{value}/parts"
        place = list(proto.graph.node).index(node) + 1
        reshape = helper.make_node("Reshape", [node.output[0], f"{value}/sizes"], [value], f"{value}/reshape")
        proto.graph.node.insert(place, reshape)


def _part_rounded_products(model: Any) -> None:
    """Round what passes from one matrix product over two axes to the next with a third axis in front.

    OpenVINO (2026.4.1) makes one kernel of such products and what lies between them, where its threads are no more than
    their rows: on one thread always. Where rounding lies between them, that kernel gives wrong numbers.
    """
    from openvino import opset13

    products = [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    two_axes = [op for op in products if len(op.get_input_partial_shape(0)) == 2]
    front = opset13.constant(np.array(0, np.int64))
    for rounding in dict.fromkeys(op.input_value(0).get_node() for op in two_axes):
        if rounding.get_type_name() != "FakeQuantize" or not _follows(rounding, two_axes):
            continue
        readers = rounding.output(0).get_target_inputs()
        rounding.input(0).replace_source_output(opset13.unsqueeze(rounding.input_value(0), front).output(0))
        rounding.validate_and_infer_types()
        rounded = opset13.squeeze(rounding, front)
        for reader in readers:
            reader.replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()


_ATTENTION = frozenset({"MatMul", "ScaledDotProductAttention"})  # what an attention ends with


def _part_square_attention(model: Any) -> None:
    """Exchange heads and tokens behind an attention with a third axis in front, where there are as many of both.

    OpenVINO (2026.4.1) makes one kernel of the two products, the softmax and the exchange. It takes [batch, heads,
    tokens, width] for exchanged already where the shape is the same after it, and gives wrong numbers.
    """
    from openvino import opset13

    front = opset13.constant(np.array(0, np.int64))
    for op in model.get_ordered_ops():
        sources = [value.get_node() for value in op.input_values()]
        if op.get_type_name() != "Transpose" or sources[0].get_type_name() not in _ATTENTION:
            continue
        order, shape = sources[1], op.get_input_partial_shape(0)
        if order.get_type_name() != "Constant" or order.data.tolist() != [0, 2, 1, 3]:
            continue
        if shape[1].is_dynamic or shape[1] != shape[2]:
            continue
        readers = op.output(0).get_target_inputs()
        exchanged = opset13.transpose(opset13.unsqueeze(op.input_value(0), front), np.array([0, 1, 3, 2, 4], np.int64))
        result = opset13.squeeze(exchanged, front).output(0)
        result.get_tensor().set_names(op.output(0).get_names())
        for reader in readers:
            reader.replace_source_output(result)
    model.validate_nodes_and_infer_types()


def _follows(op: Any, products: Sequence[Any]) -> bool:
    """Whether one of the products comes before an operator, with nothing between them that changes the shape."""
    left, seen = [op], set()
    while left:
        current = left.pop()
        if current in products:
            return True
        if current not in seen:
            seen.add(current)
            left += [
                value.get_node()
                for value in current.input_values()
                if value.get_partial_shape() == op.get_output_partial_shape(0)
            ]
    return False


def _partial_shape(spec: TensorSpec) -> Any:
    from openvino import Dimension, PartialShape

    ranges = {one.axis: Dimension(one.least, -1 if one.most is None else one.most) for one in spec.varying}
    return PartialShape([ranges.get(axis, Dimension(size)) for axis, size in enumerate(spec.shape)])


def operators(model: Any) -> tuple[str, ...]:
    """Return the operators of an openvino.Model with their opsets."""
    infos = (op.get_type_info() for op in model.get_ops())
    return tuple(sorted({f"{info.version_id}::{info.name}" for info in infos}))


def _named(model: Any, layers: Sequence[Layer]) -> dict[Any, str]:
    """Return the operators that are layers, with the layers' names.

    OpenVINO's reader gives an operator the name of its ONNX node, with what it appends after a slash. Of several that
    it makes of one node, some have only the last one named.
    """
    known = {layer.name for layer in layers}
    recurrent = iter([layer.name for layer in layers if layer.op in RECURRENT])
    named: dict[Any, str] = {}
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name().partition("/")[0]
        if kind in _SEQUENCES:  # all of them are float, whichever is which
            name = next(recurrent, "")
        elif kind not in _PRODUCTS:
            continue
        elif name not in known:
            readers = [reader.get_node() for reader in op.output(0).get_target_inputs()]
            sums = [reader for reader in readers if reader.get_type_name() == "Add"]
            name = sums[0].get_friendly_name().partition("/")[0] if len(readers) == len(sums) == 1 else ""
        if name in known and name not in named.values():
            named[op] = name
    return named


def _number(model: Any, named: Mapping[Any, str]) -> None:
    """Name layers, and number all else: OpenVINO counts the operators that a process has made.

    OpenVINO appends to a name what its passes make of an operator, after a slash. Numbers begin with one, so that what
    stands before the first slash is the name of a layer or nothing.
    """
    names = {op.get_friendly_name(): name for op, name in named.items()}
    kept = {name for value in (*model.inputs, *model.outputs) for name in value.get_names()}
    for index, op in enumerate(model.get_ordered_ops()):
        notes = op.get_rt_info()
        for key in [key for key in notes if key.startswith("fused_names")]:  # the names from before, counted likewise
            del notes[key]
        if op.get_type_name() != "Parameter":
            op.set_friendly_name(names.get(op.get_friendly_name(), f"/{op.get_type_name()}_{index}"))
            for value in op.outputs():
                value.get_tensor().set_names(value.get_names() & kept)


# --- Weights that were rounded to what a shorter type holds, stored in that type; a Convert widens them where they are
# read.


_LEAST_RANK = 2  # biases and scales weigh nothing

_PASSING = frozenset({"Convert", "Multiply", "Reshape", "Transpose", "Unsqueeze", "Squeeze"})


def _store(model: Any, named: Mapping[Any, str], shorten: Shorten) -> dict[str, int]:
    """Store what can be in a shorter type, in place; return by how much the weights of which layers became shorter.

    Weights of a layer that no input comes to stay as they are: OpenVINO (2026.4.1) computes its result as it loads, and
    fails on weights that are to be widened ("m_element_type.is_static()").
    """
    from openvino import Type

    names = {op.get_friendly_name(): name for op, name in named.items()}
    of_input: set[str] = set()
    for op in model.get_ordered_ops():
        sources = [value.get_node().get_friendly_name() for value in op.input_values()]
        if op.get_type_name() == "Parameter" or not of_input.isdisjoint(sources):
            of_input.add(op.get_friendly_name())
    found: dict[str, int] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant" or op.get_element_type() != Type.f32:
            continue
        ends = [_first_use(reader.get_node()) for reader in op.output(0).get_target_inputs()]
        if any(end.get_type_name() in _PRODUCTS and end.get_friendly_name() not in of_input for end in ends):
            continue
        values = op.data
        shorter = shorten(values) if values.ndim >= _LEAST_RANK else None
        if shorter is None:
            continue
        widened, factor = shorter
        for reader in op.output(0).get_target_inputs():
            reader.replace_source_output(widened.output(0))
        found |= {names[end.get_friendly_name()]: factor for end in ends if end.get_friendly_name() in names}
    return found


def _first_use(node: Any) -> Any:
    """Return the first operator, from a reader of a constant on, that does more than move or scale it."""
    while node.get_type_name() in _PASSING and len(node.output(0).get_target_inputs()) == 1:
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    return node


def _in_half(values: NDArray[Any]) -> tuple[Any, int] | None:
    """Store in half what half holds exactly."""
    from openvino import opset13

    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values):
        return None
    return opset13.convert(opset13.constant(half), "f32"), 2


def _in_int8(values: NDArray[Any]) -> tuple[Any, int] | None:
    """Store in int8, with a scale for each row or column, what was rounded so.

    Float32 may have rounded a batch norm folded into it. Rows may have become columns, or have two axes: those of
    groups or directions come first.
    """
    from openvino import opset13

    if not np.isfinite(values).all():
        return None
    for axes in ((0,), (1,), (0, 1)):
        others = tuple(axis for axis in range(values.ndim) if axis not in axes)
        largest = np.abs(values).max(axis=others, keepdims=True) if others else np.abs(values)
        scale = (np.maximum(largest, np.finfo(np.float32).tiny) / INT8_STEPS).astype(np.float32)
        steps = values / scale
        whole = np.rint(steps)
        if np.abs(steps - whole).max() <= _ROUNDING_STEPS:
            stored = opset13.convert(opset13.constant(whole.astype(np.int8)), "f32")
            return opset13.multiply(stored, opset13.constant(scale)), 4
    return None


_STORED: dict[str, Shorten] = {"fp16": _in_half, "weight-only-int8": _in_int8, INT4_SCHEME: _in_int8}


def _in_int4(grouped: Sequence[GroupedWeight], values: NDArray[Any]) -> tuple[Any, int] | None:
    """Store in int4 what has the values of a grouped weight, in int8 what was rounded so.

    The form is that of NNCF's compressed weights, which OpenVINO's plugins multiply by as they are.
    """
    from openvino import Shape, Tensor, Type, opset13

    for weight in grouped:
        codes, scales = weight.codes, weight.scales[..., None].astype(np.float16)
        if np.array_equal(values, weight.values.T):  # inputs come first, in the file too
            codes, scales = (np.ascontiguousarray(one.transpose(1, 2, 0)) for one in (codes, scales))
        elif not np.array_equal(values, weight.values):
            continue
        held = Tensor(Type.i4, Shape(codes.shape))
        held.data.view(np.uint8).ravel()[:] = packed_int4(codes)
        stored = opset13.convert(opset13.constant(held), "f32")
        widened = opset13.multiply(stored, opset13.convert(opset13.constant(scales), "f32"))
        return opset13.reshape(widened, opset13.constant(np.array(values.shape, np.int64)), False), 8
    return _in_int8(values)


def _int4_weights(model: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the int4 weights of a written model as float32 matrices, with the names of the layers that they are of."""
    from openvino import Type

    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant" or op.get_element_type() != Type.i4:
            continue
        codes = unpacked_int4(op.data.view(np.uint8).ravel(), tuple(op.get_output_shape(0)))
        waiting = [(op, codes.astype(np.float32))]
        while waiting:
            at, values = waiting.pop()
            for reader in (value.get_node() for value in at.output(0).get_target_inputs()):
                if reader.get_type_name() == "MatMul":
                    yield reader.get_friendly_name().partition("/")[0], values
                elif reader.get_type_name() == "Multiply":
                    scales = next(one.get_node() for one in reader.input_values() if one.get_node() != at)
                    waiting.append((reader, values * scales.input_value(0).get_node().data.astype(np.float32)))
                else:
                    waiting.append((reader, values.reshape(tuple(reader.get_output_shape(0)))))


def _weights(model: Any) -> Iterator[NDArray[Any]]:
    """Yield the constants that do more than scale others."""
    from openvino import Type

    def scales(op: Any) -> bool:
        readers = [reader.get_node() for reader in op.output(0).get_target_inputs()]
        return all(
            one.get_type_name() == "Multiply" or (one.get_type_name() == "Convert" and scales(one)) for one in readers
        )

    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant" and (op.get_element_type() in (Type.i4, Type.i8) or not scales(op)):
            shape = tuple(op.get_output_shape(0))
            is_int4 = op.get_element_type() == Type.i4
            yield unpacked_int4(op.data.view(np.uint8).ravel(), shape) if is_int4 else op.data


def _elements(model: Any) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype the model holds as constants; masks of infinities are no weights."""
    from openvino import Type

    tally: Counter[str] = Counter()
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            is_int4 = op.get_element_type() == Type.i4
            dtype = np.dtype(op.get_element_type().to_dtype())
            if dtype.kind != "f" or np.isfinite(op.data).all():
                tally["int4" if is_int4 else dtype.name] += int(np.prod(op.get_output_shape(0), dtype=np.int64))
    return tuple(sorted(tally.items()))
