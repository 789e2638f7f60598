"""Options of the command line over those of a project's file, and both in one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.cli.project import DataTable, DeviceTable, LimitTable, Options, QatTable
from edgeq.errors import UsageError
from edgeq.scheme import LIMITS, parse_limit


def merge(command_line: Options, project: Options) -> Options:
    """Return the project's options with those of the command line over them; tables are merged key by key."""
    data = {**given(project.data), **given(command_line.data)}
    limit = {**given(project.limit), **given(command_line.limit)}
    device = {**given(project.device), **given(command_line.device)}
    qat = {**given(project.qat), **given(command_line.qat)}
    tables: dict[str, Any] = {
        "data": DataTable(**data),
        "qat": QatTable(**qat),
        "limit": LimitTable(**limit),
        "device": DeviceTable(**device),
    }
    tables["app"] = project.app  # no command line has such options
    return Options(**{**given(project), **given(command_line), **tables})


def given(table: Options | DataTable | QatTable | LimitTable | DeviceTable) -> dict[str, Any]:
    """Return what a table says, by key; None stands for nothing."""
    return {key: value for key, value in table if value is not None}


def limit_table(texts: Sequence[str]) -> LimitTable:
    """Return the `--limit NAME=VALUE` options as the table that a file would hold; the last of a name counts.

    Raises:
        UsageError: no "=", an unknown name, or a value of another dimension.
    """
    values = {}
    for text in texts:
        name, _ = parse_limit(text)
        if LIMITS[name].measured_by != "package":
            what = f"the limit {name} is measured when a bundle is released"
            raise UsageError(what, "give it to `edgeq ota release`, or write it into [limit] of edgeq.toml")
        values[name] = text.partition("=")[2]
    return LimitTable(**values)
