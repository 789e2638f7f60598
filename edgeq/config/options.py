"""From edgeq.toml and the command line to a `PackageConfig`.

Both are read as a dict in the form of edgeq.toml, in which an option that was not given is a missing key. Command-line
options override the file's by a union of dicts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from edgeq.core.config import PROJECT_FILE, PackageConfig
from edgeq.core.errors import UsageError
from edgeq.core.marks import Ge, Gt, Le, Lt, MinLen, Option, options_of
from edgeq.core.schema import explain, read_toml
from edgeq.core.schemes import parse_limit
from edgeq.core.targets import overlay

Values = dict[str, Any]

_Table = TypeVar("_Table")

COMMAND_LINE = "command line"

_BOUNDS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt", MinLen: "min_length"}


def read_project(config: Path | None) -> Values:
    """Return the options of `config`, or of the `edgeq.toml` in the current folder, or none at all.

    Paths in the file are relative to the file.

    Raises:
        UsageError: the named file is missing, is not TOML, or has an unknown key or value.
    """
    if config is None:
        if not Path(PROJECT_FILE).is_file():
            return {}
        config = Path(PROJECT_FILE)
    elif not config.is_file():
        raise UsageError(f"no file {config}", "check the path given to --config")
    raw = read_toml(config)
    if isinstance(raw.get("model"), list):
        fix = "build them with `edgeq build`, name one model's source, or give another --config"
        raise UsageError(f"{config} has [[model]] entries", fix)
    return relative_to(validated(raw, str(config)), config.parent)


def load_config(path: Path) -> PackageConfig:
    """Return the options of an edgeq.toml for one model.

    Raises:
        UsageError: there is no such file, it is not TOML, has an unknown key or value, or lacks a model or target.
    """
    return to_config(read_project(path))


def validated(values: Values, origin: str) -> Values:
    """Return `values` after checking that every key is known and every value has the option's type and bounds.

    Args:
        values: options in the form of edgeq.toml.
        origin: their origin, for errors; `COMMAND_LINE` for errors that name the flag.

    Raises:
        UsageError: an unknown key (the nearest is offered), or a value that is not allowed.
    """
    schema = schema_of(PackageConfig)
    try:
        return schema.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as err:
        place = _flag_at(err.errors()[0]["loc"]) if origin == COMMAND_LINE else None
        raise explain(err, origin, schema, place=place) from err


def _flag_at(location: Sequence[int | str]) -> str | None:
    key = ".".join(map(str, location))
    flags = (option.flag for option in options_of(PackageConfig) if f"{key}.".startswith(f"{option.key}."))
    return next((flag.name for flag in flags if flag is not None), None)


@functools.cache
def schema_of(table: type[object]) -> type[BaseModel]:
    """Return the pydantic model of a table in edgeq.toml; a key that is left out is unset."""
    options = [option for option in options_of(table) if "." not in option.key]
    fields: dict[str, Any] = {
        option.key: (_with_bounds(_in_toml(option.type), option.marks), None) for option in options
    }
    return create_model(table.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _in_toml(hint: Any) -> Any:
    """Return the type that TOML has for an annotation: text for a path, a list for a tuple, and never None."""
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return schema_of(hint)
    if hint is Path:
        return str
    if origin is Annotated:
        return _with_bounds(_in_toml(args[0]), args[1:])
    if origin is tuple:
        return list[_in_toml(args[0])]  # type: ignore[misc]  # a type that is made at run time
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[args[0], _in_toml(args[1])]  # type: ignore[misc,valid-type]
    if origin in (Union, UnionType):
        return Union[tuple(_in_toml(arg) for arg in args if arg is not NoneType)]  # noqa: UP007  # made at run time
    return hint


def _with_bounds(hint: Any, marks: Iterable[Any]) -> Any:
    bounds = {_BOUNDS[type(mark)]: dataclasses.astuple(mark)[0] for mark in marks if type(mark) in _BOUNDS}
    return Annotated[hint, Field(**bounds)] if bounds else hint


def relative_to(values: Values, folder: Path) -> Values:
    """Return the options of a file in `folder` with the paths among them relative to the current folder."""
    found = dict(values)
    for option in options_of(PackageConfig):
        name, _, rest = option.key.partition(".")
        table = found if not rest else found.get(name, {})
        value = table.get(rest or name)
        if option.path is None or value is None:
            continue
        if isinstance(value, list):
            joined: Any = [_joined(option, text, folder) for text in value]
        else:
            joined = _joined(option, value, folder)
        found = overlay(found, {name: {rest: joined} if rest else joined})
    return found


def _joined(option: Option, text: str, folder: Path) -> str:
    # a text such as "metric.py:score" is joined as a whole: only its front is a path
    return str(folder / text) if option.path is not None and option.path.is_path(text, folder) else text


def merge(command_line: Values, project: Values) -> Values:
    """Return the project's options overridden by those of the command line; tables are merged key by key."""
    return overlay(project, command_line)


def limit_table(texts: Iterable[str]) -> dict[str, str]:
    """Return the `--limit NAME=VALUE` options as the table of an edgeq.toml.

    Raises:
        UsageError: no "=", an unknown name, a value of another dimension, or two values for one name.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, _ = parse_limit(text)
        value = text.partition("=")[2]
        if values.setdefault(name, value) != value:
            what = f"--limit {name} is given twice, as {values[name]} and as {value}"
            raise UsageError(what, "give it once: a gate has one limit")
    return values


def to_config(values: Values) -> PackageConfig:
    """Return validated options as a `PackageConfig`.

    Raises:
        UsageError: no model or no target is given.
    """
    if "model" not in values:
        raise UsageError(
            "no model given",
            "give one, such as torchvision:mobilenet_v2, model.py:factory, model.pt2, or the built-in digits",
        )
    if not values.get("targets"):
        raise UsageError("no target given", "add --target NAME; `edgeq targets list` shows the names")
    return filled(PackageConfig, values)


def filled(table: type[_Table], values: Mapping[str, Any]) -> _Table:
    """Return an instance of a configuration table with `values`, and its defaults where they have no key."""
    options = {option.key: option for option in options_of(table)}
    return table(**{name: _converted(options[name].type, value) for name, value in values.items()})


def _converted(hint: Any, value: Any) -> Any:
    """Convert a TOML value to the field's type: text to a path, a list to a tuple, a table to its dataclass."""
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return filled(hint, value)
    if hint is Path:
        return Path(value)
    if origin is Annotated:
        return _converted(args[0], value)
    if origin is tuple:
        return tuple(_converted(args[0], item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _converted(args[1], item) for key, item in value.items()}
    if origin in (Union, UnionType) and Path in args:
        return Path(value)
    return value


def values_of(table: object) -> Values:
    """Return the values of a configuration table that differ from their defaults, as edgeq.toml has them."""
    found: Values = {}
    for option in options_of(type(table)):
        if "." in option.key:
            continue
        value = getattr(table, option.key)
        if value != option.default:
            # Python may have given a dict for a table, or something that validation refuses
            found[option.key] = values_of(value) if dataclasses.is_dataclass(value) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
