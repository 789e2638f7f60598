"""Pages of a run: from its rows, and the manifests beside them, to report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeq._io import disk_errors, write_atomic
from edgeq.artifacts import DataFacts, Row


def write_page(folder: Path, rows: Sequence[Row], data: DataFacts, *, title: str) -> None:
    """Write report.html into a folder; each row's bundle must lie where its `path` says.

    Raises:
        IntegrityError: a row's manifest is broken.
        EnvironmentProblem: a manifest cannot be read, the disk is full, or not writable.
    """
    from edgeq.bundle.reader import read_manifest
    from edgeq.report.html import HTML_NAME, to_html
    from edgeq.report.view import Source, page_view

    sources = [Source(row=row, manifest=read_manifest(row.path)[1]) for row in rows]
    page = to_html(page_view(sources, data, title=title))
    with disk_errors(folder):
        write_atomic(folder / HTML_NAME, page.encode(errors="replace"))
