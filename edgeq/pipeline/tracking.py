"""The files that a user's code accessed: they decide whether a cached result is still valid.

Seen are the files that Python opens (and those that safetensors, torch and SQLite open in native code), the folders
that are listed, and what the user's code asks of a path (os.stat, os.path.exists, os.readlink, os.access); not what
other native libraries open by themselves: where one of those that do is loaded, nothing is kept.
Nothing is kept either where the user's code, or a library that it imports, uses ONNX Runtime.
Not seen are environment variables, and what child processes do: such code needs `--no-cache`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import site
import stat
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import source_from_cache
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from edgeq.core.files import sha256_bytes, sha256_file
from edgeq.core.system import package_folder, replaced

_EVENTS = frozenset({"import", "open", "os.listdir", "os.scandir", "sqlite3.connect"})

# they raise no audit event
_ASKING = ("stat", "lstat", "readlink", "access")

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/")

# they list the folders of sys.path, among them the current one, for modules and packages only
_IMPORTERS = ("<frozen importlib._bootstrap_external>", str(importlib.metadata.__file__))

_ABSENT = ""

# they open what they are given in native code, unheard
_UNHEARD = frozenset(
    {"av", "cv2", "decord", "h5py", "lmdb", "netCDF4", "pyarrow", "rasterio", "soundfile", "torchcodec"}
)

# so does this one, which edgeq itself uses: what counts is who imports it
_SHARED_UNHEARD = "onnxruntime"

_P = ParamSpec("_P")

_R = TypeVar("_R")


@dataclass(slots=True)
class Recorder:
    """Collects what was looked at while it is on.

    Attributes:
        started_ns: when it was first switched on, as `time.time_ns` tells.
        opened, written: files.
        listed: folders whose names were read.
        searched: folders that were searched for modules.
        asked: paths that were asked about.
        unheard: whether the user's code imported a library that opens files unheard.
    """

    on: bool = False
    started_ns: int = 0
    opened: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    searched: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    unheard: bool = False

    def reset(self) -> None:
        """Forget everything."""
        for seen in (self.opened, self.written, self.listed, self.searched, self.asked):
            seen.clear()
        self.unheard = False
        self.started_ns = time.time_ns()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Be on in the block."""
        before, self.on = self.on, True
        try:
            yield
        finally:
            self.on = before

    def heard(self, function: Callable[_P, _R] | None) -> Callable[_P, _R] | None:
        """Return a function of the user's with the recorder on while it runs: it may open files only then."""
        if function is None:
            return None
        users = function

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self.listening():
                return users(*args, **kwargs)

        return call

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit hook: called for every event of the interpreter."""
        if not self.on or event not in _EVENTS or not args:
            return
        path = args[0]
        if event == "import":
            self.unheard |= str(path).partition(".")[0] == _SHARED_UNHEARD and _by_user(sys._getframe(1))
            return
        if isinstance(path, bytes | os.PathLike):  # sqlite3 passes what it was given
            path = os.fsdecode(path)
        if not isinstance(path, str) and not (path is None and event != "open"):
            return
        where = os.path.abspath(path or ".")
        if event == "sqlite3.connect":
            # what was committed may still lie in the log
            self.opened |= {where, f"{where}-wal", f"{where}-journal"}
        elif event == "open":
            (self.written if _writes(args) else self.opened).add(where)
        else:
            by_import = sys._getframe(1).f_code.co_filename in _IMPORTERS
            (self.searched if by_import else self.listed).add(where)

    def ask(self, path: Any) -> None:
        """Note that a path was asked about, where code of the user's did so, itself or by way of a library."""
        if not self.on or not isinstance(path, str | bytes | os.PathLike):
            return
        if _by_user(sys._getframe(2)):
            self.asked.add(os.path.abspath(os.fsdecode(path)))

    def dependencies(self) -> dict[str, str] | None:
        """Return the present state of all that was looked at and is the user's own, by kind and name.

        Returns:
            None where it is not known: a file changed since recording began, or a loaded library opens files
            unrecorded.
        """
        if not _UNHEARD.isdisjoint(sys.modules):
            return None
        files = _users(self.opened) | user_modules()
        if self.unheard or any(map(_names_unheard, files)):
            return None
        if any(_changed_ns(path) >= self.started_ns for path in files - self.written):
            return None
        names = [
            *(f"file:{path}" for path in files),
            *(f"names:{path}" for path in self.listed if not _is_library(path)),
            *(f"modules:{path}" for path in self.searched if not _is_library(path)),
            *(f"stat:{path}" for path in self.asked if not _is_library(path)),
        ]
        return {name: current_state(name) for name in sorted(names)}


def _by_user(frame: FrameType | None) -> bool:
    """Whether code of the user's runs in a frame, or called it by way of a library."""
    while frame is not None and not frame.f_code.co_filename.startswith(_OWN):
        if os.path.isabs(frame.f_code.co_filename) and not _is_library(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def _names_unheard(path: str) -> bool:
    """Whether a source names ONNX Runtime; where edgeq has imported it before, no event tells."""
    if not path.endswith(".py"):
        return False
    try:
        return _SHARED_UNHEARD.encode() in Path(path).read_bytes()
    except OSError:
        return False


def user_modules() -> set[str]:
    """Return the source files of all modules that are loaded and the user's own."""
    return _users({str(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))})


def _users(paths: set[str]) -> set[str]:
    # what torch makes up for its namespaces is no path
    return {path for path in map(_source, paths) if os.path.isabs(path) and not _is_library(path)}


def _writes(args: tuple[Any, ...]) -> bool:
    mode = args[1] if len(args) > 1 else None
    flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
    return bool((isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR))


def _source(path: str) -> str:
    """Return the source of a compiled module: the bytes of the .pyc hold a time."""
    if path.endswith(".pyc"):
        with contextlib.suppress(ValueError, NotImplementedError):
            return source_from_cache(path)
    return path


def _changed_ns(path: str) -> int:
    """Return when a file's content or name last changed; unlike mtime, nobody can set it back."""
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return 0


def _library_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots = {os.path.abspath(root) for root in (*libraries, *site.getsitepackages(), site.getusersitepackages())}
    roots.add(os.path.join(sys.base_prefix, sys.platlibdir, "python{}{}.zip".format(*sys.version_info)))
    return (*(root + os.sep for root in sorted(roots)), *_SYSTEM, str(package_folder()) + os.sep)


def _is_library(path: str) -> bool:
    # the roots are known beforehand: asked from within a look at the environment, it must not look there itself
    return f"{path}{os.sep}".startswith(_ROOTS)


def current_state(name: str) -> str:
    """Return what a dependency is now, as a hash; "" where there is none.

    Args:
        name: `file:PATH`, `names:FOLDER`, `modules:FOLDER` or `stat:PATH`.
    """
    kind, _, rest = name.partition(":")
    try:
        return _STATES[kind](rest)
    except (OSError, ValueError):
        return _ABSENT


def _file_state(path: str) -> str:
    return sha256_file(Path(path)) if os.path.isfile(path) else _ABSENT


def _names_state(path: str) -> str:
    return sha256_bytes("\0".join(sorted(os.listdir(path))).encode(errors="surrogateescape"))


def _modules_state(path: str) -> str:
    """Hash the names that an import can find, since others come and go beside a user's code."""
    files = [name for name in os.listdir(path) if name.endswith((".py", ".so"))]
    packages = [name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name, "__init__.py"))]
    return sha256_bytes("\0".join(sorted({*files, *packages})).encode(errors="surrogateescape"))


def _stat_state(path: str) -> str:
    """Hash what can be asked of a path; of a folder without its times, which change with what is written to it."""
    links: list[str] = []
    while os.path.islink(path) and len(links) < _MOST_LINKS:
        links.append(os.readlink(path))
        path = os.path.join(os.path.dirname(path), links[-1])
    found = os.stat(path) if os.path.exists(path) else None
    facts = [found.st_mode, found.st_uid, found.st_gid] if found else []
    if found and not stat.S_ISDIR(found.st_mode):
        facts += [found.st_size, found.st_mtime_ns]
    return sha256_bytes(repr((links, facts)).encode(errors="surrogateescape"))


_STATES: dict[str, Callable[[str], str]] = {
    "file": _file_state,
    "names": _names_state,
    "modules": _modules_state,
    "stat": _stat_state,
}

_ROOTS = _library_roots()

_OWN = str(package_folder()) + os.sep

_MOST_LINKS = 40  # as the kernel follows

_RECORDER = Recorder()

_hooked = False


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record in the block. Python cannot take an audit hook back, so there is one for the process."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_RECORDER.hear)
        _hooked = True
    _RECORDER.reset()
    with _native_openers(), contextlib.ExitStack() as asking:
        for name in _ASKING:
            asking.enter_context(replaced(os, name, _asking(getattr(os, name))))
        importlib.invalidate_caches()  # or a folder that was listed before would not be listed again
        with _RECORDER.listening():
            yield _RECORDER


@contextlib.contextmanager
def _native_openers() -> Iterator[None]:
    """Let the loaders that open files in C++ or Rust raise the audit event that Python's own `open` raises."""
    import safetensors
    import safetensors.numpy
    import safetensors.torch
    import torch

    class Reader(torch._C.PyTorchFileReader):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self, source: Any) -> None:
            _audit_open(source)
            super().__init__(source)

    safe_open = _telling(safetensors.safe_open, 0)
    with (
        replaced(safetensors, "safe_open", safe_open),
        replaced(safetensors.numpy, "safe_open", safe_open),
        replaced(safetensors.torch, "safe_open", safe_open),
        replaced(torch._C, "import_ir_module", _telling(torch._C.import_ir_module, 1)),
        replaced(torch._C, "PyTorchFileReader", Reader),
        replaced(torch, "from_file", _telling(torch.from_file, 0)),
        replaced(torch.UntypedStorage, "from_file", _telling(torch.UntypedStorage.from_file, 0)),
        _telling_images(torch.ops.image),
    ):
        yield


class _Heard:
    """Stands for an operator of torch.ops that takes a path, and tells; it may not be loaded yet.

    It has the operator's attributes, since torch.export asks every operator that is bound for its overloads.
    """

    def __init__(self, namespace: Any, name: str) -> None:
        self._namespace, self._name = namespace, name
        self.operator = vars(namespace).get(name)

    def __call__(self, path: str) -> Any:
        _audit_open(path)
        return self._bound()(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound(), name)

    def _bound(self) -> Any:
        if self.operator is None:
            self.operator = type(self._namespace).__getattr__(self._namespace, self._name)
            setattr(self._namespace, self._name, self)  # which keeps what it binds, the operator itself
        return self.operator


@contextlib.contextmanager
def _telling_images(namespace: Any) -> Iterator[None]:
    """Let torchvision's `read_file` tell, which is under its `read_image` and `decode_image`."""
    heard = _Heard(namespace, "read_file")
    namespace.read_file = heard
    try:
        yield
    finally:
        del namespace.read_file
        if heard.operator is not None:
            namespace.read_file = heard.operator


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(path: Any, *args: Any, **options: Any) -> Any:
        _RECORDER.ask(path)
        return function(path, *args, **options)

    return call


def _telling(opener: Callable[..., Any], position: int) -> Callable[..., Any]:
    @functools.wraps(opener)
    def call(*args: Any, **options: Any) -> Any:
        _audit_open(args[position] if len(args) > position else options.get("filename"))
        return opener(*args, **options)

    return call


def _audit_open(source: Any) -> None:
    if isinstance(source, str | bytes | os.PathLike):
        sys.audit("open", os.fspath(source), "r", os.O_RDONLY)
