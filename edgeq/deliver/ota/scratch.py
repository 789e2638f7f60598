"""A folder among the system's temporary files, which does not outlive a killed run for long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edgeq._io import disk_errors

_PREFIX = "edgeq-ota-"
_GRACE_S = 60.0  # between making its folder and locking it a run may be held up


@contextlib.contextmanager
def scratch_dir() -> Iterator[Path]:
    """Yield an empty folder; those that killed runs left are removed.

    A run holds a lock on its folder, which the system lets go of when the run ends, however it ends.

    Raises:
        EnvironmentProblem: the disk that holds temporary files refuses a write.
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
