"""The files that a user's code accessed: they decide whether a cached result is still valid.

edgeq records the files that Python opens (and those that safetensors, torch and SQLite open in native code), folders
that are listed, questions about a path (os.stat, os.path.exists, os.readlink, os.access), and, where the user's code
reads them, environment variables, the command line and the name of the machine. A result is kept in the cache only if
nothing else can have been read:

- Every native library in the process opens files only through Python, or through the functions that this module
  replaces (`_TRACKED_PACKAGES`). The user's own code does not name a library that opens files itself
  (`_NATIVE_READERS`).
- The user's code loads no native library of its own, starts no process and reads no standard input.

The network and the time are not tracked: code that depends on them needs `--no-cache`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import linecache
import multiprocessing.process
import os
import pathlib
import platform
import re
import stat
import sys
import sysconfig
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from importlib.util import source_from_cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal, ParamSpec, TypeVar

from edgeq.core.files import sha256_bytes, sha256_file
from edgeq.core.system import package_folder, replaced
from edgeq.pipeline import installed

_FILE_EVENTS = frozenset({"open", "os.listdir", "os.scandir", "sqlite3.connect"})

# the first argument of some is the command
_PROCESS_EVENTS = frozenset({"os.system", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"})

_NAME_EVENT = "socket.gethostname"  # also under socket.getfqdn

_EVENTS = _FILE_EVENTS | _PROCESS_EVENTS | {"import", "ctypes.dlopen", _NAME_EVENT}

# they only report facts about this machine; libraries run them
_HARMLESS_COMMANDS = frozenset(
    {"ldconfig", "uname", "lscpu", "nvidia-smi", "gcc", "g++", "cc", "c++", "ld", "ldd", "objdump", "fc-list"}
)

# they raise no audit event
_ASKING = ("stat", "lstat", "fstat", "readlink", "access", "getxattr", "listxattr")

# what they answer may change with every other process
_OF_THE_DISK = ("statvfs", "fstatvfs")

_SYSTEM = ("/proc/", "/sys/", "/dev/")

_HOST_FILE = "/proc/sys/kernel/hostname"

# of a process, this one too: what `sys.argv` and `os.environ` are made of
_PROCESS_FILE = re.compile(r"/proc/(?:self|thread-self|\d+)/(?:task/\d+/)?(?:cmdline|environ)")

_MEMORY_DISK = "/dev/shm/"  # noqa: S108  # data is kept there too

# they list the folders of sys.path, among them the current one, for modules and packages only
_IMPORTERS = ("<frozen importlib._bootstrap_external>", str(importlib.metadata.__file__))

_ABSENT = ""

# functions of the standard library that use less than all of `os.stat`: two checkouts differ in times and owners
_QUESTIONS = {
    **dict.fromkeys(
        ("exists", "lexists", "isfile", "isdir", "islink", "is_file", "is_dir", "is_symlink", "resolve"), "kind"
    ),
    **dict.fromkeys(("updatecache", "checkcache"), "kind"),  # of linecache, which then reads the source
    **dict.fromkeys(("realpath", "_joinrealpath"), "real"),
}

_PATHLIB = pathlib.Path.stat.__code__.co_filename

_PATH_MODULES = {
    function.__code__.co_filename
    for function in (os.path.exists, os.path.islink, linecache.updatecache, pathlib.Path.stat)
}

# packages whose native code opens no file by a name that it is given, or only where a function replaced here is called
_TRACKED_PACKAGES = frozenset(
    {
        *("torch", "torchvision", "torchao", "nvidia", "triton", "cuda", "numpy", "scipy", "pandas", "sklearn"),
        *("PIL", "pillow", "matplotlib", "contourpy", "kiwisolver", "safetensors", "yaml", "_ruamel_yaml", "regex"),
        *("pydantic_core", "ml_dtypes", "charset_normalizer", "cryptography", "_cffi_backend", "backports", "rpds"),
        *("google", "_upb", "bsdiff4", "gmpy2", "psutil", "numba", "llvmlite", "joblib", "wrapt", "hypothesis"),
        *("mypy", "mypyc", "librt", "ast_serialize", "grimp", "coverage", "markupsafe"),
        *("scikit_learn", "pywt", "skimage", "jaxlib", "ujson", "orjson", "simplejson", "msgpack", "frozenlist"),
        *("multidict", "yarl", "aiohttp", "propcache", "xxhash", "zstandard", "Levenshtein", "rapidfuzz"),
        *("shapely", "wcwidth", "tornado", "zmq", "pyzmq", "debugpy", "pycocotools"),
    }
)

# these open files by themselves; edgeq loads them, or libraries that ask Python of each file first: what counts is
# whether the user's own code names them
_NATIVE_READERS = frozenset(
    {
        *("onnxruntime", "onnx", "openvino", "executorch", "coremltools", "tokenizers", "sentencepiece", "tiktoken"),
        *("pytorch_tokenizers", "hf_xet", "ai_edge_litert", "ethosu", "tosa_serializer", "tosa_reference_model"),
    }
)

# names in both groups that open a file by its path in native code
_NATIVE_READER_NAMES = re.compile(
    rb"\b(?:onnxruntime|openvino|ai_edge_litert|executorch|coremltools|tokenizers|sentencepiece|tiktoken|infer_shapes_path|check_model"
    rb"|_load_for_lite_interpreter|aoti_load_package|AOTIModelPackageLoader|VideoReader|read_video"
    rb"|aten\.from_file|debugprims|gdbm|dbm)\b|(?i:\battach\s+(?:database\s+)?['\"?:{])"
)

# modules of the standard library that do
_NATIVE_READER_PARTS = frozenset({"_gdbm", "_dbm"})

_NATIVE_READER_MODULES = frozenset({"onnxruntime", "openvino", "ai_edge_litert", "executorch", "coremltools"})

# they differ from run to run and affect nothing; torch sets the last ones itself
_VOLATILE = frozenset(
    {
        *("_", "SHLVL", "OLDPWD", "TERM", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST"),
        *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    }
)

_P = ParamSpec("_P")

_R = TypeVar("_R")


@dataclass(slots=True)
class Recorder:
    """Collects what code reads: all code while `on` is set, and only the user's code in the rest of the recording.

    Attributes:
        active: whether a recording is running.
        started_ns: start of the recording, in the unit of `time.time_ns`.
        started_in: the current folder then.
        opened, written: files.
        listed: folders whose names were read.
        searched: folders that were searched for modules.
        asked: paths that were asked about, each with what was asked: its kind, whether it is a link, or all.
        variables: environment variables, and their names, as dependencies with their states when they were first read.
        replaced: environment variables that the user's code set before it read them.
        knows_host: whether the name of the machine was read.
        knows_arguments: whether the command line was read.
        earlier: what the recordings before this one saw in this process, with the states of variables.
        lasting: by the file of a module, what it read when it was imported; a module is imported once.
        untracked: why something else may have been read too; "" if nothing was.
    """

    active: bool = False
    on: bool = False
    started_ns: int = 0
    started_in: str = ""
    opened: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    searched: set[str] = field(default_factory=set)
    asked: set[tuple[str, str]] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    knows_host: bool = False
    knows_arguments: bool = False
    earlier: dict[str, str | None] = field(default_factory=dict)
    lasting: dict[str, dict[str, str | None]] = field(default_factory=dict)
    untracked: str = ""

    def reset(self) -> None:
        """Forget what was seen, but for what imported modules still hold."""
        self.earlier |= self._names()
        self.knows_host = self.knows_arguments = False
        for seen in (self.opened, self.written, self.listed, self.searched, self.asked, self.replaced):
            seen.clear()
        self.variables.clear()
        self.untracked = ""
        self.started_ns = time.time_ns()
        self.started_in = os.getcwd()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Be on in the block."""
        before, self.on = self.on, True
        try:
            yield
        finally:
            self.on = before

    def recorded(self, users: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return a function of the user's with the recorder on while it runs."""

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self.listening():
                return users(*args, **kwargs)

        return call

    def record(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's audit hook: called for every event of the interpreter."""
        if not self.active or event not in _EVENTS:
            return
        # looking for the user's frame costs more than all else here: an import of torch's compiler is 300 frames deep
        if event == "import" and str(args[0]).partition(".")[0] not in _NATIVE_READER_MODULES:
            return
        if event in _FILE_EVENTS and event != "sqlite3.connect" and _is_of_a_library(args[0]):
            return
        frame = sys._getframe(1)
        user = _users_frame(frame)
        if event in _FILE_EVENTS:
            if self.on or user is not None:
                self._record_file(event, args, frame, user)
        elif event == _NAME_EVENT:
            self.read_host(user)
        elif user is not None:
            # note an event of the user's code after which files may be read without a record
            if event == "import":
                name = str(args[0]).partition(".")[0]
                self._mark_untracked(f"the code imports {name}, which opens files in native code")
            elif event == "ctypes.dlopen":
                if not _is_library(_beyond(frame, _CTYPES)):
                    self._mark_untracked(f"the code loads the native library {args[0]}")
            else:
                command = os.path.basename(str(_named(args[0]) or "")) if args else ""
                if command not in _HARMLESS_COMMANDS:
                    self._mark_untracked(
                        f"the code starts a process ({command.partition(' ')[0] or 'a copy of itself'})"
                    )

    def _record_file(self, event: str, args: tuple[Any, ...], frame: FrameType, user: FrameType | None) -> None:
        path = _named(args[0])
        if path is None and (args[0] is not None or event == "open"):
            return
        if event == "sqlite3.connect":
            self._note_database(path or "", user)
            return
        where = os.path.abspath(path or ".")
        if where == _HOST_FILE:
            self.read_host(user)
        if _PROCESS_FILE.fullmatch(where) and user is not None:
            self._mark_untracked(f"the code reads {where}")
        if event == "open":
            mode = args[1] if len(args) > 1 else None
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            writes = bool((isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR))
            (self.written if writes else self.opened).add(where)
            if not writes:
                self._keep("file", where, user)
        elif frame.f_code.co_filename in _IMPORTERS:
            self.searched.add(where)
        else:
            self.listed.add(where)
            self._keep("names", where, user)

    def _note_database(self, name: str, user: FrameType | None) -> None:
        # file:w.db?mode=ro; a path without a colon is as well one
        path = urllib.parse.unquote(urllib.parse.urlsplit(name).path) if name.startswith("file:") else name
        where = os.path.abspath(path)
        for one in (where, f"{where}-wal", f"{where}-journal"):  # what was committed may still lie in the log
            self.opened.add(one)
            self._keep("file", one, user)

    def ask(self, path: Any, folder: int | str | None = None, kind: str = "") -> None:
        """Note that a path was asked about, where code of the user's did so, itself or by way of a library.

        Args:
            path: text, bytes, or an open file's descriptor.
            folder: the folder that a relative path starts from, or its descriptor.
            kind: what was asked; "" where the function that asks tells it.
        """
        if not self.active:
            return
        name = _named(path)
        if name is None:
            return
        where = os.path.abspath(name if folder is None else os.path.join(_named(folder) or "", name))
        if _is_library(where):
            return
        user = _users_frame(sys._getframe(2))
        if user is None:
            return
        frame = sys._getframe(2)
        if frame.f_code.co_name == "stat" and frame.f_code.co_filename == _PATHLIB and frame.f_back is not None:
            frame = frame.f_back  # `Path.exists` and its like
        if not kind:
            is_known = frame.f_code.co_filename in _PATH_MODULES
            kind = _QUESTIONS.get(frame.f_code.co_name, "stat") if is_known else "stat"
        self.asked.add((kind, where))
        self._keep(kind, where, user)

    def read_variable(self, key: Any) -> None:
        """Note that an environment variable was read, where code of the user's did so."""
        user = _users_frame(sys._getframe(2)) if self.active else None
        name = os.fsdecode(key) if isinstance(key, str | bytes) else ""
        if user is None or not name or name in _VOLATILE or name in self.replaced:
            return
        self.variables.setdefault(f"env:{name}", current_state(f"env:{name}"))
        self._keep("env", name, user)

    def list_variables(self) -> None:
        """Note that the names of all environment variables were read, where code of the user's did so."""
        user = _users_frame(sys._getframe(2)) if self.active else None
        if user is not None:
            self.variables.setdefault(_VARIABLE_NAMES, current_state(_VARIABLE_NAMES))
            self._keep("variables", "names", user)

    def read_host(self, user: FrameType | None) -> None:
        """Note that the name of the machine was read, where code of the user's did so."""
        if self.active and user is not None:
            self.knows_host = True
            self._keep("host", "name", user)

    def read_arguments(self) -> None:
        """Note that the command line was read, where code of the user's did so, and no library that it imports."""
        user = _users_frame(sys._getframe(2)) if self.active else None
        if user is None:
            return
        reader: FrameType | None = sys._getframe(2)
        while reader is not None and reader is not user:
            if reader.f_code.co_name == "<module>":
                return
            reader = reader.f_back
        self.knows_arguments = True
        self._keep("arguments", "all", user)

    def read_input(self) -> None:
        """Note that code of the user's read the standard input, which cannot be read again."""
        if self.active and _users_frame(sys._getframe(2)) is not None:
            self._mark_untracked("the code reads the standard input")

    def write_variable(self, key: Any) -> None:
        """Note that an environment variable was set or removed, where code of the user's did so."""
        if self.active and isinstance(key, str | bytes) and _users_frame(sys._getframe(2)) is not None:
            self.replaced.add(os.fsdecode(key))

    def start_process(self) -> None:
        """Note that `multiprocessing` starts a process, where code of the user's has it do so."""
        if self.active and _users_frame(sys._getframe(2)) is not None:
            self._mark_untracked("the code starts a process (multiprocessing)")

    def ask_the_disk(self) -> None:
        """Note that code of the user's asked how full a disk is."""
        if self.active and _users_frame(sys._getframe(2)) is not None:
            self._mark_untracked("the code asks how full the disk is (os.statvfs)")

    def _mark_untracked(self, why: str) -> None:
        self.untracked = self.untracked or why

    def _keep(self, kind: str, name: str, user: FrameType | None) -> None:
        """Note what a module reads while it is imported: the next run in this process does not import it again."""
        name = _source(name) if kind == "file" else name
        if kind not in ("env", "variables", "host", "arguments") and _is_library(name):
            return
        while user is not None and (owner := _owner(user.f_code.co_filename)) != "edgeq":
            if user.f_code.co_name == "<module>" and owner == "user":
                self.lasting.setdefault(user.f_code.co_filename, {}).setdefault(f"{kind}:{name}", None)
            user = user.f_back

    def dependencies(self) -> dict[str, str] | None:
        """Return the present state of all that was looked at and is the user's own, by kind and name.

        Returns:
            None if it is not known: a file was changed since the recording began, or something may have been read
            without a record; `untracked` says which.
        """
        files = _users(self.opened) | user_modules()
        native_reader = next(filter(None, map(_native_reader_named_in, sorted(files))), "")
        if native_reader:
            self._mark_untracked(native_reader)
        library = _unknown_library()
        if library:
            self._mark_untracked(f"the native library {library} may open files that edgeq cannot track")
        changed = next((path for path in sorted(files - self.written) if _changed_ns(path) >= self.started_ns), None)
        if changed is not None:
            self._mark_untracked(f"{changed} was changed during the run")
        found = {name: current_state(name) if state is None else state for name, state in self._names().items()}
        self._add_lasting(found)
        return None if self.untracked else dict(sorted(found.items()))

    def _names(self) -> dict[str, str | None]:
        """Return what was looked at and is the user's own, by kind and name, with the states of variables."""
        names = {
            *(f"file:{path}" for path in _users(self.opened) | user_modules()),
            *(f"names:{path}" for path in self.listed if not _is_library(path)),
            *(f"modules:{path}" for path in self.searched if not _is_library(path)),
            *(f"{kind}:{path}" for kind, path in self.asked if not _is_library(path)),
            *(("host:name",) if self.knows_host else ()),
            *(("arguments:all",) if self.knows_arguments else ()),
            *installed.looked_for(),
        }
        return dict.fromkeys(sorted(names)) | self.variables

    def looked_at(self) -> dict[str, str]:
        """Return the present state of all that was looked at in this process, whether more was or not."""
        names = self.earlier | self._names()
        return {name: current_state(name) if state is None else state for name, state in names.items()}

    def _add_lasting(self, found: dict[str, str]) -> None:
        """Add what loaded modules read when they were imported, in this run or an earlier one."""
        for file in user_modules() & set(self.lasting):
            for name, before in self.lasting[file].items():
                state = found.setdefault(name, current_state(name))
                self.lasting[file][name] = state if before is None else before
                if before not in (None, state):
                    self._mark_untracked(f"{name.partition(':')[2]} was changed after {file} had read it")


def _users_frame(frame: FrameType | None) -> FrameType | None:
    """Return the frame of the user's code that runs, itself or by way of a library; None where edgeq's own does."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    while frame is not None and (owner := _owner(frame.f_code.co_filename)) != "edgeq":
        if owner == "user":
            return frame
        frame = frame.f_back
    return None


@functools.lru_cache(maxsize=4096)
def _owner(code: str) -> Literal["edgeq", "user", "library"]:
    """Return whose code a file has. An import of torchvision asks it of two million frames."""
    if code.startswith(_OWN):
        return "edgeq"
    return "user" if os.path.isabs(code) and not _is_library(code) else "library"


def _beyond(frame: FrameType | None, folder: str) -> str:
    """Return the file of the first frame that is not of a folder."""
    while frame is not None and frame.f_code.co_filename.startswith((folder, __file__)):
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else ""


def _named(path: Any) -> str | None:
    """Return the path that a function of `os` was given, or that an open descriptor leads to; None for neither."""
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsdecode(path)
    if isinstance(path, int) and not isinstance(path, bool):
        with contextlib.suppress(OSError):
            return _readlink(f"/proc/self/fd/{path}")
    return None


def _native_reader_named_in(path: str) -> str:
    """Return a message if a source names a library that opens files itself; an earlier import raises no event."""
    if not path.endswith(".py"):
        return ""
    try:
        match = _NATIVE_READER_NAMES.search(Path(path).read_bytes())
    except OSError:
        return ""
    return f"{path} names {match[0].decode()}, which opens files in native code" if match else ""


def _unknown_library() -> str:
    """Return a native library in this process of which nobody knows how it opens files; "" for none."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        files = {line.split(maxsplit=5)[5] for line in lines if ".so" in line}
    except OSError:  # not Linux
        modules = list(sys.modules.values())
        files = {str(file) for module in modules if str(file := getattr(module, "__file__", "")).endswith(".so")}
    return next((path for path in sorted(files) if not _is_known_library(path.removesuffix(" (deleted)"))), "")


def _is_known_library(path: str) -> bool:
    site_folder = next((root for root in _SITES if path.startswith(root)), None)
    if site_folder is not None:
        package = re.split(r"[/.]", path.removeprefix(site_folder), maxsplit=1)[0]
        return package in _TRACKED_PACKAGES | _NATIVE_READERS or package.endswith("__mypyc")
    own = path.startswith(_INSTALLED) or _is_library(path)
    return own and os.path.basename(path).partition(".")[0] not in _NATIVE_READER_PARTS


def user_modules() -> set[str]:
    """Return the source files of all modules that are loaded and the user's own."""
    return _users({str(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))})


def _is_of_a_library(path: Any) -> bool:
    """Whether what a function of `os` was given is a path of a library, which no dependency names."""
    name = _named(path) if path is not None else "."
    where = os.path.abspath(name) if name is not None else ""
    is_watched = where == _HOST_FILE or _PROCESS_FILE.fullmatch(where) is not None
    return not is_watched and _is_library(_source(where))


def _users(paths: set[str]) -> set[str]:
    return {source for path in paths if (source := _users_source(path))}


@functools.lru_cache(maxsize=65536)  # every run asks it some five times of each of 6,000 loaded modules
def _users_source(path: str) -> str:
    """Return the source behind a path of the user's own; "" for a library's."""
    source = _source(path)
    # what torch makes up for its namespaces is no path
    return source if os.path.isabs(source) and not _is_library(source) else ""


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


def _site_folders() -> tuple[str, ...]:
    # mapped files are known by their real paths
    both = {path for one in installed.site_folders() for path in (os.path.abspath(one), os.path.realpath(one))}
    return tuple(sorted(path + os.sep for path in both))


def _library_roots() -> tuple[str, ...]:
    roots = {os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    roots.add(os.path.join(sys.base_prefix, sys.platlibdir, "python{}{}.zip".format(*sys.version_info)))
    roots.add(os.path.abspath(sysconfig.get_path("scripts")))  # what starts edgeq, or pytest
    return (*(root + os.sep for root in sorted(roots)), *_site_folders(), *_SYSTEM, str(package_folder()) + os.sep)


def _is_library(path: str) -> bool:
    # the roots are known beforehand: asked from within a look at the environment, it must not look there itself
    return f"{path}{os.sep}".startswith(_ROOTS) and not path.startswith(_MEMORY_DISK)


def current_state(name: str) -> str:
    """Return what a dependency is now, as a hash; "" if there is none.

    Args:
        name: `file:PATH`, `names:FOLDER`, `modules:FOLDER`, `kind:PATH`, `real:PATH`, `stat:PATH`, `shape:PATH`,
            `env:VARIABLE`, `variables:names`, `arguments:all`, `host:name`, `place:project`, or one of
            `edgeq.pipeline.installed`. A relative path is one of the current folder.
    """
    kind, _, rest = name.partition(":")
    try:
        return _STATES[kind](rest)
    except (OSError, ValueError, KeyError):  # a kind that an entry of a shared cache made up
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


def _kind_state(path: str) -> str:
    """Return whether there is a file, a folder or something else, and whether by a link."""
    kinds = [stat.S_IFMT(os.stat(path).st_mode) if os.path.exists(path) else 0, os.path.islink(path)]
    return _ABSENT if kinds == [0, False] else repr(kinds)


def _real_state(path: str) -> str:
    """Return where a link leads to; "" for what is no link."""
    return _readlink(path) if os.path.islink(path) else _ABSENT


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
    with contextlib.suppress(OSError, AttributeError):  # some file systems have none, and macOS's os no such function
        attributes = [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))] if found else []
        links += [repr(attributes)] if attributes else []
    return sha256_bytes(repr((links, facts)).encode(errors="surrogateescape"))


def _shape_state(path: str) -> str:
    """Return what a file's `os.stat` has in common on machines that hold copies of it: kind, size, time of change."""
    found = os.stat(path) if os.path.isfile(path) else None
    return _kind_state(path) if found is None else repr([_kind_state(path), found.st_size, found.st_mtime_ns])


def _host_state(_: str) -> str:
    return sha256_bytes(_uname().nodename.encode(errors="surrogateescape"))


def _arguments_state(_: str) -> str:
    return sha256_bytes(repr((list.copy(sys.argv), list.copy(sys.orig_argv))).encode(errors="surrogateescape"))


def _place_state(_: str) -> str:
    """Hash the project's folder, which is the current one, as `portable.bound` does."""
    return sha256_bytes(os.fsencode(os.getcwd()))


def _variable_state(name: str) -> str:
    value = os.environ.get(name)
    return _ABSENT if value is None else sha256_bytes(value.encode(errors="surrogateescape"))


def _variable_names_state(_: str) -> str:
    return sha256_bytes("\0".join(sorted({*os.environ} - _VOLATILE)).encode(errors="surrogateescape"))


_VARIABLE_NAMES = "variables:names"

_STATES: dict[str, Callable[[str], str]] = {
    "env": _variable_state,
    "variables": _variable_names_state,
    "file": _file_state,
    "names": _names_state,
    "modules": _modules_state,
    "kind": _kind_state,
    "real": _real_state,
    "stat": _stat_state,
    "shape": _shape_state,
    "host": _host_state,
    "arguments": _arguments_state,
    "place": _place_state,
    **installed.STATES,
}

_SITES = _site_folders()

_ROOTS = _library_roots()

_OWN = str(package_folder()) + os.sep

_CTYPES = os.path.dirname(ctypes.__file__) + os.sep

# where systems keep their libraries; what lies elsewhere may be the user's own
_INSTALLED = ("/usr/", "/lib/", "/lib64/", os.path.realpath(sys.base_prefix) + os.sep, sys.prefix + os.sep)

_readlink = os.readlink  # not the ones that are replaced
_uname = os.uname

_MOST_LINKS = 40  # as the kernel follows

_RECORDER = Recorder()

_hooked = False


def looked_at() -> dict[str, str]:
    """Return the states of what all recordings of this process saw, complete or not, also after an error."""
    return _RECORDER.looked_at()


def why_unknown() -> str:
    """Return why the last recording may be incomplete; "" if it is complete."""
    return _RECORDER.untracked


def started_in() -> str:
    """Return the current folder at the start of the last recording: the user's code may have left it."""
    return _RECORDER.started_in or os.getcwd()


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Record in the block. Python cannot take an audit hook back, so there is one for the process."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_RECORDER.record)
        _hooked = True
    _RECORDER.reset()
    with _native_openers(), _questions():
        importlib.invalidate_caches()  # or a folder that was listed before would not be listed again
        _RECORDER.active = True
        try:
            with _RECORDER.listening():
                yield _RECORDER
        finally:
            _RECORDER.active = False


@contextlib.contextmanager
def _questions() -> Iterator[None]:
    """Let functions that raise no audit event, or one without all of the path, tell what the user's code asks them."""
    environ = _Variables(os.environ._data)  # type: ignore[attr-defined]  # os, os.environb and posix share it
    start = multiprocessing.process.BaseProcess.start

    def started(self: Any) -> None:
        _RECORDER.start_process()
        start(self)

    with contextlib.ExitStack() as asking:
        # os has its functions of a module of its own, which code may call too; macOS has no getxattr
        for module in (os, importlib.import_module(os.name)):
            for name in filter(functools.partial(hasattr, module), _ASKING):
                asking.enter_context(replaced(module, name, _asking(getattr(module, name))))
            for name in filter(functools.partial(hasattr, module), _OF_THE_DISK):
                asking.enter_context(replaced(module, name, _asking_the_disk(getattr(module, name))))
            asking.enter_context(replaced(module, "open", _opening(module.open)))
            asking.enter_context(replaced(module, "scandir", _scanning(module.scandir)))
            asking.enter_context(replaced(module, "uname", _system_facts))
        asking.enter_context(replaced(sys, "argv", _Arguments(sys.argv)))
        asking.enter_context(replaced(sys, "orig_argv", _Arguments(sys.orig_argv)))
        asking.enter_context(replaced(sys, "stdin", _Input(sys.stdin)))
        asking.enter_context(replaced(platform, "uname", _naming(platform.uname)))
        for variables in {id(one): one for one in (os.environ, getattr(os, "environb", os.environ))}.values():
            asking.enter_context(replaced(variables, "_data", environ))
        if hasattr(importlib.import_module(os.name), "environ"):
            asking.enter_context(replaced(importlib.import_module(os.name), "environ", environ))
        asking.enter_context(replaced(tempfile, "gettempdir", _placing(tempfile.gettempdir)))
        asking.enter_context(replaced(tempfile, "gettempdirb", _placing(tempfile.gettempdirb)))
        asking.enter_context(replaced(multiprocessing.process.BaseProcess, "start", started))
        yield


@contextlib.contextmanager
def _native_openers() -> Iterator[None]:
    """Let the loaders that open files in C++ or Rust raise the audit event that Python's own `open` raises."""
    import safetensors
    import safetensors.numpy
    import safetensors.torch
    import torch
    from PIL import ImageFont
    from PIL import _imagingcms as profiles

    class Reader(torch._C.PyTorchFileReader):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self, source: Any) -> None:
            _audit_open(source)
            super().__init__(source)

    safe_open = _recording_opener(safetensors.safe_open, 0)
    with (
        replaced(safetensors, "safe_open", safe_open),
        replaced(safetensors.numpy, "safe_open", safe_open),
        replaced(safetensors.torch, "safe_open", safe_open),
        replaced(torch._C, "import_ir_module", _recording_opener(torch._C.import_ir_module, 1)),
        replaced(torch._C, "PyTorchFileReader", Reader),
        replaced(torch, "from_file", _recording_opener(torch.from_file, 0)),
        replaced(ImageFont.core, "getfont", _recording_opener(ImageFont.core.getfont, 0)),
        replaced(profiles, "profile_open", _recording_opener(profiles.profile_open, 0)),
        replaced(torch.UntypedStorage, "from_file", _recording_opener(torch.UntypedStorage.from_file, 0)),
        _recorded_images(torch.ops.image),
    ):
        yield


class _RecordedOperator:
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
def _recorded_images(namespace: Any) -> Iterator[None]:
    """Let torchvision's `read_file` tell, which is under its `read_image` and `decode_image`."""
    reader = _RecordedOperator(namespace, "read_file")
    namespace.read_file = reader
    try:
        yield
    finally:
        del namespace.read_file
        if reader.operator is not None:
            namespace.read_file = reader.operator


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(path: Any = ".", *args: Any, **options: Any) -> Any:
        # a module that is imported is opened besides, and its time changes nothing
        if sys._getframe(1).f_code.co_filename not in _IMPORTERS:
            _RECORDER.ask(path, options.get("dir_fd"))
        return function(path, *args, **options)

    return call


def _asking_the_disk(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        _RECORDER.ask_the_disk()
        return function(*args, **options)

    return call


class _Variables(MutableMapping[Any, Any]):
    """Stands for the dict behind `os.environ`, and tells which variables are read, listed and set."""

    def __init__(self, variables: MutableMapping[Any, Any]) -> None:
        self._variables = variables

    def __getitem__(self, key: Any) -> Any:
        _RECORDER.read_variable(key)
        return self._variables[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        _RECORDER.write_variable(key)
        self._variables[key] = value

    def __delitem__(self, key: Any) -> None:
        _RECORDER.write_variable(key)
        del self._variables[key]

    def __iter__(self) -> Iterator[Any]:
        _RECORDER.list_variables()
        return iter(self._variables)

    def __len__(self) -> int:
        _RECORDER.list_variables()
        return len(self._variables)

    def copy(self) -> dict[Any, Any]:
        """Return a dict, as the one that this stands for does."""
        return {key: self[key] for key in self}  # dict() would call back by way of a library


class _Arguments(list[str]):
    """Stands for `sys.argv`, and tells when it is read."""


def _telling(name: str) -> Callable[..., Any]:
    function = getattr(list, name)

    @functools.wraps(function)
    def call(self: list[str], *args: Any, **options: Any) -> Any:
        _RECORDER.read_arguments()
        return function(self, *args, **options)

    return call


for _name in (
    *("__getitem__", "__iter__", "__reversed__", "__len__", "__contains__", "__eq__", "__ne__", "__add__", "__mul__"),
    *("__repr__", "copy", "count", "index", "pop"),
):
    setattr(_Arguments, _name, _telling(_name))


class _Input:
    """Stands for `sys.stdin`, and tells when it is read; a library may ask whether it is a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if name.startswith("read") or name in ("buffer", "detach", "fileno"):
            _RECORDER.read_input()
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        _RECORDER.read_input()
        return iter(self._stream)


def _placing(function: Callable[[], _R]) -> Callable[[], _R]:
    """Return tempfile's function, which reads the variables once only. Names of new files are made up anyway."""

    @functools.wraps(function)
    def call() -> _R:
        if sys._getframe(1).f_code.co_filename != tempfile.__file__:
            for name in ("TMPDIR", "TEMP", "TMP"):
                _RECORDER.read_variable(name)
        return function()

    return call


class _SystemFacts(tuple[str, ...]):
    """Stands for the result of `os.uname`, and tells when the machine's name is taken out of it."""

    __slots__ = ()

    def __new__(cls) -> _SystemFacts:
        return super().__new__(cls, tuple(_uname()))

    sysname = property(lambda self: tuple.__getitem__(self, 0))
    release = property(lambda self: tuple.__getitem__(self, 2))
    version = property(lambda self: tuple.__getitem__(self, 3))
    machine = property(lambda self: tuple.__getitem__(self, 4))

    @property
    def nodename(self) -> str:
        self._tell()
        return tuple.__getitem__(self, 1)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or index in (1, -4):
            self._tell()
        return tuple.__getitem__(self, index)

    def __iter__(self) -> Iterator[str]:
        self._tell()
        return tuple.__iter__(self)

    def __repr__(self) -> str:
        return repr(tuple(self))

    def _tell(self) -> None:
        frame = sys._getframe(2)
        if frame.f_code.co_filename not in _NAMELESS:
            _RECORDER.read_host(_users_frame(frame))


# of the standard library, they take all of `os.uname` and pass on no name
_NAMELESS = frozenset({str(sysconfig.__file__), str(platform.__file__)})


def _system_facts() -> _SystemFacts:
    return _SystemFacts()


def _naming(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return platform.uname, which asks once, and gives a machine's name to `platform.node` and to others."""

    @functools.wraps(function)
    def call() -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_filename != platform.__file__ or frame.f_code.co_name == "node":
            _RECORDER.read_host(_users_frame(frame))
        return function()

    return call


def _opening(function: Callable[..., int]) -> Callable[..., int]:
    """Return os.open, whose event leaves out the folder that a relative path starts from."""

    @functools.wraps(function)
    def call(path: Any, flags: int, *args: Any, **options: Any) -> int:
        folder = _named(options.get("dir_fd"))
        if folder is not None:
            sys.audit("open", os.path.join(folder, os.fsdecode(path)), None, flags)
        return function(path, flags, *args, **options)

    return call


class _Entry:
    """Stands for an `os.DirEntry`, whose questions raise no event."""

    __slots__ = ("_entry", "_folder")

    def __init__(self, entry: Any, folder: str | None) -> None:
        self._entry = entry
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)

    def __fspath__(self) -> Any:
        return self._entry.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        _RECORDER.ask(self._entry.path, self._folder, "stat")
        found: os.stat_result = self._entry.stat(follow_symlinks=follow_symlinks)
        return found

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        _RECORDER.ask(self._entry.path, self._folder, "kind")
        return bool(self._entry.is_dir(follow_symlinks=follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        _RECORDER.ask(self._entry.path, self._folder, "kind")
        return bool(self._entry.is_file(follow_symlinks=follow_symlinks))

    def is_symlink(self) -> bool:
        _RECORDER.ask(self._entry.path, self._folder, "kind")
        return bool(self._entry.is_symlink())


class _Entries:
    """Stands for the iterator of `os.scandir`."""

    def __init__(self, entries: Any, folder: str | None) -> None:
        self._entries = entries
        self._folder = folder
        self.close = entries.close

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._entries), self._folder)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _scanning(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(path: Any = ".") -> Any:
        found = function(path)
        if _users_frame(sys._getframe(1)) is None:
            return found
        # entries of a descriptor have names only, and it may be closed before they are asked
        return _Entries(found, _named(path) if isinstance(path, int) else None)

    return call


def _recording_opener(opener: Callable[..., Any], position: int) -> Callable[..., Any]:
    @functools.wraps(opener)
    def call(*args: Any, **options: Any) -> Any:
        _audit_open(args[position] if len(args) > position else options.get("filename"))
        return opener(*args, **options)

    return call


def _audit_open(source: Any) -> None:
    if isinstance(source, str | bytes | os.PathLike) and source:
        sys.audit("open", os.fspath(source), "r", os.O_RDONLY)
