"""TorchScript archives without debug data: source ranges hold paths of this machine."""

from __future__ import annotations

import functools
import io
import pickle
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError
from edgeq.core.lazy import NDArray, np

# beside what debugging needs, the inputs that the model was traced with
_DROPPED = re.compile(
    r"\.debug_pkl$|/\.data/serialization_id$|/(mobile_debug_handles|callstack_debug_map)\.pkl$"
    r"|^[^/]+/traced_inputs(\.pkl$|/)"
)

_ALIGNMENT = 64  # PyTorch's own (caffe2/serialize/inline_container.h), so that tensors can be mapped

_EPOCH = (1980, 1, 1, 0, 0, 0)

_MANGLED = re.compile(r"___torch_mangle_\d+")

_TENSOR = re.compile(r"/(?:weight_|tensor_)?\d+(?:\.storage)?$")  # raw bytes, where anything may occur by chance

_PATH = re.compile(rb"/[\w.+-]+/[\w./+-]*\w\.py\b|/site-packages/")

_PAD_ID = 0x4246  # "FB", the extra field that PyTorch pads with


def strip_archive(path: Path) -> None:
    """Rewrite an archive in place: stored, aligned, without debug records or times, and compacted.

    Raises:
        UnsupportedError: an entry still names a path of this machine.
    """
    with zipfile.ZipFile(path) as source:
        kept = [entry.filename for entry in source.infolist() if not _DROPPED.search(entry.filename)]
        contents = compacted(_renumbered({name: source.read(name) for name in kept}))
    for name, data in contents.items():
        if not _TENSOR.search(name) and _PATH.search(data):
            what = f"{path.name}: {name} holds a path of this machine"
            raise UnsupportedError(what, "report the model's architecture to edgeq's developers")
    stripped = path.with_suffix(path.suffix + ".stripped")
    with zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as target:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            # the extra field that makes the entry's data start at a multiple of the alignment
            offset = target.fp.tell() if target.fp else 0
            header = 30 + len(name.encode()) + 4
            size = -(offset + header) % _ALIGNMENT
            info.extra = _PAD_ID.to_bytes(2, "little") + size.to_bytes(2, "little") + b"\0" * size
            target.writestr(info, data)
    stripped.replace(path)


def _renumbered(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Count PyTorch's mangled class names from 0: it numbers them through everything that a process traced."""
    numbers: dict[str, str] = {}

    def number(text: str) -> str:
        return _MANGLED.sub(lambda match: numbers.setdefault(match[0], f"___torch_mangle_{len(numbers)}"), text)

    renamed = {}
    for name, data in contents.items():
        own_name = number(name)
        if name.endswith(".py"):
            data = number(data.decode()).encode()
        elif name.endswith(".pkl") and _MANGLED.search(data.decode("latin-1")):
            data = write(read(data), number)
        renamed[own_name] = data
    return renamed


# --- Int8 archives with equal values stored once: `torch.jit.save` unpacks every layer into tensors of its own.


_PACKED = "__torch__.torch.classes.quantized"

_BY_CHANNEL = "per_channel_affine"

_KEY = re.compile(r"(?:^|/)(\d+)(\.storage)?$")  # the lite form names an entry 7.storage


def compacted(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return an archive's entries without duplicate data.

    Scales by channel are stored in float32 where that is exact, zero points that are all equal as one element, and once
    what equal layers have: settings (strides, padding…), and weights, since FX gives each call of a layer one of its
    own. An archive without int8 layers is returned unchanged.

    Raises:
        Exception: its tables are not in PyTorch's format.
    """
    names = [name for name in contents if name.endswith(".pkl")]
    if not any(word in contents[name] for name in names for word in (_BY_CHANNEL.encode(), _PACKED.encode())):
        return contents
    tables = {name: read(contents[name]) for name in names}
    entries = _Entries(contents)
    before = _places(entries, tables)
    for name, table in tables.items():
        for node in walk(table):
            # change a weight or a packed layer of a table
            if isinstance(node, Call) and node.function.__name__ == "_rebuild_qtensor":
                entries.share(name, node.args[0])
                quantizer = node.args[4]
                if quantizer[0].__name__ == _BY_CHANNEL:
                    _, scales, zero_points, axis = quantizer
                    changed = (quantizer[0], _narrow(entries, name, scales), _single(entries, name, zero_points), axis)
                    node.args = (*node.args[:4], changed, *node.args[5:])
            elif isinstance(node, Instance) and type(node).__module__ == _PACKED:
                for part in walk(node.state):
                    if isinstance(part, Storage) and part.dtype.__name__ == "ShortStorage":
                        entries.share(name, part)
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
        """Give a storage the entry of the first equal storage."""
        entry = place(self.contents, table, storage)
        same = (entry.rpartition("/")[0], storage.dtype.__name__, self.contents[entry])
        storage.key = self._known.setdefault(same, storage.key)

    def add(self, table: str, like: Storage, dtype: str, elements: NDArray[Any]) -> Storage:
        """Return a storage of these elements, whose entry is placed and named like another's."""
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


# --- The tables of a TorchScript archive: pickles, read without running anything in them, and written for PyTorch.


DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "QInt8Storage": "int8",
    "ByteStorage": "uint8",
    "QUInt8Storage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
}

_ENDS = {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}


class Global(type):
    """A class, function or constant that a table names: its `__module__` and `__name__`; a call of it is only noted."""

    def __call__(cls, *args: Any) -> Call:
        """Return the call."""
        return Call(function=cls, args=args)


class Instance:
    """An object of a `Global`, with its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(slots=True, eq=False)
class Call:
    """What a function gives for arguments, such as a tensor rebuilt from its storage."""

    function: Global
    args: tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Storage:
    """The memory of one or more tensors.

    Attributes:
        dtype: PyTorch's class of such storages, one of `DTYPES`.
        key: the name of its entry in the folder of the table.
    """

    dtype: Global
    key: str
    device: str
    elements: int


@functools.cache
def named(module: str, name: str) -> Global:
    """Return the object with this name in a table: the same one for equal names."""
    return Global(name, (Instance,), {"__module__": module})


def read(data: bytes) -> Any:
    """Return a table as tuples, lists, dicts, numbers and strings, with this module's classes for all else.

    Raises:
        Exception: it is not such a table.
    """
    return _Reader(io.BytesIO(data)).load()


def walk(table: Any) -> Iterator[Any]:
    """Yield everything in a table in the order of writing; shared objects once."""
    seen: dict[int, Any] = {}  # held, since whoever walks may change what a node is made of
    left = [table]
    while left:
        node = left.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            yield node
            left.extend(reversed(_parts(node)))


def place(names: Container[str], table: str, storage: Storage) -> str:
    """Return the name of a storage's entry; those of the lite format's bytecode are stored with the constants.

    Args:
        names: of the archive's entries.
        table: the name of the entry that names the storage.
        storage: the storage.
    """
    own = f"{table.removesuffix('.pkl')}/{storage.key}"
    return own if own in names else f"{table.rpartition('/')[0]}/constants/{storage.key}"


def values(tensor: Call, data: bytes) -> NDArray[Any]:
    """Return a tensor's values from the bytes of its storage; of a quantized tensor, the stored integers.

    Raises:
        Exception: NumPy has no such dtype, or the tensor exceeds its storage.
    """
    storage, offset, size, stride, *_ = tensor.args
    elements = np.frombuffer(data, np.dtype(DTYPES[storage.dtype.__name__]).newbyteorder("<"))
    grid = np.ogrid[tuple(slice(length) for length in size)]
    return np.asarray(elements[offset + sum(step * index for step, index in zip(stride, grid, strict=True))])


def write(table: Any, rename: Callable[[str], str] = str) -> bytes:
    """Return the pickle of a table, with `rename` applied to its strings and names; shared objects stay shared.

    Raises:
        TypeError: a value that PyTorch's reader does not know.
    """
    writer = _Writer(table, rename)
    writer.add(table)
    return pickle.PROTO + b"\x02" + b"".join(writer.written) + pickle.STOP


def _parts(node: Any) -> tuple[Any, ...]:
    """Return what a node is made of, in the order of writing."""
    if isinstance(node, (tuple, list)):
        return tuple(node)
    if isinstance(node, dict):
        return tuple(part for pair in node.items() for part in pair)
    if isinstance(node, Call):
        return (node.function, node.args)
    if isinstance(node, Instance):
        return (type(node), node.state)
    if isinstance(node, Storage):
        return ("storage", node.dtype, node.key, node.device, node.elements)
    return ()


class _Reader(pickle.Unpickler):
    """Builds what this module has for everything that a pickle would import."""

    def find_class(self, module: str, name: str) -> Global:
        """Import nothing."""
        return named(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """Return a storage: ("storage", dtype, key, device, elements)."""
        return Storage(*pid[1:])


class _Writer:
    """Writes each node once, and refers to it from then on."""

    def __init__(self, table: Any, rename: Callable[[str], str]) -> None:
        self.written: list[bytes] = []
        self._rename = rename
        self._memo: dict[int | str, int] = {}
        self._uses = Counter(_identity(part) for node in walk(table) for part in _parts(node))

    def add(self, node: Any) -> None:
        """Write a node, or a reference to it if it was written before."""
        identity = _identity(node)
        if identity in self._memo:
            self.written.append(_numbered(pickle.BINGET, pickle.LONG_BINGET, self._memo[identity]))
            return
        if isinstance(node, Global):
            names = (self._rename(name) for name in (node.__module__, node.__name__))
            self.written.append(pickle.GLOBAL + "".join(f"{name}\n" for name in names).encode())
        elif isinstance(node, Instance):
            self._all((type(node),), pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self._all((node.state,), pickle.BUILD)
        elif isinstance(node, Call):
            self._all(_parts(node), pickle.REDUCE)
        elif isinstance(node, Storage):
            self._all(_parts(node), pickle.TUPLE + pickle.BINPERSID, pickle.MARK)
        elif isinstance(node, dict):
            self._all(_parts(node), pickle.SETITEMS, pickle.EMPTY_DICT + pickle.MARK)
        elif isinstance(node, list):
            self._all(node, pickle.APPENDS, pickle.EMPTY_LIST + pickle.MARK)
        elif isinstance(node, tuple):
            if node:
                end = _ENDS.get(len(node))
                self._all(node, end or pickle.TUPLE, b"" if end else pickle.MARK)
            else:
                self.written.append(pickle.EMPTY_TUPLE)
        else:
            self.written.append(_atom(self._rename(node) if isinstance(node, str) else node))
        if self._uses[identity] > 1 and isinstance(node, (str, Global, Call, Instance, Storage, list, dict)):
            self._memo[identity] = len(self._memo)
            self.written.append(_numbered(pickle.BINPUT, pickle.LONG_BINPUT, self._memo[identity]))

    def _all(self, parts: Any, end: bytes, start: bytes = b"") -> None:
        self.written.append(start)
        for part in parts:
            self.add(part)
        self.written.append(end)


def _identity(node: Any) -> int | str:
    return node if isinstance(node, str) else id(node)


def _numbered(short: bytes, long: bytes, number: int) -> bytes:
    return short + bytes([number]) if number < 256 else long + struct.pack("<I", number)


def _atom(value: Any) -> bytes:
    """Return a number, a string or None, as PyTorch's reader has them: integers of 64 bits at most."""
    if value is None:
        return pickle.NONE
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        if 0 <= value < 1 << 8:
            return pickle.BININT1 + struct.pack("<B", value)
        if 0 <= value < 1 << 16:
            return pickle.BININT2 + struct.pack("<H", value)
        if -(1 << 31) <= value < 1 << 31:
            return pickle.BININT + struct.pack("<i", value)
        return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    what = f"a table of TorchScript holds no {type(value).__name__} such as {value!r}"
    raise TypeError(what)
