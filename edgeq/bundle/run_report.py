"""report.json: one row of a run with all details, times included. It is not part of the digest."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgeq.bundle.writer import contradictions
from edgeq.core.errors import IntegrityError, UnsupportedError, UsageError
from edgeq.core.files import canonical_json, disk_errors, write_atomic
from edgeq.core.manifest import Bundle
from edgeq.core.results.report import PackageResult

REPORT_NAME = "report.json"

REPORT_VERSION = 1

_MAX_BYTES = 64_000_000


def write_report(folder: Path, row: PackageResult) -> None:
    """Write `row` beside its bundle; its path is left out, since the folder may move.

    Raises:
        EnvironmentProblem: the disk is full, or not writable.
    """
    fields = {name: value for name, value in _plain(row).items() if name != "path"}
    with disk_errors(folder):
        write_atomic(folder / REPORT_NAME, canonical_json({"report_version": REPORT_VERSION, "row": fields}))


def read_report(folder: Path) -> PackageResult:
    """Return the row that `write_report` wrote, with `folder` as its path.

    Raises:
        UsageError: there is no report.
        IntegrityError: it does not have edgeq's format.
        UnsupportedError: a newer edgeq wrote it.
    """
    path = folder / REPORT_NAME
    raw = _load(path)
    version = raw.get("report_version")
    if isinstance(version, int) and version > REPORT_VERSION:
        what = f"{path} has version {version}, this edgeq reads {REPORT_VERSION}"
        raise UnsupportedError(what, "update edgeq, or package the model again")
    row = raw.get("row")
    if version != REPORT_VERSION or not isinstance(row, dict):
        raise _broken(path, "expected report_version and row")
    try:
        return TypeAdapter(PackageResult).validate_python(row | {"path": folder})
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        raise _broken(path, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from err


def read_report_of(bundle: Bundle) -> PackageResult:
    """Return the row next to a bundle, after checking its verdict and figures against the manifest.

    The digest does not cover the report, which can therefore be edited; facts that are also in the manifest must agree.

    Raises:
        IntegrityError: it is another bundle's report, or contradicts the manifest.
        EdgeqError: as `read_report`.
    """
    row = read_report(bundle.folder)
    if row.digest != bundle.digest:
        what = f"{bundle.folder}: its report belongs to another bundle ({row.digest[:12]}, not {bundle.digest[:12]})"
        raise IntegrityError(what, "package the model again")
    wrong = contradictions(row, bundle.manifest)
    if wrong:
        what = f"{bundle.folder / REPORT_NAME} contradicts the manifest beside it: {', '.join(wrong[:5])}"
        raise IntegrityError(what, "it was edited after edgeq wrote it: package the model again")
    return row


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        raw = json.loads(data.decode()) if len(data) <= _MAX_BYTES else None
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}", "package the model again, or check the path") from err
    except (ValueError, RecursionError) as err:
        raise _broken(path, str(err)) from err
    if not isinstance(raw, dict):
        raise _broken(path, "expected a JSON object")
    return raw


def _broken(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path} does not have edgeq's format: {why[:300]}", "package the model again")


def _plain(value: Any) -> Any:
    """Return `value` as JSON can say it; infinity and NaN become text, which pydantic reads back as numbers."""
    if value is None or isinstance(value, bool):
        return value
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    # names of undecodable files hold lone surrogates, which UTF-8 cannot say
    return str(value).encode(errors="replace").decode()
