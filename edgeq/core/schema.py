"""JSON documents that edgeq writes and others may have changed: their schemas, and how they are written and read.

Reading is bounded and strict, with a specific error for each fault.
"""

from __future__ import annotations

import functools
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeq.core.errors import EdgeqError, Findings, IntegrityError, UnsupportedError, UsageError, nearest
from edgeq.core.files import canonical_json

_MOST_SHOWN = 200  # characters of a value


def find_file(name_or_path: str, shipped: dict[str, Path], kind: str, beside: Path | None = None) -> Path:
    """Return the file of a shipped name, or the user's own.

    Raises:
        UsageError: there is none; the nearest name is offered.
    """
    if name_or_path in shipped:
        return shipped[name_or_path]
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = (beside or Path()) / name_or_path
        if not path.is_file():
            raise UsageError(f"no {kind} file {path}", f"check the path, or see `edgeq {kind}s list`")
        return path
    hint = nearest(name_or_path, shipped)
    raise UsageError(f"unknown {kind} {name_or_path!r}.{hint}", f"see `edgeq {kind}s list`, or give a .toml file")


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content.

    Raises:
        UsageError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}", "check the path and its permissions") from err
    except RecursionError as err:
        raise UsageError(f"{path} is nested too deeply", "write plain tables and lists") from err
    except ValueError as err:  # TOMLDecodeError, UnicodeDecodeError, and Python's own for a number of 5000 digits
        raise UsageError(f"{path} is not valid TOML: {err}", "fix the line that the message names") from err


def explain(err: ValidationError, origin: str, model: type[BaseModel], *, place: str | None = None) -> EdgeqError:
    """Turn each of pydantic's findings into a line that names the file, the key and the nearest known key or value.

    Args:
        err: what pydantic found.
        origin: the file.
        model: what the file was validated against.
        place: what to name in place of the file and the key.
    """
    found = [
        _explained(one, origin, model, place if n == 0 else None).about(key=".".join(map(str, one["loc"])))
        for n, one in enumerate(_findings(err))
    ]
    return found[0] if len(found) == 1 else Findings(found)


def _findings(err: ValidationError) -> list[Any]:
    """Return a finding for each place: of a union, pydantic has one for each of its types.

    What holds a finding is left out: a list without its wrong entries is then too short.
    """
    found = list({one["loc"][:2]: one for one in reversed(err.errors(include_url=False))}.values())[::-1]
    places = [one["loc"] for one in found]
    return [
        one
        for one in found
        if not any(len(at) > len(one["loc"]) and at[: len(one["loc"])] == one["loc"] for at in places)
    ]


def _explained(first: Any, origin: str, model: type[BaseModel], place: str | None) -> UsageError:
    key = ".".join(str(part) for part in first["loc"]) or "(the file as a whole)"
    place = place or f"{origin}: {key}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        # a key that lies in a table is offered by its whole name
        within = (f"{table}.{key}" for table in known for key in _known_keys(model, (*first["loc"][:-1], table)))
        hint = nearest(str(first["loc"][-1]), (*known, *within))
        return UsageError(f"{origin}: unknown key {key!r}.{hint}", f"known keys: {', '.join(known)}")
    if first["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        hint = nearest(str(first["input"]), allowed)
        return UsageError(
            f"{place}: unknown value {_shown(first['input'])}.{hint}", f"use one of: {', '.join(allowed)}"
        )
    message = "Input should be a table" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    came = "" if first["type"] == "missing" else f", got {_shown(first['input'])}"
    return UsageError(f"{place}: {message}{came}", "fix this value and run again")


def _shown(value: object) -> str:
    """Return a value that somebody wrote, as far as it fits into a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of 5000 digits, lists in lists
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    schema = _schema_by_alias(model)
    node = schema
    for part in loc:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items") or {}
        node = _resolved(node, schema)
    return tuple(node.get("properties", {}))


@functools.cache  # pydantic writes it anew each time: 12 ms for a manifest, and for each unknown key in it
def _schema_by_alias(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
            return found
    return node


class Strict(BaseModel):
    """A part of such a document: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Document = TypeVar("Document", bound=Strict)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema, with the dialect that it is written in."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()


def document_bytes(document: Strict, *, what: str, most_bytes: int, fix: str) -> bytes:
    """Return a document's bytes: sorted JSON, equal for equal documents.

    Args:
        document: what to write.
        what: it is, for messages.
        most_bytes: that are read back.
        fix: what to do about more.

    Raises:
        UsageError: it would be larger than that.
    """
    data = canonical_json(document.model_dump(mode="json"))
    if len(data) > most_bytes:
        raise UsageError(f"the {what} would have {len(data)} bytes, but at most {most_bytes} are read", fix)
    return data


def parse_strict(
    data: bytes, document: type[Document], *, name: str, version: int, most_bytes: int, again: str
) -> Document:
    """Return the document that `data` holds; any bytes give one, or one of the errors below.

    Args:
        data: JSON in UTF-8.
        document: what it must be; its `schema_version` is a number.
        name: of the file, for messages.
        version: the newest schema that this edgeq reads.
        most_bytes: more are refused unread.
        again: what to do about a broken one.

    Raises:
        IntegrityError: too large, not JSON, a duplicate key, an unknown key, or a value that is not allowed.
        UnsupportedError: a newer schema than this edgeq knows.
    """
    try:
        if len(data) > most_bytes:
            raise ValueError(f"more than {most_bytes} bytes")
        raw = json.loads(data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        found = raw.get("schema_version") if isinstance(raw, dict) else None
        if type(found) is not int:  # True would pass for 1
            raise ValueError("it has no schema_version")
        if found > version:
            what = f"{name} has schema version {found}, this edgeq reads {version}"
            raise UnsupportedError(what, "update edgeq, or the app that reads it")
        return document.model_validate_json(data, strict=True)
    except RecursionError as err:
        raise _broken(name, "nested too deeply", again) from err
    except ValidationError as err:
        raise _broken(name, explain(err, "it", document).what.removeprefix("it: "), again) from err
    except ValueError as err:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise _broken(name, str(err), again) from err


def _broken(name: str, why: str, again: str) -> IntegrityError:
    return IntegrityError(f"{name} does not have edgeq's format: {why[:300]}", again)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} occurs twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is not a finite number")
    return value
