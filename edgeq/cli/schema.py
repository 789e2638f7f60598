"""`edgeq schema`: JSON Schemas of what edgeq reads and writes, for editors and for those who parse it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgeq.cli.output import say_json
from edgeq.errors import UsageError, nearest


def _manifest() -> dict[str, Any]:
    from edgeq.manifest import Manifest
    from edgeq.strict import json_schema

    return json_schema(Manifest)


def _target() -> dict[str, Any]:
    from edgeq.strict import json_schema
    from edgeq.target import TargetProfile

    return json_schema(TargetProfile)


def _verdict() -> dict[str, Any]:
    from edgeq.strict import json_schema
    from edgeq.verdict import Verdict

    return json_schema(Verdict)


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
    say_json(SCHEMAS[name]())
