"""`edgeq diff`: what changed between two bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.cli import flags
from edgeq.cli.columns import aligned, printable
from edgeq.cli.output import say, say_json
from edgeq.cli.views import write_text

if TYPE_CHECKING:
    from edgeq.report.diff import Diff

_SHOWN = 20


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD_BUNDLE", help="A bundle's folder.")],
    new: Annotated[Path, typer.Argument(metavar="NEW_BUNDLE", help="Another one's.")],
    as_json: flags.AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.")] = None,
) -> None:
    """Show what differs between two bundles: sizes, metrics, flips, gates, layers, operators, provenance.

    The exit code is 0 whether they differ or not.
    """
    from edgeq.pipeline.pages import read_source
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
    """Return the differences for people; of a long section the first ones."""
    lines = [f"old: {printable(found.old)}", f"new: {printable(found.new)}"]
    for section, changes in found.sections().items():
        cells = [(one.name, _short(one.told_old), "->", _short(one.told_new), one.delta) for one in changes[:_SHOWN]]
        lines += ["", section, *aligned(cells)]
        if len(changes) > _SHOWN:
            lines.append(f"  and {len(changes) - _SHOWN} more; --json and --html have all")
    if not found.changes:
        lines += ["", "the bundles are equal in everything that is compared"]
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…"
