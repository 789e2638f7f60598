"""The container of samples that edgeq and its C++ runners exchange; `src/runner.h` has the other half.

Layout, little-endian: `EDGEQT1\\n`, uint32 samples; for each sample uint32 arrays; for each array uint8 dtype, uint8
axes, int64 sizes, then the elements in C order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import VerificationError

Arrays = tuple[NDArray[Any], ...]

MAGIC = b"EDGEQT1\n"
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
MAX_AXES = 16
_MAX_ARRAYS = 1024


def write_samples(path: Path, samples: Sequence[Arrays]) -> None:
    """Write samples, each with any number of arrays of any shape.

    Raises:
        ValueError: an array whose dtype no model takes, or with too many axes.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(samples)))
        for arrays in samples:
            file.write(struct.pack("<I", len(arrays)))
            for array in arrays:
                _write(file, array)


def _write(file: IO[bytes], array: NDArray[Any]) -> None:
    if array.dtype.name not in DTYPES or array.ndim > MAX_AXES:
        raise ValueError(f"no runner takes {array.dtype} of {array.ndim} axes")
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    file.write(struct.pack("<BB", DTYPES.index(array.dtype.name), array.ndim))
    file.write(struct.pack(f"<{array.ndim}q", *array.shape))
    file.write(plain.tobytes())


def read_samples(path: Path) -> tuple[Arrays, ...]:
    """Read what a runner wrote.

    Raises:
        VerificationError: the file is not whole, or no container.
    """
    reader = _Reader(path.read_bytes(), path)
    if reader.take(len(MAGIC)) != MAGIC:
        raise reader.broken("it does not begin as one")
    samples = [_sample(reader) for _ in range(reader.number("<I"))]
    if reader.left:
        raise reader.broken(f"{reader.left} bytes too many")
    return tuple(samples)


def _sample(reader: _Reader) -> Arrays:
    count = reader.number("<I")
    if count > _MAX_ARRAYS:
        raise reader.broken(f"a sample of {count} arrays")
    return tuple(_array(reader) for _ in range(count))


def _array(reader: _Reader) -> NDArray[Any]:
    code, axes = reader.number("<B"), reader.number("<B")
    if code >= len(DTYPES) or axes > MAX_AXES:
        raise reader.broken(f"an array of type {code} and {axes} axes")
    shape = tuple(reader.number("<q") for _ in range(axes))
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    size = dtype.itemsize
    for length in shape:
        if length < 0:
            raise reader.broken("an array of negative size")
        size *= length  # Python's integers do not overflow
    return np.frombuffer(reader.take(size), dtype).reshape(shape)


class _Reader:
    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise self.broken("it ends too soon")
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def broken(self, why: str) -> VerificationError:
        what = f"the runner's output {self._path.name} is no container of samples: {why}"
        return VerificationError(what, "run again; if it stays so, run `edgeq emulator install`")
