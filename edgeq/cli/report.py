"""`edgeq report`: existing bundles as an HTML page, JUnit XML, Markdown, JSON or annotations."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options, outputs
from edgeq.cli.console import say, say_json
from edgeq.cli.outputs import as_html, view, write_text
from edgeq.core.errors import UsageError, nearest

if TYPE_CHECKING:
    import edgeq.config.project_file
    import edgeq.core.manifest
    import edgeq.core.measurement
    import edgeq.core.schema
    import edgeq.core.targets
    import edgeq.pipeline.reports
    import edgeq.pipeline.shards
    import edgeq.report.diff
    import edgeq.report.html
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.report.diff import Diff


def report(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE|FOLDER…", help="Bundles, or folders with bundles.")],
    format_: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="html, json, junit, markdown, github, sarif or badge.")
    ] = "html",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. [default: stdout]")
    ] = None,
) -> None:
    """Show the measurements of bundles without running them again.

    Failed gates do not affect the exit code, which only says whether the report could be written.
    """
    render = view(format_)
    if format_ == "html" and output is not None:
        render = functools.partial(as_html, folder=output.parent)
    if output is None and format_ == "html" and sys.stdout.isatty():
        what = "the page is HTML for a browser, and the output is a terminal"
        raise UsageError(what, "give `-o report.html`, or `--format markdown` for a table here")
    text = render(edgeq.pipeline.reports.read_run(bundles))
    if output is None:
        say(text.rstrip("\n"))
    else:
        write_text(output, text)
        say(f"written: {output}")


@options.grouped
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Output folders of all shards of `edgeq build --shard I/N`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Copy all bundles there, and write report.html."),
    ] = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    junit: options.Junit = None,
    markdown: options.Markdown = None,
    github: options.Github = False,
    sarif: options.Sarif = None,
) -> None:
    """Join the shards of a build: one table, the limits of the app as a whole, one exit code.

    The exit code is the lowest of all failures of all shards. A missing shard is an error.
    """
    project = edgeq.config.project_file.read_models(config, ())
    found = edgeq.pipeline.shards.merge_shards(folders, project.models, project.app, out)
    run = options.RunParams(config=config, as_json=as_json, junit=junit, markdown=markdown, github=github, sarif=sarif)
    with outputs.beside(found, run):
        outputs.show(found, edgeq.report.json.project_json(found), (), run)
    raise typer.Exit(found.exit_code)


# --- `edgeq diff`: what changed between two bundles.


_SHOWN = 20


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD_BUNDLE", help="A bundle's folder.")],
    new: Annotated[Path, typer.Argument(metavar="NEW_BUNDLE", help="Folder of the newer bundle.")],
    as_json: options.AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
) -> None:
    """Show the differences between two bundles: sizes, metrics, flips, gates, layers, operators, provenance.

    The exit code is 0 whether they differ or not.
    """
    found = edgeq.report.diff.diff(edgeq.pipeline.reports.read_source(old), edgeq.pipeline.reports.read_source(new))
    if html is not None:
        write_text(html, edgeq.report.html.diff_html(found))
    if as_json:
        say_json(edgeq.report.diff.diff_json(found))
    else:
        say(diff_text(found))


def diff_text(found: Diff) -> str:
    """Return the differences as text; a long section is truncated."""
    lines = [f"old: {edgeq.report.text.printable(found.old)}", f"new: {edgeq.report.text.printable(found.new)}"]
    for section, changes in found.sections().items():
        cells = [
            (one.title, _short(one.told_old), "->", _short(one.told_new), one.delta, one.verdict)
            for one in changes[:_SHOWN]
        ]
        lines += ["", section, *edgeq.report.text.aligned(cells)]
        if len(changes) > _SHOWN:
            lines.append(f"  and {len(changes) - _SHOWN} more; --json and --html have all")
    if found.cause():
        lines += ["", edgeq.report.text.printable(found.cause())]
    if not found.changes:
        lines += ["", "the bundles are equal in all compared facts"]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…"


# --- `edgeq schema`: JSON Schemas of what edgeq reads and writes, for editors and for those who parse it.


def _manifest() -> dict[str, Any]:
    return edgeq.core.schema.json_schema(edgeq.core.manifest.Manifest)


def _target() -> dict[str, Any]:
    return edgeq.core.schema.json_schema(edgeq.core.targets.TargetProfile)


def _verdict() -> dict[str, Any]:
    return edgeq.core.schema.json_schema(edgeq.core.measurement.Verdict)


def _printed(name: str) -> Callable[[], dict[str, Any]]:
    def schema_of_it() -> dict[str, Any]:
        return edgeq.report.json.schema_of(name)

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
