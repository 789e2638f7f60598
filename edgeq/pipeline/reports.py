"""Pages of a run: from its rows, and the manifests beside them, to report.html; and back from bundles on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeq.bundle.reader import read_bundle, read_manifest
from edgeq.bundle.run_report import read_report_of
from edgeq.core.errors import UsageError
from edgeq.core.files import disk_errors, write_atomic
from edgeq.core.manifest import MANIFEST_NAME
from edgeq.core.results.report import (
    DataFacts,
    Gate,
    ModelResult,
    PackageResult,
    ProjectReport,
    Refusal,
    RunReport,
    Source,
)
from edgeq.report.html import HTML_NAME, page_view, to_html


def page_title(row: PackageResult) -> str:
    """Return the heading of a bundle's own page."""
    return f"{row.model} for {row.target}, {row.scheme}"


def write_page(
    folder: Path,
    rows: Sequence[PackageResult],
    data: DataFacts,
    *,
    title: str,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
) -> None:
    """Write report.html into a folder; each row's bundle must lie where its `path` says.

    Raises:
        IntegrityError: a row's manifest is broken.
        EnvironmentProblem: a manifest cannot be read, the disk is full, or not writable.
    """
    page = page_of(rows, data, title=title, app=app, broken=broken, refused=refused)
    with disk_errors(folder):
        write_atomic(folder / HTML_NAME, page)


def page_of(
    rows: Sequence[PackageResult],
    data: DataFacts,
    *,
    title: str,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
) -> bytes:
    """Return a page; raises what reading the rows' manifests does."""
    sources = [Source(row=row, manifest=read_manifest(row.path)[1]) for row in rows]
    return to_html(page_view(sources, data, title=title, app=app, broken=broken, refused=refused)).encode(
        errors="replace"
    )


def read_base(folder: Path) -> ProjectReport:
    """Return what the bundles of another run say; nothing where a folder has none yet.

    Raises:
        EdgeqError: what `read_run` raises.
    """
    return read_run([folder]) if any(folder.rglob(MANIFEST_NAME)) else ProjectReport(models=())


def read_run(places: Sequence[Path]) -> ProjectReport:
    """Return what the bundles say that lie in, or below, `places`.

    Raises:
        UsageError: there is no bundle, or no report beside it.
        IntegrityError: a bundle's files differ from its list, or the report is another bundle's, or contradicts the
            manifest.
        UnsupportedError: a newer edgeq wrote it.
        EnvironmentProblem: a file cannot be read.
    """
    rows = [read_source(folder).row for place in places for folder in _bundles(place)]
    models = dict.fromkeys(row.model for row in rows)
    return ProjectReport(
        models=tuple(
            ModelResult(
                name=model,
                report=RunReport(rows=tuple(row for row in rows if row.model == model), data=DataFacts()),
            )
            for model in models
        )
    )


def _bundles(place: Path) -> list[Path]:
    if (place / MANIFEST_NAME).is_file():
        return [place]
    # what starts with a dot is half-written, or on its way out
    found = [path.parent for path in place.rglob(MANIFEST_NAME) if not _is_hidden(path.relative_to(place))]
    if not found:
        what = f"no bundle in {place}: expected {MANIFEST_NAME} in it, or below"
        raise UsageError(what, "give the folder that `edgeq package` or `edgeq build` wrote")
    return sorted(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_source(folder: Path) -> Source:
    """Return a bundle's manifest and what report.json says of it; raises what `read_run` does."""
    bundle = read_bundle(folder)
    return Source(row=read_report_of(bundle), manifest=bundle.manifest)
