"""Which installed libraries a result depends on, and their states.

What edgeq itself needs to make a result is in every cache key (`own_libraries`). Of all else, only what this process
looked for counts: a finder notes every name that an import or `importlib.metadata` asks for, found or not, since code
that finds no optional library computes something else once that library is there. A library's state is its version with
the hashes that its RECORD lists, so that two environments at different paths have equal ones.

Import this module before torch: torch and its libraries look for optional ones when they are imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeq.core.files import canonical_json, sha256_bytes, sha256_file

# what computes, writes or shows a result; with all that these require
_ROOTS = (
    *("torch", "torchvision", "torchao", "executorch", "numpy", "pillow", "safetensors", "pydantic", "backports.zstd"),
    *("bsdiff4", "jinja2", "pygal", "scikit-learn", "onnx", "onnxscript", "onnxruntime", "openvino", "ai-edge-litert"),
    *("ethos-u-vela", "tosa-tools"),
)

# lines that differ with the installer and with the environment's path
_OF_THE_INSTALLER = re.compile(rb"^\.\./|\.dist-info/|\.pyc,|\.pth,|/__editable__|^__editable__")

_ABSENT = ""


class _LookedFor(importlib.abc.MetaPathFinder):
    """Finds nothing, and notes what is looked for."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.distributions: set[str] = set()
        self.plugins: set[str] = set()
        self.is_on = True
        # of the libraries that were imported before this, nobody knows what they looked for
        self.all = "torch" in sys.modules

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        if self.is_on:
            self.modules.add(fullname.partition(".")[0])

    def find_distributions(self, context: Any) -> Iterator[Any]:
        if not self.is_on:
            return iter(())
        if context.name is not None:
            self.distributions.add(_normal(context.name))
            return iter(())
        frame = sys._getframe(1)
        while frame is not None and not (frame.f_code.co_name == "entry_points" and "params" in frame.f_locals):
            frame = frame.f_back  # type: ignore[assignment]  # it ends with None
        group = None if frame is None else frame.f_locals["params"].get("group")
        if group is None:
            self.all = True
        else:
            self.plugins.add(group)
        return iter(())


_looked_for = _LookedFor()

sys.meta_path.insert(0, _looked_for)


@contextlib.contextmanager
def unnoted() -> Iterator[None]:
    """Do not note what is looked for in the block: a library that moves results does not change them."""
    before, _looked_for.is_on = _looked_for.is_on, False
    try:
        yield
    finally:
        _looked_for.is_on = before


def looked_for() -> set[str]:
    """Return what this process looked for and is not in every key, by kind and name.

    The kinds are `library:MODULE`, `distribution:NAME`, `plugins:GROUP`, and `libraries:` where only the whole
    environment says what was found.
    """
    own = own_names()
    known = {*sys.stdlib_module_names, "edgeq", "sitecustomize", "usercustomize"}
    names = {"libraries:"} if _looked_for.all else set()
    names |= {f"plugins:{group}" for group in _looked_for.plugins}
    names |= {f"distribution:{name}" for name in _looked_for.distributions - own - {*_ROOTS, "edgeq"}}
    for module in _looked_for.modules - known:
        providers = {_normal_of(folder) for folder in _providers(module)}
        if not providers or not providers <= own:
            names.add(f"library:{module}")
    return names


def own_libraries() -> dict[str, str]:
    """Return the states of the libraries that every result depends on, by name."""
    return {name: distribution_state(name) for name in sorted(_required(_ROOTS))}


@functools.cache
def own_names() -> frozenset[str]:
    """Return the libraries of edgeq: those of every result, and those of its command line and delivery."""
    return _required(("edgeq", *_ROOTS))


def library_state(module: str) -> str:
    """Hash what provides a top-level module; "" where nothing does."""
    providers = _providers(module)
    if providers:
        return _hashed(providers)
    # put there by hand
    places = [Path(path) for path in _top_level().get(module, ())]
    return _hash_of_files(places) if places else _ABSENT


def _hash_of_files(places: Iterable[Path]) -> str:
    """Hash modules and packages by their files' content and place."""
    hashes = {
        str(inner.relative_to(place.parent)): sha256_file(inner)
        for place in places
        for inner in ([place] if place.is_file() else sorted(place.rglob("*")))
        if inner.is_file() and inner.suffix != ".pyc"
    }
    return sha256_bytes(canonical_json(hashes))


def distribution_state(name: str) -> str:
    """Hash a distribution; "" where it is not installed."""
    folders = _installed().get(_normal(name), ())
    return _hashed(folders) if folders else _ABSENT


def plugins_state(group: str) -> str:
    """Hash the distributions that declare entry points of a group; "" for none."""
    header = f"[{group}]"
    folders = [
        folder
        for several in _installed().values()
        for folder in several
        if (folder / "entry_points.txt").is_file() and header in (folder / "entry_points.txt").read_text()
    ]
    return _hashed(folders) if folders else _ABSENT


@functools.cache
def libraries_state(_: str = "") -> str:
    """Hash all that is installed."""
    return _hashed(folder for name, several in _installed().items() if name != "edgeq" for folder in several)


STATES: dict[str, Callable[[str], str]] = {
    "library": library_state,
    "distribution": distribution_state,
    "plugins": plugins_state,
    "libraries": libraries_state,
}


def site_folders() -> tuple[str, ...]:
    """Return the folders that libraries are installed in."""
    named = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return tuple(dict.fromkeys((*named, *site.getsitepackages(), site.getusersitepackages())))


def forget() -> None:
    """Look again at what is installed."""
    for function in (_installed, _top_level, _record, _recorded_names, own_names, libraries_state, _providers):
        function.cache_clear()


def _hashed(folders: Iterable[Path]) -> str:
    return sha256_bytes(canonical_json(sorted([_normal_of(one), _version_of(one), _record(one)] for one in folders)))


def _required(names: Iterable[str]) -> frozenset[str]:
    """Return distributions that are installed, with all that they require, extras left out."""
    found: set[str] = set()
    waiting = [_normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name not in _installed():
            continue
        found.add(name)
        for folder in _installed()[name]:
            head = (folder / "METADATA").read_text(errors="replace").partition("\n\n")[0]
            for text in re.findall(r"^Requires-Dist: *([^\n]+)", head, re.MULTILINE):
                required = re.match(r"[\w.-]+", text)
                if required is not None and "extra ==" not in text:
                    waiting.append(_normal(required[0]))
    return frozenset(found)


@functools.cache
def _installed() -> dict[str, tuple[Path, ...]]:
    """Return the metadata folders of what is installed, by normal name."""
    found: dict[str, tuple[Path, ...]] = {}
    for root in site_folders():
        for folder in sorted(Path(root).glob("*.dist-info")):
            if (folder / "METADATA").is_file() or (folder / "RECORD").is_file():
                name = _normal_of(folder)
                found[name] = (*found.get(name, ()), folder)
    return found


@functools.cache
def _top_level() -> dict[str, tuple[str, ...]]:
    """Return the paths that can provide a top-level module, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for root in filter(os.path.isdir, site_folders()):
        for name in sorted(os.listdir(root)):
            if not name.endswith((".dist-info", ".pth")) and name != "__pycache__":
                module = name.partition(".")[0]
                found[module] = (*found.get(module, ()), os.path.join(root, name))
    return found


@functools.cache
def _providers(module: str) -> tuple[Path, ...]:
    """Return the metadata folders of what provides a top-level module."""
    names = {os.path.basename(path).encode() for path in _top_level().get(module, ())}
    folders = (folder for several in _installed().values() for folder in several)
    return tuple(folder for folder in folders if names and not names.isdisjoint(_recorded_names(folder)))


@functools.cache
def _recorded_names(folder: Path) -> frozenset[bytes]:
    """Return the names of files and folders beside a metadata folder that its record lists, or files in them."""
    return frozenset(re.findall(rb"^[^/,\r\n]+", _record_bytes(folder), re.MULTILINE))


@functools.cache
def _record(folder: Path) -> str:
    record = _record_bytes(folder)
    if not record:  # a system's own packager leaves none: the modules are what they hold
        listed = folder / "top_level.txt"
        names = listed.read_text().split() if listed.is_file() else [_normal_of(folder).replace("-", "_")]
        return _hash_of_files(
            place for name in names for place in (folder.parent / name, folder.parent / f"{name}.py") if place.exists()
        )
    lines = [line for line in record.splitlines() if not _OF_THE_INSTALLER.search(line)]
    return sha256_bytes(b"\n".join(sorted(lines)))


def _record_bytes(folder: Path) -> bytes:
    try:
        return (folder / "RECORD").read_bytes()
    except OSError:
        return b""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _normal_of(folder: Path) -> str:
    return _normal(folder.name.removesuffix(".dist-info").rpartition("-")[0])


def _version_of(folder: Path) -> str:
    return folder.name.removesuffix(".dist-info").rpartition("-")[2]
