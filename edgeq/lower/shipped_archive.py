"""The int8 layers of a TorchScript archive, read from its tables: packed parameters hold a weight and a bias."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.artifacts import StoredLayer

_DTYPES = {"FloatStorage": "float32", "DoubleStorage": "float64", "LongStorage": "int64", "QInt8Storage": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor's values, and its scales where it is quantized."""

    values: Any
    scales: tuple[float, ...] = ()


class _Packed:
    """Stands for any object of the archive, and keeps its state."""

    state: Any = None

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def layers(path: Path) -> tuple[StoredLayer, ...]:
    """Return the layers with int8 weights, in the order in which the archive names them.

    Raises:
        Exception: it is no such archive.
    """
    with zipfile.ZipFile(path) as archive:
        tables = [name for name in archive.namelist() if name.endswith(("/data.pkl", "/constants.pkl"))]
        return tuple(
            layer
            for name in tables
            for packed in _objects(_Reader(archive, name).load())
            for layer in _layer(packed.state)
        )


def _layer(state: Any) -> Iterator[StoredLayer]:
    """Yield the layer that a packed object's own state is: its int8 weight and, where it has one, its float bias."""
    tensors = list(_tensors(state))
    weights = [one for one in tensors if one.scales]
    if len(weights) != 1:
        return
    (weight,) = weights
    out = weight.values.shape[0]
    biases = [one.values for one in tensors if str(one.values.dtype) == "float32" and one.values.shape == (out,)]
    yield StoredLayer(weight=weight.values, scales=weight.scales, bias=biases[0] if biases else None)


def _tensors(found: Any) -> Iterator[_Tensor]:
    """Yield the tensors of a state, but for those of objects inside it."""
    if isinstance(found, _Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for one in found:
            yield from _tensors(one)


def _objects(found: Any) -> Iterator[_Packed]:
    if isinstance(found, _Packed):
        yield found
        yield from _objects(found.state)
    elif isinstance(found, (list, tuple)):
        for one in found:
            yield from _objects(one)
    elif isinstance(found, dict):
        for one in found.values():
            yield from _objects(one)


class _Reader(pickle.Unpickler):
    """Rebuilds tensors as arrays; every other class and function in the archive becomes an empty shell."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name))
        self._archive, self._folder = archive, name.removesuffix(".pkl")

    def find_class(self, module: str, name: str) -> Any:  # noqa: ARG002
        """Return what rebuilds a tensor, a storage's dtype, or a shell."""
        if name.endswith("Storage"):
            return name
        known = {"_rebuild_qtensor": _quantized, "_rebuild_tensor_v2": _plain}
        passing = {"build_tensorlist": list, "restore_type_tag": lambda value, _tag: value}
        return known.get(name) or passing.get(name) or _Packed

    def persistent_load(self, pid: Any) -> Any:
        """Return the elements of a storage: ("storage", dtype, key, device, elements); None for other dtypes."""
        import numpy as np

        _, dtype, key, _, _ = pid
        if dtype not in _DTYPES:
            return None
        return np.frombuffer(self._archive.read(f"{self._folder}/{key}"), _DTYPES[dtype])


def _plain(storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> Any:
    """Return a tensor by its place in a storage; sizes and strides in elements."""
    import numpy as np

    if storage is None:
        return None
    step = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), tuple(step * one for one in stride))
    return _Tensor(values=np.array(view))


def _quantized(storage: Any, offset: int, size: Any, stride: Any, quantizer: Any, *_rest: Any) -> Any:
    """Return a quantized tensor; `quantizer` is (scheme, scale, zero point) or (scheme, scales, zero points, axis)."""
    tensor = _plain(storage, offset, size, stride)
    if tensor is None:
        return None
    scale = quantizer[1]
    scales = tuple(float(one) for one in scale.values) if isinstance(scale, _Tensor) else (float(scale),)
    return _Tensor(values=tensor.values, scales=scales)
