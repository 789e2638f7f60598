"""`edgeq report`: bundles that are there, as a page, JUnit XML, Markdown, JSON or annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.output import say
from edgeq.cli.views import view, write_text


def report(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE|FOLDER…", help="Bundles, or folders that hold some.")
    ],
    format_: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="html, json, junit, markdown or github.")
    ] = "html",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write; stdout if not given.")
    ] = None,
) -> None:
    """Show what bundles were measured to be, without running them again.

    Failed gates change nothing here: the exit code says whether the report could be made.
    """
    from edgeq.pipeline.pages import read_run

    render = view(format_)
    text = render(read_run(bundles))
    if output is None:
        say(text.rstrip("\n"))
    else:
        write_text(output, text)
        say(f"written: {output}")
