"""`edgeq schema`: JSON Schemas of what edgeq reads and writes, for editors and for those who parse it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgeq.cli.output import say_json
from edgeq.errors import UsageError, nearest

_DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _manifest() -> dict[str, Any]:
    from edgeq.manifest import manifest_schema

    return manifest_schema()


def _target() -> dict[str, Any]:
    from edgeq.target import TargetProfile

    return TargetProfile.model_json_schema()


def _verdict() -> dict[str, Any]:
    from edgeq.verdict import verdict_schema

    return verdict_schema()


def _printed(name: str) -> Callable[[], dict[str, Any]]:
    def schema_of_it() -> dict[str, Any]:
        from edgeq.report.document import schema_of

        return schema_of(name)

    return schema_of_it


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "manifest": _manifest,
    "target": _target,
    "verdict": _verdict,
    "package": _printed("package"),
    "build": _printed("build"),
    "diff": _printed("diff"),
    "compare": _printed("compare"),
}


def schema(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="manifest, target, verdict, package, build, diff or compare.")
    ],
) -> None:
    """Print a document's JSON Schema: of manifest.json, a target's file, verdict.json, or what --json prints."""
    if name not in SCHEMAS:
        raise UsageError(f"no schema of {name!r}.{nearest(name, SCHEMAS)}", f"schemas: {', '.join(SCHEMAS)}")
    say_json(_DIALECT | SCHEMAS[name]())
