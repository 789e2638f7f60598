"""Int8 archives with equal values stored once: `torch.jit.save` unpacks every layer into tensors of its own.

What is said otherwise here means the same. When it loads a weight, PyTorch makes float64 of its scales and a full row
of int64 of its zero points (`make_per_channel_affine_quantizer` in aten/src/ATen/quantized/Quantizer.cpp); and it
copies a layer's settings out of their tensor (`parse_conv_serialized_state` in
aten/src/ATen/native/quantized/cpu/conv_serialization.h). So tensors that share an entry share no memory that is used.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgeq.lower.tables import Call, Instance, Storage, named, place, read, values, walk, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PACKED = "__torch__.torch.classes.quantized"
_BY_CHANNEL = "per_channel_affine"
_KEY = re.compile(r"(?:^|/)(\d+)(\.storage)?$")  # the lite form names an entry 7.storage


def compacted(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return an archive's entries without what they repeat.

    Scales by channel are stored in float32 where that is exact, zero points that are all equal as one element, and the
    settings (strides, padding…) of layers that are alike once. An archive without int8 layers is returned as it came.

    Raises:
        Exception: its tables are none that PyTorch writes.
    """
    names = [name for name in contents if name.endswith(".pkl")]
    if not any(word in contents[name] for name in names for word in (_BY_CHANNEL.encode(), _PACKED.encode())):
        return contents
    tables = {name: read(contents[name]) for name in names}
    entries = _Entries(contents)
    before = _places(entries, tables)
    for name, table in tables.items():
        for node in walk(table):
            _compact(entries, name, node)
    unused = before - _places(entries, tables)
    kept = {place: data for place, data in entries.contents.items() if place not in unused}
    return kept | {name: write(table) for name, table in tables.items()}


class _Entries:
    """The entries of an archive; storages of the same dtype and bytes are given one entry."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = dict(contents)
        self._known: dict[tuple[str, str, bytes], str] = {}
        self._number = 1 + max((int(key[1]) for name in contents if (key := _KEY.search(name))), default=-1)

    def share(self, table: str, storage: Storage) -> None:
        """Give a storage the entry of the first such one."""
        entry = place(self.contents, table, storage)
        same = (entry.rpartition("/")[0], storage.dtype.__name__, self.contents[entry])
        storage.key = self._known.setdefault(same, storage.key)

    def add(self, table: str, like: Storage, dtype: str, elements: NDArray[Any]) -> Storage:
        """Return a storage of these elements, whose entry lies and is named as another's."""
        folder, data = place(self.contents, table, like).rpartition("/")[0], elements.tobytes()
        fresh = _KEY.sub(rf"{self._number}\2", like.key)
        key = self._known.setdefault((folder, dtype, data), fresh)
        if key == fresh:
            self.contents[f"{folder}/{key}"] = data
            self._number += 1
        return Storage(named("torch", dtype), key, like.device, elements.size)


def _places(entries: _Entries, tables: dict[str, Any]) -> set[str]:
    nodes = ((name, node) for name, table in tables.items() for node in walk(table))
    return {place(entries.contents, name, node) for name, node in nodes if isinstance(node, Storage)}


def _compact(entries: _Entries, table: str, node: Any) -> None:
    """Change a weight or a packed layer of a table."""
    if isinstance(node, Call) and node.function.__name__ == "_rebuild_qtensor":
        quantizer = node.args[4]
        if quantizer[0].__name__ == _BY_CHANNEL:
            _, scales, zero_points, axis = quantizer
            changed = (quantizer[0], _narrow(entries, table, scales), _single(entries, table, zero_points), axis)
            node.args = (*node.args[:4], changed, *node.args[5:])
    elif isinstance(node, Instance) and type(node).__module__ == _PACKED:
        for part in walk(node.state):
            if isinstance(part, Storage) and part.dtype.__name__ == "ShortStorage":
                entries.share(table, part)


def _narrow(entries: _Entries, table: str, scales: Call) -> Call:
    """Return scales in float32 where that is exact, as it is for those of PyTorch's observers."""
    found = _vector(entries, table, scales)
    narrow = found.astype("<f4")
    if narrow.nbytes == found.nbytes or not (narrow == found).all():
        return scales
    storage = entries.add(table, scales.args[0], "FloatStorage", narrow)
    return Call(scales.function, (storage, 0, (len(narrow),), (1,), *scales.args[4:]))


def _single(entries: _Entries, table: str, zero_points: Call) -> Call:
    """Return zero points that are all equal as one that is read over and over."""
    found = _vector(entries, table, zero_points)
    if zero_points.args[3] == (0,) or not (found == found[0]).all():
        return zero_points
    storage = entries.add(table, zero_points.args[0], zero_points.args[0].dtype.__name__, found[:1])
    return Call(zero_points.function, (storage, 0, (len(found),), (0,), *zero_points.args[4:]))


def _vector(entries: _Entries, table: str, tensor: Call) -> NDArray[Any]:
    return values(tensor, entries.contents[place(entries.contents, table, tensor.args[0])])
