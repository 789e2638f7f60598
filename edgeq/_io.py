"""Files: hashes, canonical JSON, atomic writes, locks. Every write ends in fsync and rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeq.errors import EnvironmentProblem, UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return sorted, indented JSON with a final newline: equal values give equal bytes. NaN is refused."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fsync_dir(path: Path) -> None:
    """Make the renames inside a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(root: Path) -> None:
    """Make every file below `root`, and the folders themselves, durable."""
    for folder, _, files in os.walk(root):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(folder))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on writing into an `EnvironmentProblem` that names the place.

    Raises:
        EnvironmentProblem: the disk is full, read-only, or not writable by this user.
    """
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            what = f"no space left on the disk that holds {path}"
            raise EnvironmentProblem(what, "free some space, or choose another folder, and run again") from err
        if err.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            what = f"may not write to {err.filename or path}: {err.strerror}"
            raise EnvironmentProblem(what, "choose a folder that you may write to") from err
        if err.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
            what = f"expected a folder at {path}, found a file in the way: {err.filename or path}"
            raise UsageError(what, "choose another folder") from err
        if err.errno == errno.EIO:
            raise EnvironmentProblem(f"the disk failed under {path}: {err.strerror}", "check the disk") from err
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or the old one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


@contextlib.contextmanager
def staged_dir(target: Path) -> Iterator[Path]:
    """Yield an empty sibling of `target`; when the block ends well it becomes `target`, whole.

    An existing `target` is moved aside first and restored if the switch fails. Two renames are needed, since a
    folder cannot replace one that is not empty; `recover_dir` mends a kill between them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_dir(target)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    staging.chmod(0o755)
    old = _aside(target)
    try:
        yield staging
        fsync_tree(staging)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(staging, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def recover_dir(target: Path) -> None:
    """Finish what a killed `staged_dir(target)` left: restore the old folder, drop half-written ones."""
    old = _aside(target)
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)
    for stray in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(stray, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


@contextlib.contextmanager
def lock_dir(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Hold a folder's lock, so that two runs do not write to it at once.

    Raises:
        EnvironmentProblem: another process still holds it after `wait_s` seconds.
    """
    from filelock import FileLock, Timeout

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".edgeq.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as err:
        what = f"another edgeq is writing to {folder}"
        raise EnvironmentProblem(what, "wait until it has finished, or choose another folder") from err
    try:
        yield
    finally:
        # the unlink happens under the lock; a waiter that opened the old file retries on the new one
        path.unlink(missing_ok=True)
        lock.release()
        for place in made:  # a run that wrote nothing leaves no empty folder
            with contextlib.suppress(OSError):
                place.rmdir()
