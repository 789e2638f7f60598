"""A downloaded ZIP becomes a bundle's folder, or nothing at all: what it says of itself is not believed."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from pathlib import Path

from edgeq.bundle.reader import Bundle, read_bundle
from edgeq.errors import EdgeqError, IntegrityError, first_line
from edgeq.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest

MAX_ENTRIES = 16
_END_BYTES = 22  # of the end record; edgeq writes no comment after it
_LOCATOR_BYTES = 20  # of ZIP64's locator before it
_MAX_DIRECTORY_BYTES = MAX_ENTRIES * 512
_CHUNK_BYTES = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_DRIVE = re.compile(r"[A-Za-z]:")


def unzip(data: bytes, folder: Path, *, most_bytes: int) -> Bundle:
    """Write the files of a bundle's ZIP into an empty folder, and return the bundle.

    Args:
        data: the ZIP, whose hash was checked against the signed index.
        folder: an empty folder of the caller's.
        most_bytes: the most that the files together may have.

    Raises:
        IntegrityError: no bundle's ZIP, a name that leads out of the folder or stands twice, a link, an entry larger
            than it may be, or a file that is not the one that the manifest lists.
        UnsupportedError: a newer edgeq wrote the bundle.
        OSError: the disk refused a write.
    """
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _extract(archive, folder, most_bytes)
    except (EdgeqError, OSError):
        raise
    except Exception as err:  # zipfile and zlib raise a dozen kinds on hostile bytes
        raise _refused(f"it is damaged: {first_line(err)}") from err
    return read_bundle(folder)


def _check_directory(data: bytes) -> None:
    """Bound the directory before `zipfile` reads all of it."""
    end = data[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != b"PK\5\6" or end[20:22] != b"\0\0":
        raise _refused("it is no ZIP, or something follows it")
    if data[-_END_BYTES - _LOCATOR_BYTES : -_END_BYTES][:4] == b"PK\6\7":
        raise _refused("it is in the ZIP64 format, which bundles are not")
    count, size_bytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > MAX_ENTRIES or size_bytes > _MAX_DIRECTORY_BYTES:
        raise _refused(f"it has {count} entries in {size_bytes} bytes of directory, a bundle has at most {MAX_ENTRIES}")


def _extract(archive: zipfile.ZipFile, folder: Path, most_bytes: int) -> None:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_entry(info)
        if info.filename.lower() in entries:
            raise _refused(f"two of its entries are named {info.filename!r}, or differ in case only")
        entries[info.filename.lower()] = info
    total = sum(info.file_size for info in entries.values())
    if total > most_bytes:
        raise _refused(f"it would inflate to {total} bytes, the signed index names {most_bytes}")
    manifest = _inflated(archive, entries.get(MANIFEST_NAME), MAX_MANIFEST_BYTES)
    listed = {entry.path: entry.size_bytes for entry in parse_manifest(manifest).files}
    names = {info.filename for info in entries.values()}
    if names != {MANIFEST_NAME, *listed}:
        raise _refused(f"it holds {', '.join(sorted(names))}, its manifest lists {', '.join(sorted(listed))}")
    (folder / MANIFEST_NAME).write_bytes(manifest)
    for name, size_bytes in listed.items():  # names of the manifest's, which are plain by its own rule
        (folder / name).write_bytes(_inflated(archive, entries[name.lower()], size_bytes))


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename  # before zipfile cuts it at a zero byte, or turns its slashes
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise _refused(f"the entry {name[:80]!r} has an absolute path")
    if ".." in re.split(r"[/\\]", name):
        raise _refused(f"the entry {name[:80]!r} leads out of the folder")
    if not _PLAIN.fullmatch(name):
        raise _refused(f"the entry {name[:80]!r} is no plain file name")
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise _refused(f"the entry {name!r} is a symbolic link")
    if mode and not stat.S_ISREG(mode):
        raise _refused(f"the entry {name!r} is no plain file")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(f"the entry {name!r} is encrypted, or compressed in another way than edgeq does")


def _inflated(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, most_bytes: int) -> bytes:
    if info is None:
        raise _refused(f"it has no {MANIFEST_NAME}")
    parts, rest = [], most_bytes + 1
    with archive.open(info) as source:
        while rest > 0 and (part := source.read(min(rest, _CHUNK_BYTES))):
            parts.append(part)
            rest -= len(part)
    if rest <= 0:
        raise _refused(f"the entry {info.filename!r} inflates to more than the {most_bytes} bytes that it may have")
    return b"".join(parts)


def _refused(why: str) -> IntegrityError:
    return IntegrityError(f"the archive is refused: {why}", "get it again from the channel; do not open it by hand")
