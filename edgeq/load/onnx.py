"""ONNX files as sources: read and checked before the long steps start."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, first_line, nearest
from edgeq.core.results.model import LoadedModel, TensorSpec
from edgeq.core.safe_load import check_external_data, external_file, external_tensors
from edgeq.core.sources import unreadable
from edgeq.load.inputs import DTYPES, parse_inputs

# the opsets that ONNX Runtime promises to run start here (its docs/Versioning.md)
OLDEST_OPSET = 7

# what the full builds of ONNX Runtime bring operators for
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})


def load_onnx(path: Path, *, inputs: Sequence[str], name: str | None) -> LoadedModel:
    """Return an ONNX file as a model whose `model` is its path, with its inputs resolved.

    Args:
        path: the file; its external tensor files are in the same folder.
        inputs: texts of `--input`: sizes for dimensions that the file leaves open, and ranges of values.
        name: overrides the model's name.

    Raises:
        UsageError: the file is not ONNX or is damaged, external data is missing, or --input does not fit.
        UnsupportedError: ONNX Runtime does not have the opset or an operator's domain, or an input is not a tensor.
    """
    proto = read_onnx(path)
    # refuse operators of domains that ONNX Runtime has not
    own = {function.domain for function in proto.functions}
    foreign = [node for node in proto.graph.node if node.domain not in _DOMAINS | own]
    if foreign:
        node = foreign[0]
        what = f"{path} has an operator of a custom domain, which ONNX Runtime does not have:"
        what += f" {node.domain}::{node.op_type} (node {node.name or node.output[0]!r})"
        raise UnsupportedError(what, "write it with standard operators, or as a local function of the model")
    weights = [tensor for tensor in proto.graph.initializer if tensor.data_type in _float_types()]
    return LoadedModel(
        name=name or path.stem,
        kind="onnx",
        model=path,
        inputs=_inputs(proto, path, inputs),
        weights="own",
        fp32_bytes=sum(4 * math.prod(tensor.dims) for tensor in weights),
        source_sha256=_sha256(path, proto),
    )


def read_onnx(path: Path) -> Any:
    """Return the ModelProto in a file without loading its external tensors; checks that their files exist.

    Raises:
        UsageError: the file is not ONNX or is damaged, or external data is missing or outside of the file's folder.
        UnsupportedError: an opset that ONNX Runtime does not have.
    """
    import onnx

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as err:  # protobuf's own types, by what the bytes happen to say
        raise unreadable(path, first_line(err)) from err
    # protobuf takes an empty file, and many another, for an empty model
    if not proto.ir_version or not proto.graph.node:
        raise unreadable(path, "it contains no graph")
    check_external_data(proto, path)
    _check_opset(proto, path)
    try:
        onnx.checker.check_model(str(path))
    except Exception as err:  # the checker raises its own and protobuf's types
        raise unreadable(path, first_line(err)) from err
    return proto


def output_specs(path: Path) -> tuple[TensorSpec, ...]:
    """Return the outputs that a file states; a dimension that it leaves open is 1."""
    return tuple(_described(value, value.name, path) for value in read_onnx(path).graph.output)


def gives_probability(path: Path) -> bool:
    """Whether a file's first output comes from a Sigmoid or a Softmax, also if it is reshaped afterwards."""
    graph = read_onnx(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in ("Reshape", "Squeeze", "Flatten", "Unsqueeze", "Cast", "Identity"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type in ("Sigmoid", "Softmax")


def _float_types() -> tuple[int, ...]:
    import onnx

    return onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16


def _check_opset(proto: Any, path: Path) -> None:
    import onnx

    opset = max((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if opset and not OLDEST_OPSET <= opset <= newest:
        way = "older" if opset < OLDEST_OPSET else "newer"
        what = f"{path} has opset {opset}, {way} than edgeq supports ({OLDEST_OPSET} to {newest})"
        raise UnsupportedError(
            what, "export it again with a supported opset, or convert it with onnx.version_converter"
        )


def _inputs(proto: Any, path: Path, texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the inputs, each with the sizes that the file states, or that --input gives for those it leaves open."""
    held = {tensor.name for tensor in proto.graph.initializer}
    values = [value for value in proto.graph.input if value.name not in held]
    if not values:
        raise UnsupportedError(f"{path} has no inputs", "export the model with at least one input")
    names = [value.name for value in values]
    given = {}
    for index, (text, parsed) in enumerate(zip(texts, parse_inputs(texts), strict=True)):
        name = parsed.name if "=" in text else names[index] if index < len(names) else parsed.name
        if name not in names:
            raise UsageError(f"{path} has no input {name!r}.{nearest(name, names)}", f"it takes: {', '.join(names)}")
        given[name] = dataclasses.replace(parsed, name=name)
    return tuple(_input(value, given.get(value.name), path) for value in values)


def _input(value: Any, given: TensorSpec | None, path: Path) -> TensorSpec:
    stated = _described(value, value.name, path)
    sizes = _sizes(value)
    if given is None:
        if None in sizes[1:]:
            shape = "x".join("?" if size is None else str(size) for size in sizes)
            what = f"{path} has dynamic dimensions in its input {value.name!r}: {shape}"
            raise UsageError(what, f"give --input {value.name}={stated.dtype}:SHAPE")
        if not stated.dtype.startswith("float") and stated.dtype != "bool":
            what = f"{path} takes integers as {value.name!r}, but not every integer may be valid"
            shape = "x".join(map(str, stated.shape))
            raise UsageError(what, f"give their range: --input {value.name}={stated.dtype}:{shape}:0..HIGH")
        return stated
    varying = {one.axis for one in given.varying}
    fits = len(given.shape) == len(sizes) and all(
        size is None or (size == wanted and axis not in varying)
        for axis, (size, wanted) in enumerate(zip(sizes, given.shape, strict=True))
    )
    if given.dtype != stated.dtype or not fits:
        what = f"--input {given.dtype} {given.shape_text()} does not fit {path}, whose {value.name!r} is {stated.dtype}"
        raise UsageError(
            f"{what} {[size or '?' for size in sizes]}", "give the file's shape and dtype, or omit --input"
        )
    return given


def _sizes(value: Any) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _described(value: Any, name: str, path: Path) -> TensorSpec:
    import onnx

    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(f"{path}: {value.name!r} is not a tensor", "export the model with tensors only")
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    except KeyError:
        dtype = "of an unknown type"
    if dtype not in DTYPES:
        what = f"{path}: {value.name!r} is {dtype}, which edgeq does not support"
        raise UnsupportedError(what, f"known dtypes: {', '.join(DTYPES)}")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(size or 1 for size in _sizes(value)))


def _sha256(path: Path, proto: Any) -> str:
    """Hash the file, and the files that its tensors lie in."""
    digest = hashlib.sha256()
    beside = sorted({external_file(tensor) for tensor in external_tensors(proto)})
    for file_path in (path, *(path.parent / name for name in beside)):
        with file_path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
