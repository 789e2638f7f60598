"""Quantization of a float ONNX file by ONNX Runtime's own tools."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.config import Progress, Task
from edgeq.core.errors import UnsupportedError, UsageError, first_line
from edgeq.core.lazy import np
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, batches
from edgeq.core.schemes import ObserverName, used_observer
from edgeq.core.system import quiet
from edgeq.quantize import find_file_method, load_function
from edgeq.quantize.calibrate import PERCENTILE
from edgeq.quantize.spec import inside, matched_names

# layers whose dynamic operators ONNX Runtime has fast kernels for: its ConvInteger is slower than a float convolution,
# and it has no int8 GRU; of embeddings (Gather from a constant) the table is kept in int8, as quantize_dynamic does
_DYNAMIC = ("MatMul", "Gemm", "LSTM", "Gather")

_STATIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# per-channel scales need DequantizeLinear's axis
_LEAST_OPSET, _NEW_OPSET = 13, 18

_CALIBRATORS: dict[ObserverName, str] = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """Input of the methods.

    Attributes:
        path: a float ONNX file.
        folder: where the methods write; empty.
        keep_fp32: names of nodes, or operators.
        calibration: samples whose ranges are observed; empty for schemes that need none.
        reduce_range: whether weights keep to seven bits.
    """

    path: Path
    folder: Path
    inputs: tuple[TensorSpec, ...]
    observer: ObserverName
    keep_fp32: tuple[str, ...]
    calibration: Dataset
    reduce_range: bool
    progress: Progress
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedFile:
    """What a method wrote.

    Attributes:
        proto: the onnx.ModelProto.
        quantized, kept_fp32: names of its layers in int8 or half, and of those in float.
    """

    proto: Any
    quantized: tuple[str, ...]
    kept_fp32: tuple[str, ...]


def quantize_file(scheme: str, spec: FileSpec) -> QuantizedFile:
    """Quantize an ONNX file.

    Raises:
        UnsupportedError: no method for the scheme, a file that is quantized already, or nothing was quantized.
        UsageError: a --keep-fp32 name or an observer that the file's methods do not have, or samples that do not fit.
    """
    import onnx

    method = find_file_method(scheme, spec.path.name)
    if method.function is None:
        raise ValueError(f"{scheme} uses an ONNX file as is")
    function = load_function(method.function)
    proto = onnx.load(str(spec.path))
    if is_quantized(proto):
        what = f"{spec.path.name} is already quantized, but {scheme} needs a float file"
        raise UnsupportedError(what, "use it as is with --scheme pretrained")
    proto = _named(_new_enough(proto, spec.path))
    source = spec.folder / "float.onnx"
    onnx.save(proto, str(source))
    kinds = {node.name: node.op_type for node in proto.graph.node}
    kept = matched_names(spec.keep_fp32, kinds)
    # the tools make a product and a sum of each Gemm before they look for the names
    left_out = [name + suffix for name in kinds if inside(name, kept) for suffix in ("", "_MatMul")]
    try:
        with quiet():  # the tools tell mostly what they were called with
            made = function(spec, source, left_out)
    except (UnsupportedError, UsageError):
        raise
    except Exception as err:  # the tools raise many types
        what = f"ONNX Runtime's tools cannot quantize {spec.path.name} to {scheme}: {first_line(err)}"
        raise UnsupportedError(what, "keep the node named in this error in float (--keep-fp32)") from err
    return _result(made, proto, scheme)


def is_quantized(proto: Any) -> bool:
    """Whether any operator of a file is of quantized numbers."""
    return any(node.op_type.startswith(_QUANTIZED) or node.op_type.endswith("Integer") for node in proto.graph.node)


def dynamic_int8(spec: FileSpec, source: Path, left_out: list[str]) -> Any:
    """Return the file with int8 weights; ONNX Runtime quantizes activations as it runs.

    A head that shares its weights with an embedding still shares them afterwards: the tool would keep the table in int8
    for lookups, and multiply by it in float.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = spec.folder / "dynamic.onnx"
    proto = onnx.load(str(source))
    ties = _untied(proto, left_out)
    onnx.save(proto, str(source))
    quantize_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=list(_DYNAMIC),
        per_channel=True,
        reduce_range=spec.reduce_range,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*left_out, *(lookup for tie in ties for lookup in tie.lookups)],
    )
    made = onnx.load(str(target))
    for tie in ties:
        _tie(made, tie)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tie:
    """An embedding's table [words, width] that a product reads transposed.

    Attributes:
        table: the initializer's name.
        columns: name of its transposed copy, which the product reads for the time of quantization.
        lookups: names of the Gather nodes.
    """

    table: str
    columns: str
    lookups: tuple[str, ...]


def _untied(proto: Any, left_out: Collection[str]) -> list[_Tie]:
    """Give products by a matrix that others read too a transposed copy of it, in place; return what to tie again.

    The exporter leaves a matrix that a layer reads in several calls transposed by a node, and quantize_dynamic takes no
    computed one. `replace_gemm_with_matmul` of onnxruntime 1.31 transposes the matrix of a Gemm with transB in place,
    and takes for granted that nothing else reads it: a second Gemm or a lookup would read it the wrong way round.
    """
    from onnx import TensorProto, numpy_helper

    found = []
    matrices = [item for item in proto.graph.initializer if len(item.dims) == 2]
    for table in [item for item in matrices if item.data_type == TensorProto.FLOAT]:
        readers = [node for node in proto.graph.node if table.name in node.input]
        lookups = [node for node in readers if node.op_type == "Gather" and all(one.i == 0 for one in node.attribute)]
        gemms = [node for node in readers if _is_product_by_rows(node) and node.input[1] == table.name]
        turned = [node for node in readers if _products_of(proto, node)]
        products = [one for node in turned for one in _products_of(proto, node)]
        if not turned and (len(readers) < 2 or not gemms):
            continue
        in_float = {node.name for node in (*gemms, *products)} & {*left_out}
        if turned and not in_float:
            for product in products:
                product.input[1] = f"{table.name}_columns"
        else:
            turned = []
        nodes = []
        for node in proto.graph.node:
            if node in gemms:
                nodes += _product(node, "" if node.name in in_float else f"{table.name}_columns")
            elif node not in turned:
                nodes.append(node)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        if any(f"{table.name}_columns" in node.input for node in nodes):
            columns = numpy_helper.to_array(table).T.copy()
            proto.graph.initializer.append(numpy_helper.from_array(columns, f"{table.name}_columns"))
        others = len(readers) - len(lookups) - len(gemms) - len(turned)
        if in_float or others or table.name in {item.name for item in proto.graph.output}:
            continue
        if lookups and not {node.name for node in lookups} & {*left_out}:
            names = tuple(node.name for node in lookups)
            found.append(_Tie(table=table.name, columns=f"{table.name}_columns", lookups=names))
        elif not lookups:
            proto.graph.initializer.remove(table)
    return found


def _product(gemm: Any, columns: str) -> list[Any]:
    """Return the nodes of a product, and perhaps a bias, in place of a Gemm; named as onnxruntime's tools do.

    Args:
        gemm: x @ W.T.
        columns: name of W.T; "" to transpose W by a node, just before its product: the tool would keep a copy in float
            for one that stands before the lookups.
    """
    from onnx import helper

    made = [f"{gemm.output[0]}_MatMul"] if len(gemm.input) > 2 else list(gemm.output)
    turned = f"{gemm.name}_turned"
    nodes = [] if columns else [helper.make_node("Transpose", [gemm.input[1]], [turned], turned, perm=[1, 0])]
    nodes.append(helper.make_node("MatMul", [gemm.input[0], columns or turned], made, f"{gemm.name}_MatMul"))
    if len(gemm.input) > 2:
        nodes.append(helper.make_node("Add", [*made, gemm.input[2]], gemm.output, f"{gemm.name}_Add"))
    return nodes


def _products_of(proto: Any, node: Any) -> list[Any]:
    """Return the products by what a node transposes; none where anything else reads it."""
    if node.op_type != "Transpose" or any(list(one.ints) != [1, 0] for one in node.attribute):
        return []
    readers = [one for one in proto.graph.node if node.output[0] in one.input]
    is_read = node.output[0] in {item.name for item in proto.graph.output}
    products = [one for one in readers if one.op_type == "MatMul" and one.input[1] == node.output[0]]
    return products if len(products) == len(readers) and not is_read else []


def _is_product_by_rows(node: Any) -> bool:
    """Whether a node is a Gemm of which onnxruntime's tools make a product: x @ W.T, and perhaps a bias."""
    values = {one.name: one.f if one.name in ("alpha", "beta") else one.i for one in node.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return node.op_type == "Gemm" and plain | {"transB": 0} | values == plain


def _tie(made: Any, tie: _Tie) -> None:
    """Let lookups read the int8 table that products read, a scale for each word, in place."""
    from onnx import helper, numpy_helper

    held = {item.name: item for item in made.graph.initializer}
    columns, scale = held[f"{tie.columns}_quantized"], held[f"{tie.columns}_scale"]
    if numpy_helper.to_array(held[f"{tie.columns}_zero_point"]).any():
        raise UnsupportedError(
            f"the zero points of {tie.table} are not all 0", "keep that layer in float (--keep-fp32)"
        )
    rows = numpy_helper.from_array(numpy_helper.to_array(columns).T.copy(), f"{tie.table}_quantized")
    last = numpy_helper.from_array(np.array([-1], np.int64), f"{tie.table}_last")
    for gone in (columns, held[tie.table]):
        made.graph.initializer.remove(gone)
    made.graph.initializer.extend([rows, last])
    nodes = [helper.make_node("Transpose", [rows.name], [columns.name], f"{tie.table}_transposed", perm=[1, 0])]
    for node in made.graph.node:
        if node.name not in tie.lookups:
            nodes.append(node)
            continue
        row, word, whole, wide = (f"{node.name}_{part}" for part in ("row", "scale", "float", "scales"))
        nodes += [
            helper.make_node("Gather", [rows.name, node.input[1]], [row], node.name, axis=0),
            helper.make_node("Cast", [row], [whole], whole, to=1),
            helper.make_node("Gather", [scale.name, node.input[1]], [word], word, axis=0),
            helper.make_node("Unsqueeze", [word, last.name], [wide], wide),
            helper.make_node("Mul", [whole, wide], [node.output[0]], f"{node.name}_scaled"),
        ]
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def static_int8(spec: FileSpec, source: Path, left_out: list[str]) -> Any:
    """Return the file with QuantizeLinear and DequantizeLinear, calibrated on the spec's samples."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = _CALIBRATORS.get(spec.observer)
    if name is None:
        what = f"the {spec.observer} observer needs a PyTorch model, but {spec.path.name} is an ONNX file"
        raise UsageError(what, f"give --observer {', '.join(_CALIBRATORS)}")
    if spec.calibration.count == 0:
        raise UsageError("int8 ranges need calibration samples, but there are none", "give --calibration-data")
    folded, target = spec.folder / "folded.onnx", spec.folder / "static.onnx"
    # folds batch norms; where inference with symbols fails, it leaves a file in the current folder
    quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
    with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
        quantize_static(
            str(folded),
            str(target),
            _reader(spec, task),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_STATIC, "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"],
            per_channel=True,
            reduce_range=spec.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left_out,
            calibrate_method=CalibrationMethod[name],
            extra_options={"CalibPercentile": 100 * PERCENTILE} if name == "Percentile" else {},
        )
    return onnx.load(str(target))


def static_a16w8(spec: FileSpec, source: Path, left_out: list[str]) -> Any:
    """Return the file with uint16 activations and int8 weights by channel, as the HTP computes them.

    With uint8 activations, and clamps between Q and DQ, the HTP's own rounding is lost in deep models: mobilenet_v2's
    outputs were noise on it (-8 dB), and right on the CPU.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

    name = _CALIBRATORS[used_observer("static-a16w8", spec.observer)]
    if spec.calibration.count == 0:
        raise UsageError("quantized ranges need calibration samples, but there are none", "give --calibration-data")
    folded, target = spec.folder / "folded.onnx", spec.folder / "static.onnx"
    path = folded if qnn_preprocess_model(str(source), str(folded)) else source
    with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
        config = get_qnn_qdq_config(
            str(path),
            _reader(spec, task),
            calibrate_method=CalibrationMethod[name],
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=left_out or None,
        )
        if name == "Percentile":
            config.extra_options["CalibPercentile"] = 100 * PERCENTILE
        quantize(str(path), str(target), config)
    return onnx.load(str(target))


def fp16(spec: FileSpec, source: Path, left_out: list[str]) -> Any:  # noqa: ARG001  # as the other methods
    """Return the file in float16, with float32 inputs and outputs."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    made = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True, node_block_list=left_out or None)
    # it appends the casts of inputs behind the nodes that read them
    whole = OnnxModel(made)
    whole.topological_sort()
    return whole.model


def _reader(spec: FileSpec, task: Task) -> Any:
    """Return what gives the calibrator one batch after another, of the inputs' own shapes."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not followed by mypy
        """Gives each batch once."""

        def __init__(self) -> None:
            self.left = batches(spec.calibration, spec.inputs)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            if batch is None:
                return None
            task.advance(batch.rows)
            return {item.name: array for item, array in zip(spec.inputs, batch.inputs, strict=True)}

    return Reader()


def _new_enough(proto: Any, path: Path) -> Any:
    """Return the file at an opset whose quantized operators take a scale for each channel.

    Raises:
        UnsupportedError: onnx cannot convert it.
    """
    import onnx

    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= _LEAST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _NEW_OPSET)
    except Exception as err:  # the converter raises its own types, and others for operators that it does not know
        what = f"{path.name} has opset {opset}, but quantization needs {_LEAST_OPSET}, and onnx cannot convert the file"
        raise UnsupportedError(f"{what}: {first_line(err)}", "export it again with a newer opset") from err


def _named(proto: Any) -> Any:
    """Give every node without a name, or with one that another has, one of its own: profiles tell layers by them."""
    taken: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
    return proto


def _result(made: Any, source: Any, scheme: str) -> QuantizedFile:
    """Name the quantized layers as they were before, and tell which they are.

    Raises:
        UnsupportedError: there is none.
    """
    layers = [node.name for node in source.graph.node if node.op_type in (*_STATIC, "LSTM", "GRU", "RNN")]
    names = set(layers)
    for node in made.graph.node:
        base = node.name.removesuffix("_quant")
        node.name = (
            base
            if base in names
            else base.removesuffix("_MatMul")
            if base.removesuffix("_MatMul") in names
            else node.name
        )
    quantized = _halved(made, names) if scheme == "fp16" else _integer(made, names)
    if not quantized:
        what = f"{scheme} quantized nothing: the file has no layer that it could quantize"
        raise UnsupportedError(what, "use another --scheme (fp32 keeps everything in float), or omit --keep-fp32")
    chosen = tuple(name for name in layers if name in quantized)
    left = tuple(name for name in layers if name not in quantized)
    return QuantizedFile(proto=made, quantized=chosen, kept_fp32=left)


def _integer(made: Any, names: set[str]) -> set[str]:
    """Return the layers that multiply integers, or what was dequantized straight before."""
    ready = {name for node in made.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {
        node.name
        for node in made.graph.node
        if node.name in names
        and (
            node.op_type.startswith("DynamicQuantize")
            or node.op_type.endswith("Integer")
            or set(node.input[:2]) <= ready
        )
    }


def _halved(made: Any, names: set[str]) -> set[str]:
    """Return the layers with a weight in half."""
    import onnx

    half = {item.name for item in made.graph.initializer if item.data_type == onnx.TensorProto.FLOAT16}
    return {node.name for node in made.graph.node if node.name in names and set(node.input) & half}
