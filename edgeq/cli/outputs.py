"""Views of a run and their destinations: files, stdout, GitHub Actions."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import edgeq
from edgeq.cli.console import note, say, say_json
from edgeq.core.config import PROJECT_FILE
from edgeq.core.errors import EdgeqError, UsageError, nearest
from edgeq.core.files import disk_errors, write_atomic

if TYPE_CHECKING:
    import edgeq.check.gates
    import edgeq.config.project_file
    import edgeq.core.results.report
    import edgeq.pipeline.reports
    import edgeq.report.ci
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.cli.install import Installed
    from edgeq.cli.options import RunParams
    from edgeq.core.results.report import ProjectReport
    from edgeq.report.ci import ProjectLines


ViewName = Literal["html", "json", "junit", "markdown", "github", "sarif", "badge"]

_GITHUB_SUMMARY = "GITHUB_STEP_SUMMARY"

_GITHUB_FOLDER = "GITHUB_WORKSPACE"  # paths of annotations are relative to the repository's root


def as_html(report: ProjectReport, folder: Path = Path()) -> str:
    """Return the page of one bundle, or an index whose links start at `folder`; bundles must be at the rows' paths."""
    rows = report.rows
    if not rows:
        raise UsageError("no bundle was built, so there is nothing to show", "see the errors above")
    only = report.models[0].report if len(report.models) == 1 else None
    data = edgeq.core.results.report.DataFacts() if only is None else only.data
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


def as_sarif(report: ProjectReport) -> str:
    """Return SARIF, without places in a file."""
    return _sarif(report, None)


def _sarif(report: ProjectReport, lines: ProjectLines | None) -> str:
    gates = {name: kind.doc for name, kind in edgeq.check.gates.GATES.items()}
    return edgeq.report.ci.to_sarif(report, version=edgeq.__version__, gates=gates, project=lines)


def as_badge(report: ProjectReport) -> str:
    """Return the badge."""
    return edgeq.report.ci.to_badge(report)


VIEWS: dict[ViewName, Callable[[ProjectReport], str]] = {
    "html": as_html,
    "json": as_json,
    "junit": as_junit,
    "markdown": as_markdown,
    "github": as_annotations,
    "sarif": as_sarif,
    "badge": as_badge,
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


def show(report: ProjectReport, document: dict[str, Any], installed: Sequence[Installed], run: RunParams) -> None:
    """Print the table and what failed; with --json the document, and the text on stderr, where a CI job's log has it.

    With --json and --quiet, only the document is printed.
    """
    stream = sys.stderr if run.as_json else sys.stdout
    if not (run.as_json and run.quiet):
        told = [edgeq.report.text.render_project(report, stream=stream), *(entry.as_text() for entry in installed)]
        (note if run.as_json else say)("\n".join(told))
    if run.as_json:
        say_json({**document, "installed": [entry.as_json() for entry in installed]})


@contextlib.contextmanager
def beside(report: ProjectReport, run: RunParams) -> Iterator[None]:
    """Print the result in the block, and write the requested views.

    JSON is printed last, so that the error document of a failed view does not follow a result document.

    Raises:
        EnvironmentProblem, UsageError: a file cannot be written.
    """
    if run.as_json:
        write_views(report, run)
        yield
    else:
        yield
        write_views(report, run)


def write_views(report: ProjectReport, run: RunParams) -> None:
    """Write the requested files; with --github, also annotations on stderr and the job summary.

    Raises:
        EdgeqError: a file cannot be written, or a bundle of --against is damaged.
    """
    base = None if run.against is None else edgeq.pipeline.reports.read_base(run.against)
    if run.junit is not None:
        write_text(run.junit, as_junit(report))
    if run.markdown is not None:
        write_text(run.markdown, edgeq.report.ci.to_markdown(report, base))
    _write_findings(report, run)
    summary = os.environ.get(_GITHUB_SUMMARY) if run.github else None
    if summary:
        with disk_errors(Path(summary)), Path(summary).open("a", encoding="utf-8") as file:
            file.write(edgeq.report.ci.to_markdown(report, base))


def check_dry_run(run: RunParams) -> None:
    """Refuse files that --dry-run has nothing for: what they say of gates would be empty, and look like a success.

    Raises:
        UsageError: one of them was asked for.
    """
    asked = {"--junit": run.junit, "--markdown": run.markdown, "--against": run.against}
    given = [option for option, value in asked.items() if value is not None]
    if run.dry_run and given:
        what = f"{given[0]} shows what was built, but --dry-run builds nothing"
        raise UsageError(what, "omit it; --sarif FILE and --github show what --dry-run finds")


def _write_findings(report: ProjectReport, run: RunParams) -> None:
    path = run.config or Path(PROJECT_FILE)
    lines = None
    if (run.github or run.sarif is not None) and path.is_file():
        place = Path(os.path.relpath(path, os.environ.get(_GITHUB_FOLDER) or None)).as_posix()
        lines = edgeq.report.ci.ProjectLines(file=place, lines=edgeq.config.project_file.lines_of(path))
    if run.sarif is not None:
        write_text(run.sarif, _sarif(report, lines))
    # stdout may be the JSON document; GitHub reads commands from both
    for line in edgeq.report.ci.to_annotations(report, lines) if run.github else ():
        note(line)


@contextlib.contextmanager
def errors_shown(run: RunParams) -> Iterator[None]:
    """Write an error that ends the block, or its findings, as SARIF and annotations too; of --dry-run also none.

    Raises:
        EdgeqError: that error.
    """
    try:
        yield
    except EdgeqError as err:
        _write_findings(edgeq.core.results.report.of_errors(err), run)
        raise
    if run.dry_run:
        _write_findings(edgeq.core.results.report.ProjectReport(models=()), run)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        EnvironmentProblem, UsageError: it cannot be written.
    """
    with disk_errors(path):
        write_atomic(path, text.encode(errors="replace"))
