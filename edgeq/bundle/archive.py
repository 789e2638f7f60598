"""The bundle as one file: the deterministic, deflated ZIP that a release publishes, and its size."""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgeq.bundle.reader import open_regular, read_manifest
from edgeq.bundle.writer import ZIP_EPOCH, zip_entry
from edgeq.core.errors import UsageError
from edgeq.core.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from typing_extensions import Buffer


_LEVEL = 9

_CHUNK_BYTES = 1 << 20

_HEADERS_BYTES = 30 + 46  # of a file, without its name: in front of it and in the directory (APPNOTE.TXT 4.3.7, 4.3.12)

_END_BYTES = 22  # of the end of the directory (4.3.16)


def write_zip(folder: Path, sink: IO[bytes]) -> None:
    """Write a bundle's ZIP into a seekable sink: manifest and listed files, sorted, without the reports.

    Times are 1980-01-01, or SOURCE_DATE_EPOCH. Equal bundles give equal bytes with equal versions of zlib.

    Raises:
        UsageError: the folder is not a bundle, or SOURCE_DATE_EPOCH is not a time.
        IntegrityError: the manifest is broken, or a file is missing.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read.
    """
    _, manifest = read_manifest(folder)
    date_time = _date_time()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted((MANIFEST_NAME, *(entry.path for entry in manifest.files))):
            info = zip_entry(name, date_time)
            info.compress_type = zipfile.ZIP_DEFLATED
            info._compresslevel = _LEVEL  # type: ignore[attr-defined]  # the public name came with Python 3.13
            with open_regular(folder / name) as source:
                info.file_size = os.fstat(source.fileno()).st_size  # ZipFile must know whether it takes ZIP64
                with archive.open(info, "w") as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)


def bundle_zip(folder: Path) -> bytes:
    """Return the bytes of a bundle's ZIP; raises what `write_zip` does."""
    sink = io.BytesIO()
    write_zip(folder, sink)
    return sink.getvalue()


def download_size_bytes(folder: Path, deflated: dict[str, int] | None = None) -> int:
    """Return the size of a bundle's ZIP without writing it; raises what `write_zip` does.

    Args:
        folder: the bundle.
        deflated: compressed sizes by sha256; sizes that are computed here are added. Only for folders whose files are
            known to match the manifest.
    """
    _, manifest = read_manifest(folder)
    if any(entry.size_bytes * 1.05 > zipfile.ZIP64_LIMIT for entry in manifest.files):  # ZipFile's own bound
        sink = _Counter()
        write_zip(folder, sink)
        return sink.size_bytes
    known = {} if deflated is None else deflated
    names = [MANIFEST_NAME]
    total = _END_BYTES + _deflated_bytes(folder / MANIFEST_NAME)
    for entry in manifest.files:
        names.append(entry.path)
        if entry.sha256 not in known:
            known[entry.sha256] = _deflated_bytes(folder / entry.path)
        total += known[entry.sha256]
    return total + sum(_HEADERS_BYTES + 2 * len(name.encode()) for name in names)


def _deflated_bytes(path: Path) -> int:
    """Return what a file comes to as ZipFile deflates it."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    size = 0
    with open_regular(path) as source:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


class _Counter(io.BytesIO):
    """Counts what is written. It can seek, since ZipFile writes another format into a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        return self._position

    def write(self, data: Buffer) -> int:
        written = memoryview(data).nbytes
        self._position += written
        self.size_bytes = max(self.size_bytes, self._position)
        return written


def _date_time() -> tuple[int, int, int, int, int, int]:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return ZIP_EPOCH
    try:
        moment = time.gmtime(int(text))
    except (ValueError, OverflowError, OSError) as err:
        what = f"SOURCE_DATE_EPOCH must be seconds since 1970, got {text!r}"
        raise UsageError(what, "set SOURCE_DATE_EPOCH to a number, or unset it") from err
    year, month, day, hour, minute, second = moment[:6]
    # ZIP knows the years 1980 to 2107
    return (year, month, day, hour, minute, second) if 1980 <= year <= 2107 else ZIP_EPOCH
