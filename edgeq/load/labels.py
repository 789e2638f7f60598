"""Class names: which output index a class folder stands for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.errors import UsageError, first_line, nearest

_FEW = 3
_MOST_CLASSES = 1_000_000  # a mistyped index must not make a tuple that fills the memory
_FORMS = 'write a name a line, a JSON list of names, or a JSON object {"folder": index}'


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names by output index; "" where the file names none for an index.

    The file is JSON (a list of names by index, or an object from name to index) or text (a name a line).

    Raises:
        UsageError: the file cannot be read, has another form, or gives an index twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise UsageError(f"cannot read labels {path}: {err.strerror}", "check the path and its permissions") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"labels {path}: expected UTF-8 text, got other bytes", _FORMS) from err
    if path.suffix.lower() != ".json" and not text.lstrip().startswith(("{", "[")):
        return _from_lines(path, text)
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as err:
        raise UsageError(f"labels {path} are not valid JSON: {first_line(err)}", _FORMS) from err
    return _from_pairs(path, value.pairs) if isinstance(value, _Pairs) else _from_list(path, value)


class _Pairs:
    """A JSON object as it stands in the file: a dict would drop a name that comes twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _from_lines(path: Path, text: str) -> tuple[str, ...]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise UsageError(f"labels {path}: expected a name a line, got an empty file", _FORMS)
    if "" in names:
        raise UsageError(f"labels {path}: line {names.index('') + 1} is empty", "name every class, or remove the line")
    return tuple(names)


def _from_list(path: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise UsageError(f"labels {path}: expected class names, got something else", _FORMS)
    return tuple(value)


def _from_pairs(path: Path, pairs: list[tuple[str, Any]]) -> tuple[str, ...]:
    for name, index in pairs:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MOST_CLASSES:
            what = f"labels {path}: {name!r}: expected an output index from 0 on, got {str(index)[:40]}"
            raise UsageError(what, "give each class the index of the model's output that stands for it")
    for kind, values in (("name", [name for name, _ in pairs]), ("index", [index for _, index in pairs])):
        twice = [repr(value) for value, times in Counter(values).items() if times > 1]
        if twice:
            raise UsageError(f"labels {path}: {kind} given twice: {few(twice)}", "give each class an index of its own")
    if not pairs:
        raise UsageError(f"labels {path}: expected at least one class, got none", _FORMS)
    by_index = {index: name for name, index in pairs}
    return tuple(by_index.get(i, "") for i in range(max(by_index) + 1))


def repeated_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that stand for more than one output, each with how many: an app cannot tell these apart."""
    return tuple(f"{name!r} ({times} outputs)" for name, times in Counter(names).items() if name and times > 1)


def index_classes(folders: Sequence[str], names: tuple[str, ...] | None, origin: str) -> dict[str, int]:
    """Return the output index of each class folder.

    Args:
        folders: the folders' names.
        names: class names by output index from `read_labels`; None to count the folders in sorted order.
        origin: where the folders are, for messages.

    Raises:
        UsageError: a folder that the labels do not name, or name twice.
    """
    if names is None:
        return {name: i for i, name in enumerate(sorted(folders))}
    times = Counter(names)
    unknown = [name for name in sorted(folders) if not times[name]]
    if unknown:
        what = f"{origin}: class folders that the labels do not name: {few(unknown)}.{nearest(unknown[0], names)}"
        raise UsageError(what, "add them to the --labels file, or rename the folders")
    unclear = [name for name in sorted(folders) if times[name] > 1]
    if unclear:
        what = f"{origin}: class folders that the labels name more than once: {few(unclear)}"
        raise UsageError(what, "give each class a name of its own in the --labels file")
    return {name: names.index(name) for name in folders}


def check_classes(class_names: Sequence[str], n_outputs: int, *, from_file: bool) -> None:
    """Check the classes of a labelled set against the model.

    Args:
        class_names: class names by output index; empty where the set has none.
        n_outputs: how many classes the model's output has.
        from_file: whether a labels file gave the indices. Without one they are the folders' sorted order, which
            only means something when there is a folder for every output.

    Raises:
        UsageError: an index that the model does not have, or folders that are not as many as the outputs.
    """
    if len(class_names) > n_outputs:
        extra = [f"{name} ({i})" for i, name in enumerate(class_names) if i >= n_outputs and name]
        what = f"the model has {n_outputs} outputs, but classes have indices beyond: {few(extra)}"
        raise UsageError(what, "map the classes to output indices with --labels FILE")
    if class_names and not from_file and len(class_names) < n_outputs:
        what = f"the model has {n_outputs} outputs, but the data has {len(class_names)} class folders"
        raise UsageError(what, "say which output each folder stands for with --labels FILE")


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
