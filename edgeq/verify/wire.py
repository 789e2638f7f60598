"""Messages between edgeq and its child processes: a JSON header, then the raw bytes of arrays.

Frame: 8 bytes little-endian header length, the header, then each array in C order as the header describes it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from edgeq.core.lazy import NDArray, np

_LENGTH = struct.Struct("<Q")

_MAX_HEADER_BYTES = 1 << 24


class Source(Protocol):
    """What a frame is read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""


class Sink(Protocol):
    """What a frame is written to."""

    def write(self, data: bytes, /) -> int:
        """Write all of `data`."""

    def flush(self) -> None:
        """Hold nothing back."""


def send(stream: Sink, message: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Write one frame and flush it."""
    arrays = [np.ascontiguousarray(array).reshape(np.shape(array)) for array in arrays]
    header = {**message, "arrays": [[str(array.dtype), list(array.shape)] for array in arrays]}
    data = json.dumps(header).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: Source) -> tuple[dict[str, Any], tuple[NDArray[Any], ...]]:
    """Read one frame.

    Raises:
        EOFError: the other side is gone.
        ValueError: the data is not a frame.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(_exactly(stream, length))
    arrays = []
    for dtype, shape in header.pop("arrays"):
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(_exactly(stream, count * kind.itemsize), kind).reshape(shape))
    return header, tuple(arrays)


def _exactly(stream: Source, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
