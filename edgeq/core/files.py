"""Files: hashes, canonical JSON, atomic writes, locks. Every write ends in fsync and rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.core.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from filelock import FileLock


_FULL = {errno.ENOSPC, errno.EDQUOT}

# of Linux's fcntl.h and fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_CHUNK_BYTES = 1 << 20

_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


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
    """Turn the operating system's errors on writing into ones that name the place.

    Raises:
        EnvironmentProblem, UsageError: the disk is full, read-only or not writable; the path is taken, or too long.
    """
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            what = f"no space left on the disk that holds {path}"
            raise EnvironmentProblem(what, "free some space, or choose another folder, and run again") from err
        if err.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            what = f"cannot write to {err.filename or path}: {err.strerror}"
            raise EnvironmentProblem(what, "choose a folder with write permission") from err
        if err.errno == errno.EISDIR:
            what = f"expected a file at {err.filename2 or err.filename or path}, found a folder"
            raise UsageError(what, "give a file name, in that folder or another one") from err
        if err.errno in {errno.ENOTDIR, errno.EEXIST, errno.ELOOP}:
            what = f"expected a folder at {path}, found a file: {err.filename or path}"
            raise UsageError(what, "choose another folder") from err
        if err.errno == errno.ENAMETOOLONG:
            raise UsageError(f"a path is too long for this system: {path}", "give a shorter path") from err
        if err.errno in {errno.EIO, errno.EFBIG}:
            what = f"a write under {path} failed: {err.strerror}"
            raise EnvironmentProblem(what, "check the disk, or choose another folder") from err
        raise


def refuse_links(path: Path, *, below: Path) -> None:
    """Refuse a path that leads through a link, or is one: a write or removal could happen outside of the folder.

    Each component is looked up in the open folder above it, so that no link on the way is followed. `below` itself,
    which a user named, may be reached through links; a component that does not exist yet ends the walk.

    Raises:
        UsageError: a component below `below` is a link.
    """
    place = below
    try:
        fd = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for part in path.relative_to(below).parts:
            place /= part
            try:
                mode = os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return
            if stat.S_ISLNK(mode):
                raise UsageError(f"{place} is a link, expected a folder or file", "remove the link, and run again")
            if not stat.S_ISDIR(mode):
                return  # whoever uses it gets the operating system's error
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, below: Path | None = None) -> None:
    """Write a file so that readers see either the whole new file or the old one.

    Args:
        path: the file; a link there is replaced, not followed.
        data: its content.
        below: the folder below which no folder on the way may be a link; None for any.

    Raises:
        UsageError: a folder on the way is a link.
    """
    if below is not None:
        refuse_links(path.parent, below=below)
    with _parents(path.parent):
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would shut others out of a shared bundle
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a flat folder. Unlike `shutil.copytree` it raises the operating system's own error.

    Raises:
        OSError: a file cannot be read, or the disk is full.
    """
    for path in sorted(source.iterdir()):
        # a new file: one that is there, perhaps a link, is not written through
        with path.open("rb") as file, (target / path.name).open("xb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK_BYTES)


@contextlib.contextmanager
def staged_dir(target: Path, *, below: Path | None = None) -> Iterator[Path]:
    """Yield an empty sibling of `target`; if the block ends without an error it becomes `target`.

    An existing `target` is exchanged with it, atomically where the file system supports that. After an error nothing
    has changed. Hold `lock_dir` of a parent folder: a second run on the same target would remove this one's staging
    folder as a leftover.

    Args:
        target: the folder.
        below: the folder below which none on the way to `target` may be a link; None for any.

    Raises:
        UsageError: a folder on the way is a link, at the start or just before the new content takes its place.
    """
    if below is not None:
        refuse_links(target, below=below)
    with _parents(target.parent):
        recover_dir(target)
        if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            staging.chmod(0o755)
            yield staging
            fsync_tree(staging)
            if below is not None:
                refuse_links(target, below=below)
            # put `staging` in place of `target`, whose former content is then in `staging`; on an error, in neither
            swap = _swap if target.exists() else os.rename
            swap(staging, target)
            try:
                fsync_dir(target.parent)
            except BaseException:
                # nobody was told that it is done: a run that ends with an error changes nothing
                _swap(staging, target) if swap is _swap else os.rename(target, staging)
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    if _exchange(staging, target):
        return
    # three renames, since a folder cannot replace one that is not empty; `recover_dir` mends a kill between them
    old = _aside(target)
    try:
        os.rename(target, old)
        os.rename(staging, target)
    except BaseException:
        if old.exists():
            _settle(target)
        raise
    with contextlib.suppress(OSError):  # then the next run drops it
        os.rename(old, staging)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux's renameat2); False where system or file system cannot.

    Raises:
        OSError: it can, and the disk refuses.
    """
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # no such system call
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def recover_dir(target: Path) -> None:
    """Clean up after a killed `staged_dir(target)`: restore the old folder, remove incomplete ones."""
    if not target.parent.is_dir():
        return
    if _aside(target).is_symlink():
        _aside(target).unlink()  # edgeq makes none
    elif _aside(target).exists():
        _settle(target)
    # as mkdtemp, _settle and remove_dir name them; `removed` is what edgeq 0.1 wrote
    stray = re.compile(rf"\.{re.escape(target.name)}\.(?:[a-z0-9_]{{8}}|removed)\.tmp")
    for path in target.parent.iterdir():
        if stray.fullmatch(path.name):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def _settle(target: Path) -> None:
    """Restore the folder that was moved aside, or drop it when the new one is in place."""
    old = _aside(target)
    if not target.exists():
        os.rename(old, target)
        return
    # renamed before it is taken apart: a kill while deleting must not leave a part that looks whole
    doomed = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    os.rename(old, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_dir(folder: Path, *, below: Path) -> None:
    """Remove a folder, and the folders above it that are then empty, up to but not including `below`.

    Raises:
        UsageError: it is a link, or the way to it from `below` leads through one.
    """
    refuse_links(folder, below=below)
    recover_dir(folder)
    if not folder.exists():
        return
    refuse_links(folder, below=below)
    # renamed first, so that a kill does not leave half of it under its name; `recover_dir` knows the new one
    doomed = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    os.rename(folder, doomed)
    shutil.rmtree(doomed)
    for place in folder.parents:
        if place == below or any(place.iterdir()):
            return
        place.rmdir()


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder with those above it; the ones made here and left empty go again."""
    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in made:
            fsync_dir(place.parent)
        yield
    finally:
        _remove_empty(made)


def _missing(folder: Path) -> list[Path]:
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for place in folders:
        with contextlib.suppress(OSError):
            place.rmdir()


@contextlib.contextmanager
def lock_dir(folder: Path, *, wait_s: float, name: str = ".edgeq.lock") -> Iterator[None]:
    """Hold a folder's lock, so that two runs do not write to it at once.

    Args:
        folder: the folder to lock.
        wait_s: how long to wait for another process.
        name: of the lock file; locks of other names do not exclude each other.

    Raises:
        UsageError: the lock file is a link, or a file of that name holds something.
        EnvironmentProblem: another process still holds it after `wait_s` seconds, or the folder cannot be created.
    """
    from filelock import FileLock

    path = folder / name
    if path.is_symlink():  # which would be opened, and emptied, where it points to
        raise UsageError(f"{path} is a link, expected a lock file", "remove the link, and run again")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another run may just remove its own
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size:  # lock files are empty: this one is somebody's, to be kept
            raise UsageError(f"{path} is not a lock file of edgeq: it is not empty", "rename it, and run again")
    lock = FileLock(path)
    made = _missing(folder)
    try:
        _acquire(lock, folder, time.monotonic() + wait_s)
        try:
            yield
        finally:
            # the unlink happens under the lock; a waiter that opened the old file retries on the new one
            with contextlib.suppress(OSError):  # one that stays is taken again by the next run
                path.unlink(missing_ok=True)
            lock.release()
    finally:
        _remove_empty(made)  # a run that wrote nothing leaves no empty folder


_PATIENCE_S = 1.0  # a wait that is longer is said

on_wait: list[Callable[[str], None]] = []  # what shows that a run waits: the command line's progress


def _acquire(lock: FileLock, folder: Path, deadline: float) -> None:
    from filelock import Timeout

    is_said = False
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            left_s = max(0.0, deadline - time.monotonic())
            lock.acquire(timeout=left_s if is_said else min(left_s, _PATIENCE_S))
        except Timeout as err:
            if not is_said and time.monotonic() < deadline:
                is_said = True
                for tell in on_wait:
                    tell(f"waiting for another edgeq, which writes to {folder}")
                continue
            what = f"another edgeq is writing to {folder}"
            raise EnvironmentProblem(what, "wait until it has finished, or choose another folder") from err
        except (FileNotFoundError, FileExistsError) as err:
            if Path(err.filename).is_file():
                raise
            # a run that just ended took away the folder that it had made, also while `mkdir` looked at it; try again
            if time.monotonic() > deadline:  # or it is in a place that takes none, such as /proc
                what = f"cannot create the folder {folder}: {err.strerror}"
                raise EnvironmentProblem(what, "choose another folder") from err
        else:
            return


# --- Where edgeq keeps what it may make again: the user's cache folder.


def cache_folder() -> Path:
    """Return the user's cache folder; EDGEQ_CACHE_DIR overrides it."""
    from platformdirs import user_cache_path

    named = os.environ.get("EDGEQ_CACHE_DIR")
    return Path(named) if named else user_cache_path("edgeq")
