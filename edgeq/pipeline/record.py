"""Which files a user's code opened: they decide whether a cached result still holds."""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

from edgeq._io import sha256_bytes, sha256_file

_EVENTS = frozenset({"open", "os.listdir", "os.scandir"})
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/")


@dataclass(slots=True)
class Recorder:
    """Collects the paths that were opened, or listed, while it is on."""

    on: bool = False
    opened: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit hook: called for every event of the interpreter."""
        if not self.on or event not in _EVENTS or not args:
            return
        path = args[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return
        if event != "open":
            self.listed.add(os.path.abspath(path or "."))
        elif not _writes(args):
            self.opened.add(os.path.abspath(path))

    def dependencies(self) -> dict[str, str]:
        """Return the hash of each file, and of each folder's names, that is the user's own."""
        own = {_source(path) for path in self.opened | self.listed if not _is_library(_source(path))}
        return {path: digest for path in sorted(own) if (digest := current_digest(path))}


def _writes(args: tuple[Any, ...]) -> bool:
    mode = args[1] if len(args) > 1 else None
    flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
    return bool((isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR))


def _source(path: str) -> str:
    """Return the source of a compiled module: the bytes of the .pyc hold a time."""
    if path.endswith(".pyc"):
        with contextlib.suppress(ValueError):
            return source_from_cache(path)
    return path


def _is_library(path: str) -> bool:
    roots = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values(), sys.base_prefix]
    inside = any(path.startswith(os.path.abspath(root) + os.sep) for root in roots if root)
    return inside or path.startswith((*_SYSTEM, str(package_folder()) + os.sep, tempfile.gettempdir() + "/edgeq-"))


def package_folder() -> Path:
    """Return the folder of edgeq itself."""
    return Path(__file__).resolve().parent.parent


def _file_digest(path: str) -> str | None:
    try:
        return sha256_file(Path(path)) if os.path.isfile(path) else None
    except OSError:
        return None


def folder_digest(path: str) -> str | None:
    """Return the hash of a folder's names; None where it is no folder."""
    try:
        return sha256_bytes("\0".join(sorted(os.listdir(path))).encode()) if os.path.isdir(path) else None
    except OSError:
        return None


def current_digest(path: str) -> str | None:
    """Return what a dependency's hash is now; None where it is gone."""
    return _file_digest(path) or folder_digest(path)


_RECORDER = Recorder()
_hooked = False


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record what is opened in the block. Python cannot take an audit hook back, so there is one for the process."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_RECORDER.hear)
        _hooked = True
    _RECORDER.opened.clear()
    _RECORDER.listed.clear()
    _RECORDER.on = True
    try:
        yield _RECORDER
    finally:
        _RECORDER.on = False
