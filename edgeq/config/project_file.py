"""`edgeq.toml` with `[[model]]` entries: keys above them apply to all models, and an entry's own keys override them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from edgeq.config.options import Values, filled, merge, read_project, relative_to, schema_of, validated
from edgeq.config.resolve import request
from edgeq.core.config import PROJECT_FILE, AppConfig, Job, PackageConfig
from edgeq.core.errors import EdgeqError, FoundErrors, UsageError, nearest, of_all, raise_findings
from edgeq.core.results.report import AppOptions
from edgeq.core.schema import explain, read_toml
from edgeq.core.units import parse_size_bytes

# keys of a file of one model that an entry says otherwise, or the whole file says
_INSTEAD = {"model": "source", "model_version": "version"}

_OF_THE_FILE = ("out", "cache", "build", "app")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRequest:
    """The request of an `edgeq build`.

    Attributes:
        names: of all models of the file.
        models: those to be built, without those that `errors` are about.
        errors: what the file has wrong, each with its model and key.
    """

    names: tuple[str, ...]
    models: tuple[Job, ...]
    out: Path
    app: AppOptions
    errors: tuple[EdgeqError, ...] = ()


def read_models(
    config: Path | None, names: Sequence[str], command_line: Mapping[str, Any] | None = None
) -> ProjectRequest:
    """Return the models of `config`, or of the current folder's edgeq.toml.

    Args:
        config: the file, or None.
        names: those to build; none for all.
        command_line: options over those of the file, in its form; paths are relative to the current folder.

    Raises:
        Findings: several of these errors, of all models.
        UsageError: no such file or model, two models with one name, or an unknown key or value.
        UnsupportedError: a scheme that edgeq, or one of the targets, cannot do.
    """
    wanted = look_at_models(config, names, command_line)
    raise_findings(wanted.errors)
    return wanted


def look_at_models(
    config: Path | None, names: Sequence[str], command_line: Mapping[str, Any] | None = None
) -> ProjectRequest:
    """Return the models that can be used, and what is wrong with the file and the others: arguments as `read_models`.

    Raises:
        UsageError: no such file or model, or the file is not TOML, or has no models.
    """
    path = config or Path(PROJECT_FILE)
    if not path.is_file():
        raise UsageError(f"no file {path}", "write one with `edgeq init MODEL`, or give --config")
    errors = FoundErrors()
    common, found = _read(path, errors)
    app = AppOptions()
    if not errors.errors:
        with errors.of("app"):
            app = _app(filled(AppConfig, common.get("app", {})), str(path))
    known = [name for name, _ in found]
    chosen = _chosen(names, known, path)
    models = []
    unusable = FoundErrors()
    for name, options in found:
        if name in chosen and options is not None:
            with unusable.of("", model=name):
                models.append(request({}, merge(dict(command_line or {}), relative_to(options, path.parent))))
    asked = [name for name, options in found if name in chosen and options is not None]
    for err in of_all(unusable.errors, asked):
        place = f"{path}: model {err.model!r}" if err.model else str(path)
        errors.errors.append(type(err)(f"{place}: {err.what}", err.fix).about(model=err.model, key=err.key))
    out = models[0].out if models else Path()
    return ProjectRequest(names=tuple(known), models=tuple(models), out=out, app=app, errors=tuple(errors.errors))


def _name(options: Values) -> str:
    found: str = options.get("name") or options.get("model", "")
    return found


def read_released(config: Path | None, models: Sequence[str]) -> Values:
    """Return the options in `config`, or in the current folder's edgeq.toml, for the models of a release.

    Args:
        config: the file, or None.
        models: the names of the bundles' models, each once.

    Raises:
        UsageError: an unknown key or value; or the file has [[model]] entries without that name, or with different
            limits for models that are released together.
    """
    path = config or Path(PROJECT_FILE)
    if not path.is_file() or not isinstance(read_toml(path).get("model"), list):
        return read_project(config)
    _, found = _read_whole(path)
    if len(models) != 1:
        what = f"{path} has limits per model, but the release has bundles of several models: {', '.join(models)}"
        raise UsageError(what, "release the models one by one, or give another --config")
    known = [options.get("name", "") for options in found]
    (name,) = _chosen(models, known, path)
    return relative_to(found[known.index(name)], path.parent)


def read_one(config: Path | None, source: str | None) -> Values:
    """Return the options in `config`, or in the current folder's edgeq.toml, for one model.

    Of a file with [[model]] entries, these are the options of the only entry with this source, or those above all
    entries where none has it.

    Args:
        config: the file, or None.
        source: the model that the command line names; None for that of the file.

    Raises:
        UsageError: an unknown key or value; or the file has [[model]] entries, and no source says which is meant.
    """
    path = config or Path(PROJECT_FILE)
    if source is None or not path.is_file() or not isinstance(read_toml(path).get("model"), list):
        return read_project(config)
    common, found = _read_whole(path)
    entries = [relative_to(options, path.parent) for options in found]
    same = [options for options in entries if os.path.normpath(options["model"]) == os.path.normpath(source)]
    if len(same) > 1:
        names = ", ".join(_name(options) for options in same)
        what = f"{path} has several [[model]] entries with the source {source}: {names}"
        raise UsageError(what, f"build one of them, for example `edgeq build {_name(same[0])}`")
    named = [options for options in entries if _name(options) == source]
    if not same and named:
        raise UsageError(f"{source!r} is the name of a [[model]] of {path}", f"run `edgeq build {source}`")
    return same[0] if same else relative_to(common, path.parent)


def _read_whole(path: Path) -> tuple[Values, list[Values]]:
    """Return what stands above all models, and each model as a file of its own would say it; raises what is wrong."""
    errors = FoundErrors()
    common, found = _read(path, errors)
    errors.raise_all()
    return common, [options for _, options in found if options is not None]


def _read(path: Path, errors: FoundErrors) -> tuple[Values, list[tuple[str, Values | None]]]:
    """Return what stands above all models, and each model's name and options; None where `errors` has got why not."""
    raw = read_toml(path)
    entries = raw.pop("model", None)
    if not isinstance(entries, list):
        only = validated(raw | ({} if entries is None else {"model": entries}), str(path))
        return validated(raw, str(path)), [(_name(only), only)]
    if not entries:
        raise UsageError(f"{path} has no models", "add a [[model]] with a name and a source")
    common: Values | None = None
    with errors.of(""):
        common = validated(raw, str(path))
    found: list[tuple[str, Values | None]] = []
    for entry in entries:
        name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
        options: Values | None = None
        with errors.of("", model=name):
            options = _entry(entry, path, common or {})
        # an entry means nothing without what stands above it
        found.append((name, None if common is None else options))
    seen: dict[str, str] = {}
    for name, _ in found:
        # names become folders, and some file systems know no capitals
        other = seen.get(name.lower())
        if other is not None and name:
            with errors.of("name", model=name):
                what = f"{path}: two models are named {other!r}" + (f" and {name!r}" if other != name else "")
                raise UsageError(what, "give each [[model]] a different name")
        seen[name.lower()] = name
    return common or {}, found


def _entry(entry: Any, path: Path, common: Values) -> Values:
    """Return an entry as a file of one model would say it, over what stands above all entries."""
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: `model` must be a string or [[model]] entries", "write [[model]] above each")
    origin = f"{path}: model {entry.get('name', '(without a name)')!r}"
    for key, instead in _INSTEAD.items():
        if key in entry:
            raise UsageError(f"{origin}: unknown key {key!r}", f"in a [[model]] entry its name is {instead!r}")
    for key in _OF_THE_FILE:
        if key in entry:
            raise UsageError(f"{origin}: {key!r} applies to the whole file", "move it above the first [[model]]")
    schema = _entry_schema()
    try:
        own = schema.model_validate(entry).model_dump(exclude_unset=True)
    except ValidationError as err:
        raise explain(err, origin, schema) from err
    own |= {key: own.pop(instead) for key, instead in _INSTEAD.items() if instead in own}
    return merge(own, common)


def _entry_schema() -> type[BaseModel]:
    """Return the pydantic model of a `[[model]]` entry."""
    own: dict[str, Any] = {"name": (str, ...), "source": (str, ...), "version": (str, "")}
    return create_model("ModelEntry", __base__=schema_of(PackageConfig), **own)


def _chosen(names: Sequence[str], known: Sequence[str], path: Path) -> frozenset[str]:
    for name in names:
        if name not in known:
            raise UsageError(f"no model {name!r} in {path}.{nearest(name, known)}", f"models: {', '.join(known)}")
    return frozenset(names or known)


_TABLE = re.compile(r"\s*(\[{1,2})\s*([^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?$")

_KEY = re.compile(r"""\s*([\w."'-]+)\s*=\s*(.*)""")


def lines_of(path: Path) -> dict[tuple[str, str], int]:
    """Return the line of each key of a file, by model and key; "" stands for no model, and for the entry itself.

    Readers of TOML keep no lines. Only the beginning of a line is looked at, so that keys of inline tables have none.
    """
    found: dict[tuple[str, str], int] = {}
    entry: dict[str, int] = {}
    name, table = "", ""

    def keep() -> None:
        found.update({(name, key): line for key, line in entry.items()})

    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if (head := _TABLE.match(text)) is not None:
            table = head[2]
            if head[1] == "[[" and table == "model":
                keep()
                name, table, entry = "", "", {"": number}
            elif table.startswith("model."):
                table = table.removeprefix("model.")
            entry.setdefault(table, number)
        elif (given := _KEY.match(text)) is not None:
            key = f"{table}.{given[1]}" if table else given[1]
            entry.setdefault(key, number)
            if key == "name" and "" in entry:
                name = given[2].partition("#")[0].strip().strip("\"'")
    keep()
    return found


def _app(table: AppConfig, origin: str) -> AppOptions:
    return AppOptions(
        size_bytes=_bytes(table.limit.size, f"{origin}: app.limit.size"),
        download_bytes=_bytes(table.limit.download, f"{origin}: app.limit.download"),
        runtime_bytes=tuple(
            ((runtime, abi), _bytes(text, f"{origin}: app.runtime_size.{abi}.{runtime}") or 0)
            for abi, sizes in table.runtime_size.items()
            for runtime, text in sizes.items()
        ),
    )


def _bytes(text: str | None, origin: str) -> int | None:
    if text is None:
        return None
    try:
        return parse_size_bytes(text)
    except UsageError as err:
        raise UsageError(f"{origin}: {err.what}", err.fix) from err
