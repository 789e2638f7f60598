"""Pages of bundles and of a run: from rows and manifests to report.html; and back from bundles on disk."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from edgeq.bundle.reader import read_bundle, read_manifest
from edgeq.bundle.run_report import read_report_of
from edgeq.core.errors import EdgeqError, UsageError
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
from edgeq.core.units import counted
from edgeq.report.html import HTML_NAME, bundle_html, bundle_view, index_html, index_view


def write_bundle_page(row: PackageResult, data: DataFacts) -> None:
    """Write report.html beside a bundle, which must lie where the row's `path` says.

    Raises:
        IntegrityError: the manifest is broken.
        EnvironmentProblem: the manifest cannot be read, the disk is full, or not writable.
    """
    page = bundle_page(row, data)
    with disk_errors(row.path):
        write_atomic(row.path / HTML_NAME, page)


def bundle_page(row: PackageResult, data: DataFacts) -> bytes:
    """Return a bundle's page; raises what reading its manifest does."""
    source = Source(row=row, manifest=read_manifest(row.path)[1])
    title = f"{row.model} for {row.target}, {row.scheme}"
    return bundle_html(bundle_view(source, data, title=title)).encode(errors="replace")


def write_index(
    folder: Path,
    rows: Sequence[PackageResult],
    data: DataFacts,
    *,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
) -> None:
    """Write report.html of a run into its output folder: cards that link to the pages of all bundles below it.

    Bundles of earlier runs are listed too, so that a run of one model does not hide the others.

    Raises:
        IntegrityError: a row's manifest is broken.
        EnvironmentProblem: a manifest cannot be read, the disk is full, or not writable.
    """
    made = {row.path.resolve() for row in rows}
    earlier, unread = [], []
    for place in find_bundles(folder):
        if place.resolve() not in made:
            try:
                earlier.append(read_source(place))
            except EdgeqError as err:
                unread.append((str(place), err.what, err.fix))
    page = index_page(
        rows, data, folder=folder, app=app, broken=broken, refused=refused, earlier=earlier, unread=unread
    )
    with disk_errors(folder):
        write_atomic(folder / HTML_NAME, page)


def index_page(
    rows: Sequence[PackageResult],
    data: DataFacts,
    *,
    folder: Path,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
    earlier: Sequence[Source] = (),
    unread: Sequence[tuple[str, str, str]] = (),
) -> bytes:
    """Return the page of a run, whose links start at `folder`; raises what reading the rows' manifests does."""
    sources = [Source(row=row, manifest=read_manifest(row.path)[1]) for row in rows]
    models = dict.fromkeys([*(row.model for row in rows), *(one.name for one in broken)])
    name = next(iter(models)) if len(models) == 1 else counted(len(models), "model")
    view = index_view(
        sources,
        data,
        title=f"{name}, {counted(len(rows), 'bundle')}",
        link=lambda row: _link(row.path, folder),
        app=app,
        broken=broken,
        refused=refused,
        earlier=earlier,
        unread=unread,
    )
    return index_html(view).encode(errors="replace")


def _link(bundle: Path, folder: Path) -> str:
    """Return the address of a bundle's page as seen from a folder; "" where it has none."""
    page = bundle / HTML_NAME
    return urllib.parse.quote(os.path.relpath(page, folder)) if page.is_file() else ""


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


def find_bundles(folder: Path) -> list[Path]:
    """Return the bundles below a folder; names that start with a dot are work folders, and are skipped."""
    found = [path.parent for path in folder.rglob(MANIFEST_NAME) if not _is_hidden(path.relative_to(folder))]
    return sorted(found)


def _bundles(place: Path) -> list[Path]:
    if (place / MANIFEST_NAME).is_file():
        return [place]
    found = find_bundles(place)
    if not found:
        what = f"no bundle in {place}: expected {MANIFEST_NAME} in it, or below"
        raise UsageError(what, "give the folder that `edgeq package` or `edgeq build` wrote")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_source(folder: Path) -> Source:
    """Return a bundle's manifest and what report.json says of it; raises what `read_run` does."""
    bundle = read_bundle(folder)
    return Source(row=read_report_of(bundle), manifest=bundle.manifest)
