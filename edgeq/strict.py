"""JSON documents that edgeq writes and others may have changed: their schemas, and how they are written and read.

Reading is bounded and strict, with a named error for whatever is wrong.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeq._io import canonical_json
from edgeq.errors import IntegrityError, UnsupportedError, UsageError
from edgeq.target import explain


class Strict(BaseModel):
    """A part of such a document: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Document = TypeVar("Document", bound=Strict)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema, with the dialect that it is written in."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()


def document_bytes(document: Strict, *, what: str, most_bytes: int, fix: str) -> bytes:
    """Return a document as it is written: sorted JSON, the same bytes for equal documents.

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
        raise UsageError(f"the {what} would take {len(data)} bytes, at most {most_bytes} are read", fix)
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
        IntegrityError: too large, no JSON, a key twice, an unknown key, or a value that is not allowed.
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
    return IntegrityError(f"{name} is not what edgeq wrote: {why[:300]}", again)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is no finite number")
    return value
