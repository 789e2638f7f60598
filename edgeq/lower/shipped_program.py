"""The int8 layers of an ExecuTorch program that XNNPACK runs (ExecuTorch 1.5's XNNPACK schema, `schema.fbs`)."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifacts import StoredLayer

_INT8, _INT32 = "xnn_datatype_qcint8", "xnn_datatype_qcint32"
_NO_TENSOR = 2**32 - 1  # XNN_INVALID_VALUE_ID


def layers(path: Path) -> tuple[StoredLayer, ...]:
    """Return the layers with int8 weights per channel, in the order of execution.

    Raises:
        Exception: it is no such program.
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
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

        header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
        start = header.flatbuffer_offset
        graph = _as_json(blob[start : start + header.flatbuffer_size])
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
        import numpy as np

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
        import numpy as np

        tensor, scales = self.tensors.get(number, ({}, {}))
        if tensor.get("datatype") != _INT32:
            return None
        steps = np.frombuffer(self._constant(tensor["constant_buffer_idx"]), np.int32)
        return (steps.astype(np.float64) * self._scales(scales)).astype(np.float32)

    def _scales(self, told: Any) -> Any:
        import numpy as np

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


def _as_json(flatbuffer: bytes) -> Any:
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    with tempfile.TemporaryDirectory(prefix="edgeq-") as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(_get_schema_bytes())
        (folder / "graph.bin").write_bytes(flatbuffer)
        _flatc_decompile(name, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"])
        text = (folder / "graph.json").read_text()
    return json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))  # flatc writes C's name of it
