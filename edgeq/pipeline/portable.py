"""Names that hold in every checkout: paths relative to the project's folder, folders of modules by their kind."""

from __future__ import annotations

import mmap
import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.core.files import sha256_bytes
from edgeq.core.system import package_folder
from edgeq.pipeline.installed import site_folders


def relative(value: Any) -> Any:
    """Return a value of JSON with the paths in the current folder relative to it."""
    if isinstance(value, str):
        root = re.escape(os.getcwd().rstrip("/"))
        return re.sub(rf"(?<![\w./-]){root}(?:/|(?=:|#|$))", lambda match: "" if match[0].endswith("/") else ".", value)
    if isinstance(value, dict):
        return {key: relative(inner) for key, inner in value.items()}
    return [relative(inner) for inner in value] if isinstance(value, list) else value


_MOST_NAMES = 10_000


def module_folders() -> list[str]:
    """Return where modules are looked for, in order: the folders of libraries by their kind, others by their paths.

    A folder without a module, such as one that a scheduler gives its worker, can change no import.
    """
    python = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
    scripts = os.path.abspath(sysconfig.get_path("scripts"))  # first where the script `edgeq` was started
    sites = {os.path.abspath(name) for name in site_folders()}
    found = []
    for folder in map(os.path.abspath, (".", *sys.path)):
        if folder == scripts:
            continue
        if folder in sites:
            found.append("<libraries>")
        elif f"{folder}{os.sep}".startswith(python):
            found.append("<python>")
        elif folder == str(package_folder().parent):
            found.append("<edgeq>")
        elif _holds_modules(folder):
            found.append(relative(folder))
    return list(dict.fromkeys(found))


def _holds_modules(folder: str) -> bool:
    """Whether something in a folder can be imported; True for one with more files than are worth a look."""
    if os.path.isfile(folder):
        return True  # a zip
    seen = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name.isidentifier()]
        seen += len(folders) + len(files)
        if seen > _MOST_NAMES or any(name.endswith((".py", ".pyc", ".so")) for name in files):
            return True
    return False


def portable(dependencies: Mapping[str, str], root: str) -> dict[str, str]:
    """Return what the user's code looked at with paths relative to the project's folder, where that says the same.

    Not so for a project whose code, files or environment name its own folder, or whose code may ask for its name: in
    another checkout the same code would look into this one, or somewhere else. Then the folder itself is one of them.
    """
    return bound(dependencies, root) if _names_itself(dependencies, root) else below(dependencies, root)


PLACE = "place:project"


def bound(dependencies: Mapping[str, str], root: str) -> dict[str, str]:
    """Return what the user's code looked at as good for one folder only, with absolute paths."""
    return {**at(dependencies, root), PLACE: sha256_bytes(os.fsencode(root))}


_PATHS = ("file", "names", "modules", "kind", "real", "stat", "shape")


def below(dependencies: Mapping[str, str], root: str) -> dict[str, str]:
    """Return what the user's code looked at with the paths below a folder relative to it."""
    found = {}
    for name, state in dependencies.items():
        kind, _, rest = name.partition(":")
        is_inside = kind in _PATHS and f"{rest}/".startswith(f"{root}/")
        found[f"{kind}:{os.path.relpath(rest, root)}" if is_inside else name] = state
    return dict(sorted(found.items()))


def at(dependencies: Mapping[str, str], root: str) -> dict[str, str]:
    """Return what the user's code looked at with absolute paths in place of relative ones, which are below a folder."""
    found = {}
    for name, state in dependencies.items():
        kind, _, rest = name.partition(":")
        found[f"{kind}:{os.path.normpath(os.path.join(root, rest))}" if kind in _PATHS else name] = state
    return dict(sorted(found.items()))


# code that asks where it is, and that takes the name out of the answer
_OWN_PLACE = re.compile(rb"__file__|__path__|getcwd|\bcwd\(|\bPWD\b")
_ITS_NAME = re.compile(rb"\.(?:name|stem|parts|parents)\b|basename|\bsplit\(|relative_to")


def _names_itself(dependencies: Mapping[str, str], root: str) -> bool:
    whole = os.fsencode(root)
    part = re.compile(rb"[/'\"]" + re.escape(os.path.basename(whole)) + rb"[/'\"]")
    for name in dependencies:
        kind, _, rest = name.partition(":")
        if kind == "env":
            value = os.environ.get(rest, "")
            if root in value or (value.startswith("/") and f"{root}/".startswith(f"{value.rstrip('/')}/")):
                return True
        elif kind == "file" and os.path.isfile(rest) and os.path.getsize(rest):
            with Path(rest).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                is_named = part.search(content) or (_OWN_PLACE.search(content) and _ITS_NAME.search(content))
                if content.find(whole) >= 0 or (rest.endswith(".py") and is_named):
                    return True
    return False
