"""Binary patches: zstandard's patch-from and bsdiff4, whichever is smaller. The output is bounded and checked.

Neither format identifies its base: with a wrong base both return wrong bytes without an error. The signed index
therefore holds the hashes of base, patch and output, and every one is checked here.
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backports import zstd

from edgeq.bundle.reader import open_regular, read_bundle
from edgeq.core.errors import EdgeqError, IntegrityError, first_line
from edgeq.core.files import disk_errors, sha256_bytes
from edgeq.core.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Bundle, FileEntry, Manifest, parse_manifest

Algorithm = Literal["zstd", "bsdiff4"]

# 19 finds no more than 12 on quantized weights, and 3 finds nothing
_ZSTD_LEVEL = 12

# bsdiff4 sorts suffixes, in fifteen times its input of memory
_BSDIFF_MOST_BYTES = 64 * 2**20

_MAX_WINDOW_LOG = 31

_LEAST_BASE_BYTES = 8  # zstd takes nothing from a shorter one

_CHUNK_BYTES = 1 << 20

_BSDIFF_HEAD_BYTES = 32

_CONTROL_TRIPLE_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """The bytes that turn one plain form into another."""

    algorithm: Algorithm
    data: bytes
    base_sha256: str
    output_sha256: str
    output_bytes: int


def make_patch(base: bytes, output: bytes) -> Patch:
    """Return the smaller patch from `base` to `output`; it is applied once as a check before it is returned."""
    made: dict[Algorithm, bytes] = {"zstd": _zstd_diff(base, output)}
    if max(len(base), len(output)) <= _BSDIFF_MOST_BYTES:
        made["bsdiff4"] = _bsdiff(base, output)
    algorithm = min(made, key=lambda name: len(made[name]))
    patch = Patch(
        algorithm=algorithm,
        data=made[algorithm],
        base_sha256=sha256_bytes(base),
        output_sha256=sha256_bytes(output),
        output_bytes=len(output),
    )
    apply_patch(patch, base)
    return patch


def apply_patch(patch: Patch, base: bytes) -> bytes:
    """Return the patch's output: exactly the bytes of the hash in the index, or an error.

    Raises:
        IntegrityError: another base, a damaged patch, or one whose output is larger than stated.
    """
    if sha256_bytes(base) != patch.base_sha256:
        raise _refused("it was made for another base")
    run = {"zstd": _zstd_apply, "bsdiff4": _bsdiff_apply}[patch.algorithm]
    try:
        output = run(base, patch.data, patch.output_bytes)
    except IntegrityError:
        raise
    except Exception as err:  # both libraries raise several kinds on damaged bytes
        raise _refused(f"it is damaged: {first_line(err)}") from err
    if len(output) != patch.output_bytes or sha256_bytes(output) != patch.output_sha256:
        raise _refused("its output does not match the hash in the signed index")
    return output


def _refused(why: str) -> IntegrityError:
    return IntegrityError(f"the patch is refused: {why}", "update again: it then uses the full download")


def _window_log(base_bytes: int, output_bytes: int) -> int:
    """Return the window that reaches from the output's end to the base's start, as zstd's --patch-from takes it."""
    return min(max((base_bytes + output_bytes).bit_length(), 10), _MAX_WINDOW_LOG)


def _zstd_diff(base: bytes, output: bytes) -> bytes:
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _ZSTD_LEVEL,
        zstd.CompressionParameter.window_log: _window_log(len(base), len(output)),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    known = zstd.ZstdDict(base, is_raw=True) if len(base) >= _LEAST_BASE_BYTES else None
    made = []
    # as a dictionary the base gives smaller patches of small files; of large ones only a prefix reaches its start
    for way in (None,) if known is None else (known.as_undigested_dict, known.as_prefix):
        compressor = zstd.ZstdCompressor(options=options, zstd_dict=way)
        compressor.set_pledged_input_size(len(output))
        made.append(compressor.compress(output, compressor.FLUSH_FRAME))
    return min(made, key=len)


def _zstd_apply(base: bytes, data: bytes, output_bytes: int) -> bytes:
    window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(len(base), output_bytes)}
    known = zstd.ZstdDict(base, is_raw=True).as_prefix if len(base) >= _LEAST_BASE_BYTES else None
    reader = zstd.ZstdDecompressor(zstd_dict=known, options=window)
    output = reader.decompress(data, output_bytes + 1)
    if len(output) > output_bytes:
        raise _refused(f"its output is larger than the {output_bytes} bytes in the index")
    return output


def _bsdiff(base: bytes, output: bytes) -> bytes:
    import bsdiff4

    data: bytes = bsdiff4.diff(base, output)
    return data


def _bsdiff_apply(base: bytes, data: bytes, output_bytes: int) -> bytes:
    """Apply by the library's core; its front would inflate whatever the patch holds."""
    from bsdiff4 import core

    if data[:8] != b"BSDIFF40" or len(data) < _BSDIFF_HEAD_BYTES:
        raise _refused("it is not a bsdiff4 patch")
    control_bytes, diff_bytes, says_bytes = (core.decode_int64(data[i : i + 8]) for i in (8, 16, 24))
    if says_bytes != output_bytes:
        raise _refused(f"its output has {says_bytes} bytes, the index states {output_bytes}")
    if min(control_bytes, diff_bytes) < 0 or _BSDIFF_HEAD_BYTES + control_bytes + diff_bytes > len(data):
        raise _refused("it is truncated")
    diff_at = _BSDIFF_HEAD_BYTES + control_bytes
    # a control triple that yields nothing is of no use, so there are never more than bytes
    most = _CONTROL_TRIPLE_BYTES * min(output_bytes + 1, 1 << 20)
    control = _inflated(data[_BSDIFF_HEAD_BYTES:diff_at], most)
    if len(control) % _CONTROL_TRIPLE_BYTES:
        raise _refused("it is damaged: its control block is cut off")
    diff = _inflated(data[diff_at : diff_at + diff_bytes], output_bytes)
    extra = _inflated(data[diff_at + diff_bytes :], output_bytes)
    if len(diff) + len(extra) != output_bytes:
        raise _refused("it is damaged: its parts do not add up to its output")
    output: bytes = core.patch(base, output_bytes, control, diff, extra)
    return output


def _inflated(data: bytes, most: int) -> bytes:
    engine = bz2.BZ2Decompressor()
    output = engine.decompress(data, most + 1)
    if len(output) > most:
        raise _refused("it would inflate to more bytes than its output has")
    if not engine.eof:
        raise _refused("it is truncated")
    return output


# --- A bundle as one plain string of bytes: what patches are made between.


MAGIC = b"edgeq-plain-1\n"

_LENGTH_BYTES = 8

_HEAD_BYTES = len(MAGIC) + _LENGTH_BYTES


def pack(folder: Path) -> bytes:
    """Return the plain form of the bundle in a folder; its hashes are checked.

    Raises:
        UsageError: the folder is not a bundle.
        IntegrityError: a file is missing or changed.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read.
    """
    bundle = read_bundle(folder)
    with open_regular(folder / MANIFEST_NAME) as file:
        manifest = file.read()
    parts = [MAGIC, len(manifest).to_bytes(_LENGTH_BYTES, "big"), manifest]
    for entry in _in_order(bundle.manifest):
        with open_regular(folder / entry.path) as file:
            parts.append(file.read())
    return b"".join(parts)


def unpack(data: bytes, folder: Path) -> None:
    """Write the files of a plain form into an empty folder; `read_bundle` then checks their hashes.

    Raises:
        IntegrityError: `data` is not a plain form.
        UnsupportedError: a newer edgeq wrote the manifest.
        OSError: a write failed.
    """
    start = _HEAD_BYTES + int.from_bytes(data[len(MAGIC) : _HEAD_BYTES], "big")
    if not data.startswith(MAGIC) or start > min(len(data), _HEAD_BYTES + MAX_MANIFEST_BYTES):
        raise _broken("it does not begin with a manifest")
    manifest = parse_manifest(data[_HEAD_BYTES:start])
    entries = _in_order(manifest)
    if start + sum(entry.size_bytes for entry in entries) != len(data):
        raise _broken("its files do not have the sizes in its manifest")
    (folder / MANIFEST_NAME).write_bytes(data[_HEAD_BYTES:start])
    for entry in entries:
        (folder / entry.path).write_bytes(data[start : start + entry.size_bytes])
        start += entry.size_bytes


def _in_order(manifest: Manifest) -> list[FileEntry]:
    return sorted(manifest.files, key=lambda entry: entry.path)


def _broken(why: str) -> IntegrityError:
    return IntegrityError(f"the patched bytes are not a bundle: {why}", "update again: it then uses the full download")


# --- A folder among the system's temporary files, which does not outlive a killed run for long.


_PREFIX = "edgeq-ota-"

_GRACE_S = 60.0  # between making its folder and locking it a run may be held up


@contextlib.contextmanager
def scratch_dir() -> Iterator[Path]:
    """Yield an empty temporary folder; leftovers of killed runs are removed.

    A run holds a lock on its folder; the operating system releases it when the process ends for any reason.

    Raises:
        EnvironmentProblem: a write to the disk that holds temporary files failed.
    """
    place = Path(tempfile.gettempdir())
    with disk_errors(place), tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        _sweep(place)
        with _locked(Path(name)):
            yield Path(name)


def _sweep(place: Path) -> None:
    for path in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another run removes it just now, or still has it
            info = path.lstat()
            if info.st_uid == os.getuid() and time.time() - info.st_mtime > _GRACE_S:
                with _locked(path):
                    shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        OSError: it is no folder, or another process holds the lock.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


# --- A downloaded ZIP becomes a bundle's folder, or nothing at all: what it says of itself is not believed.


MAX_ENTRIES = 16

_END_BYTES = 22  # of the end record; edgeq writes no comment after it

_LOCATOR_BYTES = 20  # of ZIP64's locator before it

_MAX_DIRECTORY_BYTES = MAX_ENTRIES * 512

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

_DRIVE = re.compile(r"[A-Za-z]:")


def unzip(data: bytes, folder: Path, *, most_bytes: int) -> Bundle:
    """Write the files of a bundle's ZIP into an empty folder, and return the bundle.

    Args:
        data: the ZIP, whose hash was checked against the signed index.
        folder: an empty folder of the caller's.
        most_bytes: maximum total size of the files.

    Raises:
        IntegrityError: not a bundle's ZIP, a name that leads out of the folder or occurs twice, a link, an entry that
            is too large, or a file that differs from the manifest.
        UnsupportedError: a newer edgeq wrote the bundle.
        OSError: a write failed.
    """
    # bound the directory before `zipfile` reads all of it
    end = data[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != b"PK\5\6" or end[20:22] != b"\0\0":
        raise _refused_archive("it is not a ZIP, or other data follows it")
    if data[-_END_BYTES - _LOCATOR_BYTES : -_END_BYTES][:4] == b"PK\6\7":
        raise _refused_archive("it is in the ZIP64 format, which bundles never use")
    count, size_bytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > MAX_ENTRIES or size_bytes > _MAX_DIRECTORY_BYTES:
        raise _refused_archive(
            f"it has {count} entries in {size_bytes} bytes of directory; a bundle has at most {MAX_ENTRIES} entries"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _extract(archive, folder, most_bytes)
    except (EdgeqError, OSError):
        raise
    except Exception as err:  # zipfile and zlib raise a dozen kinds on hostile bytes
        raise _refused_archive(f"it is damaged: {first_line(err)}") from err
    return read_bundle(folder)


def _extract(archive: zipfile.ZipFile, folder: Path, most_bytes: int) -> None:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_entry(info)
        if info.filename.lower() in entries:
            raise _refused_archive(f"two of its entries are named {info.filename!r}, or differ only in case")
        entries[info.filename.lower()] = info
    total = sum(info.file_size for info in entries.values())
    if total > most_bytes:
        raise _refused_archive(f"it would inflate to {total} bytes, the signed index states {most_bytes}")
    manifest = _inflated_entry(archive, entries.get(MANIFEST_NAME), MAX_MANIFEST_BYTES)
    listed = {entry.path: entry.size_bytes for entry in parse_manifest(manifest).files}
    names = {info.filename for info in entries.values()}
    if names != {MANIFEST_NAME, *listed}:
        raise _refused_archive(f"it holds {', '.join(sorted(names))}; its manifest lists {', '.join(sorted(listed))}")
    (folder / MANIFEST_NAME).write_bytes(manifest)
    for name, size_bytes in listed.items():  # names of the manifest's, which are plain by its own rule
        (folder / name).write_bytes(_inflated_entry(archive, entries[name.lower()], size_bytes))


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename  # before zipfile cuts it at a zero byte, or turns its slashes
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise _refused_archive(f"the entry {name[:80]!r} has an absolute path")
    if ".." in re.split(r"[/\\]", name):
        raise _refused_archive(f"the entry {name[:80]!r} leads out of the folder")
    if not _PLAIN.fullmatch(name):
        raise _refused_archive(f"the entry {name[:80]!r} is not a plain file name")
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise _refused_archive(f"the entry {name!r} is a symbolic link")
    if mode and not stat.S_ISREG(mode):
        raise _refused_archive(f"the entry {name!r} is not a regular file")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused_archive(f"the entry {name!r} is encrypted, or uses a compression that edgeq does not write")


def _inflated_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, most_bytes: int) -> bytes:
    if info is None:
        raise _refused_archive(f"it has no {MANIFEST_NAME}")
    parts, rest = [], most_bytes + 1
    with archive.open(info) as source:
        while rest > 0 and (part := source.read(min(rest, _CHUNK_BYTES))):
            parts.append(part)
            rest -= len(part)
    if rest <= 0:
        raise _refused_archive(f"the entry {info.filename!r} inflates to more than its {most_bytes} bytes")
    return b"".join(parts)


def _refused_archive(why: str) -> IntegrityError:
    return IntegrityError(
        f"the archive is refused: {why}", "download it again from the channel; do not unpack it by hand"
    )
