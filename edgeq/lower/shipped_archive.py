"""The int8 layers of a TorchScript archive, read from its tables: packed parameters hold a weight and a bias."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import StoredLayer
from edgeq.lower.tables import DTYPES, Call, Instance, place, read, values, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PASSING = ("build_tensorlist", "restore_type_tag")  # of a list, its first argument
_READ = ("float32", "float64", "int8")


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
