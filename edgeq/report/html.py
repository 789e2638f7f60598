"""Pages that need no network, no script and no other file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.report.diff import Diff
from edgeq.report.view import PageView

if TYPE_CHECKING:
    from jinja2 import Environment

HTML_NAME = "report.html"
_HERE = Path(__file__).parent


def to_html(page: PageView) -> str:
    """Return the page of a run; whatever a name holds, it is shown as text."""
    return _environment().get_template("page.html.j2").render(page=page, css=_css())


def diff_html(diff: Diff) -> str:
    """Return the page of a difference."""
    return _environment().get_template("diff.html.j2").render(diff=diff, css=_css())


def _css() -> str:
    return (_HERE / "page.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
