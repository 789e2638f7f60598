"""The tables of a TorchScript archive: pickles, read without running anything in them, and written for PyTorch.

Its reader (torch/csrc/jit/serialization/unpickler.cpp) knows a part of protocol 2, and takes NEWOBJ and BUILD for one
step. Python's own pickler writes what it refuses: single items, and objects memorized before they are built.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """Return what a table names so: the same for equal names."""
    return Global(name, (Instance,), {"__module__": module})


def read(data: bytes) -> Any:
    """Return a table as tuples, lists, dicts, numbers and strings, with this module's classes for all else.

    Raises:
        Exception: it is no such table.
    """
    return _Reader(io.BytesIO(data)).load()


def walk(table: Any) -> Iterator[Any]:
    """Yield everything in a table in the order of writing; what is shared in it once."""
    seen: dict[int, Any] = {}  # held, since whoever walks may change what a node is made of
    left = [table]
    while left:
        node = left.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            yield node
            left.extend(reversed(_parts(node)))


def place(names: Container[str], table: str, storage: Storage) -> str:
    """Return the name of a storage's entry; those of the lite form's bytecode lie with the constants.

    Args:
        names: of the archive's entries.
        table: the name of the entry that names the storage.
        storage: what it names.
    """
    own = f"{table.removesuffix('.pkl')}/{storage.key}"
    return own if own in names else f"{table.rpartition('/')[0]}/constants/{storage.key}"


def values(tensor: Call, data: bytes) -> NDArray[Any]:
    """Return a tensor's values, those of a quantized one as they are stored, from the bytes of its storage.

    Raises:
        Exception: NumPy has no such dtype, or the tensor goes beyond its storage.
    """
    import numpy as np

    storage, offset, size, stride, *_ = tensor.args
    elements = np.frombuffer(data, np.dtype(DTYPES[storage.dtype.__name__]).newbyteorder("<"))
    grid = np.ogrid[tuple(slice(length) for length in size)]
    return np.asarray(elements[offset + sum(step * index for step, index in zip(stride, grid, strict=True))])


def write(table: Any, rename: Callable[[str], str] = str) -> bytes:
    """Return the pickle of a table, with `rename` applied to its strings and names; what is shared stays shared.

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
        """Write a node, or refer to it where it was written."""
        identity = _identity(node)
        if identity in self._memo:
            self.written.append(_numbered(pickle.BINGET, pickle.LONG_BINGET, self._memo[identity]))
            return
        self._spell(node)
        if self._uses[identity] > 1 and isinstance(node, (str, Global, Call, Instance, Storage, list, dict)):
            self._memo[identity] = len(self._memo)
            self.written.append(_numbered(pickle.BINPUT, pickle.LONG_BINPUT, self._memo[identity]))

    def _spell(self, node: Any) -> None:
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
            self._tuple(node)
        else:
            self.written.append(_atom(self._rename(node) if isinstance(node, str) else node))

    def _tuple(self, items: tuple[Any, ...]) -> None:
        if items:
            end = _ENDS.get(len(items))
            self._all(items, end or pickle.TUPLE, b"" if end else pickle.MARK)
        else:
            self.written.append(pickle.EMPTY_TUPLE)

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
        return _integer(value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    what = f"a table of TorchScript holds no {type(value).__name__} such as {value!r}"
    raise TypeError(what)


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return pickle.BININT1 + struct.pack("<B", value)
    if 0 <= value < 1 << 16:
        return pickle.BININT2 + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
