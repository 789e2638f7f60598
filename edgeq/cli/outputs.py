"""Views of a run and their destinations: files, stdout, GitHub Actions."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import edgeq
from edgeq.cli.console import note
from edgeq.core.errors import UsageError, nearest
from edgeq.core.files import disk_errors, write_atomic
from edgeq.core.results.report import DataFacts, ProjectReport

if TYPE_CHECKING:
    import edgeq.pipeline.reports
    import edgeq.report.ci
    import edgeq.report.json
    from edgeq.cli.options import RunParams


ViewName = Literal["html", "json", "junit", "markdown", "github"]

_GITHUB_SUMMARY = "GITHUB_STEP_SUMMARY"


def as_html(report: ProjectReport, folder: Path = Path()) -> str:
    """Return the page of one bundle, or an index whose links start at `folder`; bundles must be at the rows' paths."""
    rows = report.rows
    if not rows:
        raise UsageError("no bundle was built, so there is nothing to show", "see the errors above")
    data = report.models[0].report.data if len(report.models) == 1 and report.models[0].report else DataFacts()
    if len(rows) == 1 and not (report.app or report.refused):
        return edgeq.pipeline.reports.bundle_page(rows[0], data).decode()
    page = edgeq.pipeline.reports.index_page(rows, data, folder=folder, app=report.app, refused=report.refused)
    return page.decode()


def as_json(report: ProjectReport) -> str:
    """Return the document of `edgeq build --json`."""
    return json.dumps(edgeq.report.json.project_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_junit(report: ProjectReport) -> str:
    """Return JUnit XML."""
    return edgeq.report.ci.to_junit(report)


def as_markdown(report: ProjectReport) -> str:
    """Return the summary."""
    return edgeq.report.ci.to_markdown(report)


def as_annotations(report: ProjectReport) -> str:
    """Return a line for each annotation."""
    return "".join(f"{line}\n" for line in edgeq.report.ci.to_annotations(report))


VIEWS: dict[ViewName, Callable[[ProjectReport], str]] = {
    "html": as_html,
    "json": as_json,
    "junit": as_junit,
    "markdown": as_markdown,
    "github": as_annotations,
}


def view(name: str) -> Callable[[ProjectReport], str]:
    """Return the view of a name.

    Raises:
        UsageError: an unknown name; the nearest is offered.
    """
    for known, render in VIEWS.items():
        if known == name:
            return render
    raise UsageError(f"unknown format {name!r}.{nearest(name, VIEWS)}", f"formats: {', '.join(VIEWS)}")


@contextlib.contextmanager
def beside(report: ProjectReport, run: RunParams) -> Iterator[None]:
    """Print the result in the block, and write the requested views.

    JSON is printed last, so that the error document of a failed view does not follow a result document.

    Raises:
        EnvironmentProblem, UsageError: a file cannot be written.
    """
    if run.as_json:
        write_views(report, junit=run.junit, markdown=run.markdown, github=run.github)
        yield
    else:
        yield
        write_views(report, junit=run.junit, markdown=run.markdown, github=run.github)


def write_views(report: ProjectReport, *, junit: Path | None, markdown: Path | None, github: bool) -> None:
    """Write the requested files; with `github`, also annotations on stderr and the job summary.

    Raises:
        EnvironmentProblem, UsageError: a file cannot be written.
    """
    for path, render in ((junit, as_junit), (markdown, as_markdown)):
        if path is not None:
            write_text(path, render(report))
    if github:
        # stdout may be the JSON document; GitHub reads commands from both
        for line in as_annotations(report).splitlines():
            note(line)
        summary = os.environ.get(_GITHUB_SUMMARY)
        if summary:
            with disk_errors(Path(summary)), Path(summary).open("a", encoding="utf-8") as file:
                file.write(as_markdown(report))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        EnvironmentProblem, UsageError: it cannot be written.
    """
    with disk_errors(path):
        write_atomic(path, text.encode(errors="replace"))
