"""The int8 layers that an artifact stores, read back from its bytes; nothing in it is run."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import StoredLayer
from edgeq.lower.torchscript_archive import DTYPES, Call, Instance, place, read, values, walk

# --- The int8 layers of a TorchScript archive, read from its tables: packed parameters hold a weight and a bias.


_PASSING = ("build_tensorlist", "restore_type_tag")  # of a list, its first argument

_READ = ("float32", "float64", "int8")


def archive_layers(path: Path) -> tuple[StoredLayer, ...]:
    """Return the layers with int8 weights, in the order in which the archive names them.

    Raises:
        Exception: it is not such an archive.
    """
    with zipfile.ZipFile(path) as archive:
        tables = [name for name in archive.namelist() if name.endswith(("/data.pkl", "/constants.pkl"))]
        return tuple(
            layer
            for name in tables
            for node in walk(read(archive.read(name)))
            if isinstance(node, Instance)
            for layer in _layer(archive, name, node.state)
        )


def _layer(archive: zipfile.ZipFile, table: str, state: Any) -> Iterator[StoredLayer]:
    """Yield the layer that a packed object's own state is: its int8 weight and, where it has one, its float bias."""
    tensors = [one for one in _tensors(state) if DTYPES.get(one.args[0].dtype.__name__) in _READ]
    weights = [one for one in tensors if one.function.__name__ == "_rebuild_qtensor"]
    if len(weights) != 1:
        return
    (weight,) = weights
    out = weight.args[2][0]
    biases = [one for one in tensors if one.args[0].dtype.__name__ == "FloatStorage" and one.args[2] == (out,)]
    scale = weight.args[4][1]  # (scheme, scale, zero point) or (scheme, scales, zero points, axis)
    scales = _values(archive, table, scale).tolist() if isinstance(scale, Call) else [scale]
    yield StoredLayer(
        weight=_values(archive, table, weight),
        scales=tuple(float(one) for one in scales),
        bias=_values(archive, table, biases[0]) if biases else None,
    )


def _tensors(found: Any) -> Iterator[Call]:
    """Yield the tensors of a state, but for those of objects inside it."""
    if isinstance(found, Call) and found.function.__name__ in ("_rebuild_tensor_v2", "_rebuild_qtensor"):
        yield found
    elif isinstance(found, Call) and found.function.__name__ in _PASSING:
        yield from _tensors(found.args[0])
    elif isinstance(found, (list, tuple)):
        for one in found:
            yield from _tensors(one)


def _values(archive: zipfile.ZipFile, table: str, tensor: Call) -> NDArray[Any]:
    return values(tensor, archive.read(place(archive.NameToInfo, table, tensor.args[0])))


# --- The int8 layers of an ExecuTorch program that XNNPACK runs (ExecuTorch 1.5's XNNPACK schema, `schema.fbs`).


_INT8, _INT32 = "xnn_datatype_qcint8", "xnn_datatype_qcint32"

_NO_TENSOR = 2**32 - 1  # XNN_INVALID_VALUE_ID


def program_layers(path: Path) -> tuple[StoredLayer, ...]:
    """Return the layers with int8 weights per channel, in the order of execution.

    Raises:
        Exception: it is not such a program.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    program, named = file.program, file.named_data
    data = {key: bytes(named.buffers[entry.buffer_index]) for key, entry in named.pte_data.items()} if named else {}
    return tuple(
        layer
        for plan in program.execution_plan
        for delegate in plan.delegates
        if delegate.id == "XnnpackBackend"
        for layer in _Graph.read(bytes(program.backend_delegate_data[delegate.processed.index].data), data).layers()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """One delegate: its graph as JSON, its own constants, and those that it shares by name."""

    nodes: list[Any]
    tensors: dict[int, tuple[Any, Any]]  # a tensor and its quantization, by id
    places: list[Any]
    own: bytes
    named: dict[str, bytes]

    @classmethod
    def read(cls, blob: bytes, named: dict[str, bytes]) -> _Graph:
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
        from executorch.exir._serialize._flatbuffer import _flatc_decompile

        header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
        start = header.flatbuffer_offset
        flatbuffer = blob[start : start + header.flatbuffer_size]
        with tempfile.TemporaryDirectory(prefix="edgeq-") as name:
            folder = Path(name)
            (folder / "schema.fbs").write_bytes(_get_schema_bytes())
            (folder / "graph.bin").write_bytes(flatbuffer)
            _flatc_decompile(name, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"])
            text = (folder / "graph.json").read_text()
        # flatc writes C's name of infinity
        graph = json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))
        values = [value["xvalue_union"] for value in graph["xvalues"]]
        tensors = [(one.get("tensor_value", one), one.get("quant_params", {})) for one in values]
        return cls(
            nodes=[node["xnode_union"] for node in graph["xnodes"]],
            tensors={tensor["id_out"]: (tensor, scales) for tensor, scales in tensors},
            places=graph["constant_data"],
            own=blob[header.constant_data_offset : header.constant_data_offset + header.constant_data_size],
            named=named,
        )

    def layers(self) -> Iterator[StoredLayer]:
        for node in self.nodes:
            tensor, scales = self.tensors.get(node.get("filter_id", _NO_TENSOR), ({}, {}))
            if tensor.get("datatype") != _INT8:
                continue
            raw = np.frombuffer(self._constant(tensor["constant_buffer_idx"]), np.int8)
            yield StoredLayer(
                weight=_as_torch(raw.reshape(tensor["dims"]), scales["channel_dim"]),
                scales=tuple(float(one) for one in self._scales(scales)),
                bias=self._bias(node["bias_id"]),
            )

    def _bias(self, number: int) -> Any:
        tensor, scales = self.tensors.get(number, ({}, {}))
        if tensor.get("datatype") != _INT32:
            return None
        steps = np.frombuffer(self._constant(tensor["constant_buffer_idx"]), np.int32)
        return (steps.astype(np.float64) * self._scales(scales)).astype(np.float32)

    def _scales(self, told: Any) -> Any:
        if told["scale"]:
            return np.asarray(told["scale"], np.float32)
        return np.frombuffer(self._constant(told["scale_buffer_idx"]), np.float32)

    def _constant(self, index: int) -> bytes:
        place = self.places[index]
        if place["named_key"]:
            return self.named[place["named_key"]]
        return self.own[place["offset"] : place["offset"] + place["size"]]


def _as_torch(weight: Any, channel_dim: int) -> Any:
    """Return a weight in PyTorch's layout: XNNPACK has the input channels of a convolution last, and for a depthwise
    one the output channels ([1, H, W, out])."""
    if weight.ndim != 4:
        return weight
    return weight.transpose(3, 0, 1, 2) if channel_dim == 3 else weight.transpose(0, 3, 1, 2)


READERS: dict[str, Callable[[Path], tuple[StoredLayer, ...]]] = {
    "executorch": program_layers,
    "torchscript": archive_layers,
}


def shipped_layers(path: Path, runtime: str) -> tuple[StoredLayer, ...]:
    """Return the convolutions and linear layers that an artifact stores in int8; none for a runtime without a reader.

    Args:
        path: the artifact; trusted as far as its bundle's hashes are.
        runtime: which wrote it.

    Raises:
        UnsupportedError: its layout differs from that of this edgeq version.
    """
    if runtime not in READERS:
        return ()
    try:
        return READERS[runtime](path)
    except Exception as err:  # parsers of foreign formats raise many types
        what = f"cannot read the int8 values of {path}: {type(err).__name__}: {first_line(err)}"
        fix = "package the shipped model again with this edgeq, or omit --reuse-qparams-from"
        raise UnsupportedError(what, fix) from err
