"""Reading a bundle: every size and hash is checked, and links out of the folder are refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgeq.core.errors import EnvironmentProblem, IntegrityError, UsageError
from edgeq.core.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    UNLISTED_NAMES,
    Bundle,
    FileEntry,
    Manifest,
    manifest_digest,
    parse_manifest,
)

_CHUNK_BYTES = 1 << 20

_AGAIN = "get the bundle again, or package the model again"


def read_bundle(folder: Path, *, digest: str | None = None) -> Bundle:
    """Verify the bundle in a folder, and return it.

    Args:
        folder: the bundle's folder.
        digest: the expected digest; None to accept any. Without it, a rewritten bundle also passes.

    Raises:
        UsageError: the folder is not a bundle, or `digest` is not valid.
        IntegrityError: a file is missing, changed, a link or not listed, the manifest is broken, or the digest differs.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read.
    """
    data, manifest = read_manifest(folder)
    _check_names(folder, manifest)
    for entry in manifest.files:
        _check_file(folder, entry)
    bundle = Bundle(folder=folder, manifest=manifest, digest=manifest_digest(data, manifest))
    if digest is not None:
        expected = digest.strip().lower()
        if re.fullmatch("[0-9a-f]{64}", expected) is None:
            what = f"--digest: expected 64 hexadecimal digits, got {expected[:80]!r}"
            raise UsageError(what, "copy the whole digest from `edgeq package --json`, or `edgeq verify --json`")
        if bundle.digest != expected:
            what = f"{bundle.folder} has the digest {bundle.digest}, expected {expected}"
            raise IntegrityError(what, "it is another bundle, or was changed: " + _AGAIN)
    return bundle


def read_manifest(folder: Path) -> tuple[bytes, Manifest]:
    """Return a bundle's manifest, as bytes and parsed; the files that it lists are not checked.

    Raises:
        UsageError: the folder is not a bundle.
        IntegrityError: the manifest is broken, or a link.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        what = f"no bundle at {folder}: expected a folder with {MANIFEST_NAME}"
        raise UsageError(what, "give the folder that `edgeq package` wrote, OUT/<model>/<target>")
    with open_regular(path) as file, _reading(path):
        data = file.read(MAX_MANIFEST_BYTES + 1)
    return data, parse_manifest(data)


def open_regular(path: Path) -> BinaryIO:
    """Open a file of a bundle for reading; links, folders and devices are refused.

    Raises:
        IntegrityError: it is missing, or not a regular file.
        EnvironmentProblem: it cannot be read.
    """
    with _reading(path):
        # without O_NONBLOCK, opening a pipe would wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise IntegrityError(f"{path} is not a regular file", _AGAIN)


def _check_names(folder: Path, manifest: Manifest) -> None:
    known = {MANIFEST_NAME, *UNLISTED_NAMES, *(entry.path for entry in manifest.files)}
    with _reading(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in known:
                raise IntegrityError(f"{entry.path} is not listed in the bundle's manifest", "remove it, or " + _AGAIN)
            if not entry.is_file(follow_symlinks=False):
                raise IntegrityError(f"{entry.path} is not a regular file", _AGAIN)


def _check_file(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    digest, rest = hashlib.sha256(), entry.size_bytes
    with open_regular(path) as file, _reading(path):
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes != entry.size_bytes:
            raise IntegrityError(f"{path} has {size_bytes} bytes, but the manifest states {entry.size_bytes}", _AGAIN)
        while rest > 0 and (chunk := file.read(min(_CHUNK_BYTES, rest))):  # a file that grows meanwhile has an end too
            digest.update(chunk)
            rest -= len(chunk)
    if rest or digest.hexdigest() != entry.sha256:
        raise IntegrityError(f"{path} is not the file that the manifest lists: its SHA-256 differs", _AGAIN)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as err:
        raise IntegrityError(f"{path} is missing, but the manifest lists it", _AGAIN) from err
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise IntegrityError(f"{path} is a link, expected a regular file", _AGAIN) from err
        raise EnvironmentProblem(f"cannot read {path}: {err.strerror}", "check its permissions and the disk") from err
