"""report.html: a page that needs no network, no script and no other file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.report.view import PageView

if TYPE_CHECKING:
    from jinja2 import Template

HTML_NAME = "report.html"
_HERE = Path(__file__).parent


def to_html(page: PageView) -> str:
    """Return the page; whatever a name holds, it is shown as text."""
    return _template().render(page=page, css=(_HERE / "page.css").read_text(encoding="utf-8"))


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")
