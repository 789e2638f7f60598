"""A bundle as one plain string of bytes: what patches are made between.

A deflated ZIP would hide that two models are alike. The plain form is `MAGIC`, the manifest's length (8 bytes,
big-endian), the manifest, then the files that it lists, sorted by name, each as long as the manifest says. So a
device can rebuild it from the files that it has.
"""

from __future__ import annotations

from pathlib import Path

from edgeq.bundle.reader import open_regular, read_bundle
from edgeq.errors import IntegrityError
from edgeq.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest

MAGIC = b"edgeq-plain-1\n"
_LENGTH_BYTES = 8
_HEAD_BYTES = len(MAGIC) + _LENGTH_BYTES


def pack(folder: Path) -> bytes:
    """Return the plain form of the bundle in a folder; its hashes are checked.

    Raises:
        UsageError: the folder is no bundle.
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
        IntegrityError: `data` is no plain form.
        UnsupportedError: a newer edgeq wrote the manifest.
        OSError: the disk refused a write.
    """
    start = _HEAD_BYTES + int.from_bytes(data[len(MAGIC) : _HEAD_BYTES], "big")
    if not data.startswith(MAGIC) or start > min(len(data), _HEAD_BYTES + MAX_MANIFEST_BYTES):
        raise _broken("it does not begin with a manifest")
    manifest = parse_manifest(data[_HEAD_BYTES:start])
    entries = _in_order(manifest)
    if start + sum(entry.size_bytes for entry in entries) != len(data):
        raise _broken("its files are not as long as its manifest says")
    (folder / MANIFEST_NAME).write_bytes(data[_HEAD_BYTES:start])
    for entry in entries:
        (folder / entry.path).write_bytes(data[start : start + entry.size_bytes])
        start += entry.size_bytes


def _in_order(manifest: Manifest) -> list[FileEntry]:
    return sorted(manifest.files, key=lambda entry: entry.path)


def _broken(why: str) -> IntegrityError:
    return IntegrityError(f"the patched bytes are no bundle: {why}", "update again: the full download is taken then")
