"""A `.tflite` file of LiteRT's converter, made into an artifact: float inputs and outputs, names, short types.

Read and written by the classes of the format's own schema, which come with ai-edge-litert.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import Layer
from edgeq.core.schemes import INT8_STEPS, SMALLEST_SCALE

# what multiplies matrices; which of its inputs is the weight
PRODUCTS = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "BATCH_MATMUL": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
}

_IDENTIFIER = b"TFL3"

_LEAST_RANK = 2  # biases and scales weigh nothing

_ROUNDING_STEPS = 1e-3  # float32 rounds a product of a whole number to 127 by a scale by some 1e-5

# operators whose results are constants where what they read is
_PASSING = frozenset({"DEQUANTIZE", "RESHAPE", "TRANSPOSE", "CAST", "QUANTIZE", "SQUEEZE", "EXPAND_DIMS"})


@functools.cache
def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@functools.cache
def _names(kind: str) -> dict[int, str]:
    """Return the names of an enumeration of the schema by their numbers."""
    return {value: name for name, value in vars(getattr(_schema(), kind)).items() if isinstance(value, int)}


def dtype_name(tensor_type: int) -> str:
    """Return NumPy's name of a tensor's type."""
    return _names("TensorType")[tensor_type].lower()


def load(path: Path) -> Any:
    """Return a file as a ModelT of the schema."""
    content = path.read_bytes()
    model = _schema().ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # it lies behind the tables
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def load_converted(path: Path) -> Any:
    """Return a file of the converter's as a ModelT, with its inputs and outputs in the order of the program's."""
    model = load(path)
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    for entries in (signature.inputs, signature.outputs):  # named args_0, args_1, …, output_0, …
        entries.sort(key=lambda entry: int(_text(entry.name).rpartition("_")[2]))
    graph.inputs = np.array([entry.tensorIndex for entry in signature.inputs], np.int32)
    graph.outputs = np.array([entry.tensorIndex for entry in signature.outputs], np.int32)
    return model


def save(model: Any, path: Path) -> None:
    """Write a ModelT; equal ones give equal bytes."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(builder.Output())


class Graph:
    """The one graph of a model, with what is needed to change it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        (self.graph,) = model.subgraphs

    @property
    def tensors(self) -> list[Any]:
        """The tensors, by their indices."""
        tensors: list[Any] = self.graph.tensors
        return tensors

    def op_name(self, op: Any) -> str:
        """Return the name of an operator's kind."""
        return _names("BuiltinOperator")[self.model.operatorCodes[op.opcodeIndex].builtinCode]

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return what a tensor holds; None where it is computed or given."""
        tensor = self.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data):
            return None
        shape = () if tensor.shape is None else tuple(tensor.shape)
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype_name(tensor.type)).reshape(shape)

    def put(self, tensor: Any, values: NDArray[Any], scales: NDArray[np.float32] | None, axis: int) -> None:
        """Let a tensor hold int8 values with a scale for each place on an axis, or half ones."""
        schema = _schema()
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1
        tensor.type = getattr(schema.TensorType, values.dtype.name.upper())
        tensor.quantization = None if scales is None else self._scaled(scales, axis)

    @staticmethod
    def _scaled(scales: NDArray[np.float32], axis: int) -> Any:
        made = _schema().QuantizationParametersT()
        made.scale, made.zeroPoint = scales.astype(np.float32), np.zeros(len(scales), np.int64)
        made.quantizedDimension = axis
        return made

    def add_tensor(self, name: str, like: Any, tensor_type: int) -> int:
        """Append a computed tensor of another's shape; return its index."""
        schema = _schema()
        made = schema.TensorT()
        made.name, made.shape, made.shapeSignature, made.type = name, like.shape, like.shapeSignature, tensor_type
        self.model.buffers.append(schema.BufferT())
        made.buffer = len(self.model.buffers) - 1
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(self, kind: str, version: int, source: int, result: int) -> Any:
        """Return a new operator of one input and one output, without options."""
        schema = _schema()
        number = getattr(schema.BuiltinOperator, kind)
        codes = self.model.operatorCodes
        found = next((i for i, code in enumerate(codes) if code.builtinCode == number), None)
        if found is None:
            code = schema.OperatorCodeT()
            code.builtinCode = number
            code.deprecatedBuiltinCode = min(number, 127)  # where older readers look
            code.version = version
            codes.append(code)
            found = len(codes) - 1
        codes[found].version = max(codes[found].version, version)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = found, np.array([source], np.int32), np.array([result], np.int32)
        return made


def give_float_ends(model: Any, dtypes: Sequence[str]) -> None:
    """Quantize in the graph what the converter wants quantized by the app, and dequantize its outputs, in place.

    Args:
        model: a ModelT.
        dtypes: of the inputs that the app gives.
    """
    graph = Graph(model)
    schema, ends = _schema(), graph.graph
    int8, float32 = schema.TensorType.INT8, schema.TensorType.FLOAT32
    fronts = []
    for place, (index, dtype) in enumerate(zip(list(ends.inputs), dtypes, strict=True)):
        if graph.tensors[index].type == int8 and dtype == "float32":
            outside = graph.add_tensor(f"input{place}", graph.tensors[index], float32)
            fronts.append(graph.operator("QUANTIZE", 1, outside, index))
            ends.inputs[place] = outside
    backs = []
    for place, index in enumerate(list(ends.outputs)):
        if graph.tensors[index].type == int8:
            outside = graph.add_tensor(f"output{place}", graph.tensors[index], float32)
            backs.append(graph.operator("DEQUANTIZE", 2, index, outside))
            ends.outputs[place] = outside
    ends.operators = [*fronts, *ends.operators, *backs]
    (signature,) = model.signatureDefs
    for entries, indices in ((signature.inputs, ends.inputs), (signature.outputs, ends.outputs)):
        for entry, index in zip(entries, indices, strict=True):
            entry.tensorIndex = int(index)


# --- Weights that were rounded to what a shorter type holds, stored in that type.


# evaluated at import, when NumPy may be missing
Shorten = Callable[[NDArray[Any]], "tuple[NDArray[Any], NDArray[np.float32] | None, int] | None"]


def in_half(values: NDArray[Any]) -> tuple[NDArray[Any], None, int] | None:
    """Return float32 values as half ones; None where half does not hold them exactly."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return (half, None, 0) if np.array_equal(half.astype(np.float32), values) else None


def in_int8(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32], int] | None:
    """Return float32 values as int8 ones, a scale for each place on an axis, and that axis, the first or the last.

    None where the values were not rounded so, apart from what float32 rounds in a batch norm folded into them.
    """
    if not np.isfinite(values).all():  # a mask of attention, which is no weight
        return None
    leasts = (float(np.finfo(np.float32).tiny), SMALLEST_SCALE)
    for least, axis in itertools.product(leasts, (0, values.ndim - 1)):
        others = tuple(other for other in range(values.ndim) if other != axis)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = np.maximum(largest / INT8_STEPS, least).astype(np.float32)
        steps = values / scale
        whole = np.rint(steps)
        if np.abs(steps - whole).max() <= _ROUNDING_STEPS:
            return whole.astype(np.int8), scale.reshape(-1), axis
    return None


def store(model: Any, shorten: Shorten, *, dynamic: bool) -> None:
    """Store what can be in a shorter type, in place.

    Args:
        model: a ModelT.
        shorten: `in_half` or `in_int8`.
        dynamic: whether linear layers read the int8 values themselves, and quantize each row of their input as they
            run; all else has a DEQUANTIZE in front.
    """
    graph = Graph(model)
    fronts = []
    for index in range(len(graph.tensors)):
        tensor = graph.tensors[index]
        values = graph.constant(index)
        if values is None or values.dtype != np.float32 or values.ndim < _LEAST_RANK:
            continue
        shorter = shorten(values)
        if shorter is None:
            continue
        readers = [op for op in graph.graph.operators if index in op.inputs]
        graph.put(tensor, *shorter)
        plain = [op for op in readers if not (dynamic and graph.op_name(op) == "FULLY_CONNECTED" and shorter[2] == 0)]
        for op in readers:
            if op not in plain:
                op.builtinOptions.asymmetricQuantizeInputs = True
                code = model.operatorCodes[op.opcodeIndex]
                code.version = max(code.version, 9)  # a scale for each row of the weight
        if plain or index in graph.graph.outputs:
            wide = graph.add_tensor(tensor.name, tensor, _schema().TensorType.FLOAT32)
            fronts.append(graph.operator("DEQUANTIZE", 5 if shorter[1] is not None else 3, index, wide))
            for op in plain:
                op.inputs = np.where(op.inputs == index, wide, op.inputs).astype(np.int32)
    graph.graph.operators = [*fronts, *graph.graph.operators]


# --- Names, and what an artifact holds.


def rename(model: Any, layers: Collection[str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give layers' results the layers' names, inputs and outputs theirs, and all else numbers, in place.

    The converter's names are those of classes, and of several operators that became one.

    Args:
        model: a ModelT.
        layers: names that the program's locations had, each followed by a semicolon.
        inputs: names of the model's.
        outputs: likewise.
    """
    graph = Graph(model)
    named: dict[int, str] = {}
    taken: Counter[str] = Counter()
    for op in graph.graph.operators:
        if graph.op_name(op) not in PRODUCTS:
            continue
        near = [*op.outputs, *(index for index in op.inputs if index >= 0)]
        said = [part for index in near for part in _text(graph.tensors[index].name).split(";")]
        name = next((part for part in said if part in layers and not taken[part]), None)
        name = name or next((part for part in said if part in layers), graph.op_name(op))
        taken[name] += 1
        named[int(op.outputs[0])] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    for index, tensor in enumerate(graph.tensors):
        tensor.name = named.get(index, f"/{index}")
    (signature,) = model.signatureDefs
    for entries, indices, names in (
        (signature.inputs, graph.graph.inputs, inputs),
        (signature.outputs, graph.graph.outputs, outputs),
    ):
        for entry, index, name in zip(entries, indices, names, strict=True):
            entry.name, entry.tensorIndex = name, int(index)
            if int(index) not in named:
                graph.tensors[index].name = name


def strip(model: Any) -> None:
    """Take out buffers that nothing reads, and the converter's notes except the oldest runtime with all operators."""
    kept = [entry for entry in model.metadata or () if _text(entry.name) == "min_runtime_version"]
    model.metadata, model.description = kept, "edgeq"
    parts = [*model.subgraphs[0].tensors, *kept]
    used = sorted({0} | {part.buffer for part in parts})
    model.buffers = [model.buffers[index] for index in used]
    places = {index: place for place, index in enumerate(used)}
    for part in parts:
        part.buffer = places[part.buffer]


def layers_of(model: Any) -> tuple[Layer, ...]:
    """Return the layers in the order of execution, by the names that `rename` gave them."""
    graph = Graph(model)
    makers = {int(index): op for op in graph.graph.operators for index in op.outputs}
    given = {int(index) for index in graph.graph.inputs}
    return tuple(
        Layer(
            name=_text(graph.tensors[op.outputs[0]].name),
            op=graph.op_name(op),
            macs=_macs(graph, op),
            weight_bytes=sum(_nbytes(graph, makers, int(index)) for index in op.inputs if index >= 0),
            delegated=False,
            of_activations=graph.op_name(op) == "BATCH_MATMUL"
            and all(_is_of_input(makers, given, int(index)) for index in op.inputs),
        )
        for op in graph.graph.operators
        if graph.op_name(op) in PRODUCTS
    )


def operators_of(model: Any) -> tuple[str, ...]:
    """Return the kinds of the operators."""
    return tuple(sorted({_names("BuiltinOperator")[code.builtinCode] for code in model.operatorCodes}))


def elements_of(model: Any) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype the file holds as constants; masks of infinities are left out."""
    tally: Counter[str] = Counter()
    for values in constants_of(model):
        if values.dtype.kind != "f" or np.isfinite(values).all():
            tally[values.dtype.name] += values.size
    return tuple(sorted(tally.items()))


def constants_of(model: Any) -> Iterator[NDArray[Any]]:
    """Yield the file's constants, each once."""
    graph = Graph(model)
    for index in {tensor.buffer: index for index, tensor in enumerate(graph.tensors)}.values():
        values = graph.constant(index)
        if values is not None:
            yield values


def _text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else name or ""


def _shape(graph: Graph, index: int) -> tuple[int, ...]:
    shape = graph.tensors[index].shape
    return () if shape is None else tuple(int(size) for size in shape)


def _macs(graph: Graph, op: Any) -> int:
    kind, result = graph.op_name(op), _shape(graph, op.outputs[0])
    weight = _shape(graph, op.inputs[1])
    if kind == "TRANSPOSE_CONV":  # output shape, weight [out, height, width, in], input
        return math.prod(_shape(graph, op.inputs[2])[:3]) * math.prod(weight)
    if kind == "CONV_3D":  # [depth, height, width, in, out]
        return math.prod(result) * math.prod(weight[:4])
    if kind == "DEPTHWISE_CONV_2D":  # [1, height, width, out]
        return math.prod(result) * math.prod(weight[1:3])
    if kind == "BATCH_MATMUL":
        source = _shape(graph, op.inputs[0])
        return math.prod(result) * source[-2 if op.builtinOptions.adjX else -1]
    return math.prod(result) * math.prod(weight[1:])  # [out, …, in]


def _nbytes(graph: Graph, makers: dict[int, Any], index: int) -> int:
    """Return the bytes of the constant that a value comes from; 0 where it comes from the input."""
    while (values := graph.constant(index)) is None:
        op = makers.get(index)
        if op is None or graph.op_name(op) not in _PASSING:
            return 0
        index = int(op.inputs[0])
    return int(values.nbytes)


def _is_of_input(makers: dict[int, Any], given: set[int], index: int) -> bool:
    """Whether a value depends on an input of the graph, and not on constants alone."""
    waiting, seen = [index], {index}
    while waiting:
        one = waiting.pop()
        if one in given:
            return True
        fresh = {int(source) for source in (makers[one].inputs if one in makers else ()) if source >= 0} - seen
        seen |= fresh
        waiting += fresh
    return False
