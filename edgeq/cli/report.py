"""`edgeq report`: existing bundles as an HTML page, JUnit XML, Markdown, JSON or annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import options
from edgeq.cli.console import say, say_json
from edgeq.cli.outputs import view, write_text
from edgeq.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from edgeq.report.diff import Diff


def report(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE|FOLDER…", help="Bundles, or folders with bundles.")],
    format_: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="html, json, junit, markdown or github.")
    ] = "html",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. [default: stdout]")
    ] = None,
) -> None:
    """Show the measurements of bundles without running them again.

    Failed gates do not affect the exit code, which only says whether the report could be written.
    """
    from edgeq.pipeline.reports import read_run

    render = view(format_)
    text = render(read_run(bundles))
    if output is None:
        say(text.rstrip("\n"))
    else:
        write_text(output, text)
        say(f"written: {output}")


# --- `edgeq diff`: what changed between two bundles.


_SHOWN = 20


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD_BUNDLE", help="A bundle's folder.")],
    new: Annotated[Path, typer.Argument(metavar="NEW_BUNDLE", help="Another one's.")],
    as_json: options.AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
) -> None:
    """Show the differences between two bundles: sizes, metrics, flips, gates, layers, operators, provenance.

    The exit code is 0 whether they differ or not.
    """
    from edgeq.pipeline.reports import read_source
    from edgeq.report.diff import diff as compare
    from edgeq.report.diff import diff_json

    found = compare(read_source(old), read_source(new))
    if html is not None:
        from edgeq.report.html import diff_html

        write_text(html, diff_html(found))
    if as_json:
        say_json(diff_json(found))
    else:
        say(diff_text(found))


def diff_text(found: Diff) -> str:
    """Return the differences as text; a long section is truncated."""
    from edgeq.report.text import aligned, printable

    lines = [f"old: {printable(found.old)}", f"new: {printable(found.new)}"]
    for section, changes in found.sections().items():
        cells = [(one.name, _short(one.told_old), "->", _short(one.told_new), one.delta) for one in changes[:_SHOWN]]
        lines += ["", section, *aligned(cells)]
        if len(changes) > _SHOWN:
            lines.append(f"  and {len(changes) - _SHOWN} more; --json and --html have all")
    if not found.changes:
        lines += ["", "the bundles are equal in all compared facts"]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…"


# --- `edgeq schema`: JSON Schemas of what edgeq reads and writes, for editors and for those who parse it.


def _manifest() -> dict[str, Any]:
    from edgeq.core.manifest import Manifest
    from edgeq.core.schema import json_schema

    return json_schema(Manifest)


def _target() -> dict[str, Any]:
    from edgeq.core.schema import json_schema
    from edgeq.core.targets import TargetProfile

    return json_schema(TargetProfile)


def _verdict() -> dict[str, Any]:
    from edgeq.core.measurement import Verdict
    from edgeq.core.schema import json_schema

    return json_schema(Verdict)


def _printed(name: str) -> Callable[[], dict[str, Any]]:
    def schema_of_it() -> dict[str, Any]:
        from edgeq.report.json import schema_of

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
    """Print the JSON Schema of manifest.json, target files, verdict.json or a --json document."""
    if name not in SCHEMAS:
        raise UsageError(f"unknown schema {name!r}.{nearest(name, SCHEMAS)}", f"schemas: {', '.join(SCHEMAS)}")
    say_json(SCHEMAS[name]())
