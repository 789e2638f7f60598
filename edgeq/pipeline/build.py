"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq._io import disk_errors, lock_dir, remove_dir, staged_dir
from edgeq.artifacts import BuildReport, DataFacts, Row
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.prepare import prepare, with_demo_data
from edgeq.pipeline.produce import Recipe
from edgeq.pipeline.record import recording

if TYPE_CHECKING:
    from edgeq.target import TargetProfile

WORK_NAME = ".edgeq-work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One target and scheme of a run.

    Attributes:
        key: its place in the cache.
    """

    target: TargetProfile
    scheme: str
    key: str

    @property
    def recipe(self) -> Recipe:
        """What the artifact depends on."""
        target = self.target
        return Recipe(runtime=target.runtime, backend=target.backend, scheme=self.scheme, threads=target.device.threads)

    @property
    def label(self) -> str:
        """The cell in words, for progress."""
        return f"{self.target.name} {self.scheme}"


def build(job: Job, progress: Progress) -> BuildReport:
    """Package a model for every target and scheme of `job`.

    Bundles whose gates passed lie in `OUT/<model>/<target>/`, others in `OUT/rejected/…`. On any error nothing that
    was there before is touched, and nothing is left behind.

    Raises:
        EdgeqError: a step's own errors; a failed gate is no error but a row of the report.
    """
    from edgeq.check.gates import validate_options

    job = with_demo_data(job)
    validate_options(job.gates, job.targets)
    cells = _cells(job)
    with disk_errors(job.out), lock_dir(job.out, wait_s=0), _work_folder(job.out) as work:
        known = _cached(cells, work) if job.cache else {}
        missing = tuple(cell for cell in cells if cell.key not in known)
        made = _made(job, missing, work, progress) if missing else {}
        return _published(job, cells, {**known, **made})


def _cells(job: Job) -> tuple[Cell, ...]:
    return tuple(
        Cell(target=target, scheme=scheme, key=cache.cell_key(job, target, scheme))
        for target in job.targets
        for scheme in (job.schemes or target.schemes[:1])
    )


@contextlib.contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`; what a killed run left there goes first."""
    work = out / WORK_NAME
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


_Finished = dict[str, tuple[Row, DataFacts]]


def _cached(cells: tuple[Cell, ...], work: Path) -> _Finished:
    """Return what the cache has, each bundle copied into the work folder."""
    found: _Finished = {}
    for index, cell in enumerate(cells):
        hit = cache.look_up(cell.key, work / f"cached-{index}")
        if hit is not None:
            found[cell.key] = hit
    return found


def _made(job: Job, cells: tuple[Cell, ...], work: Path, progress: Progress) -> _Finished:
    """Build the cells, cells of one recipe together, and store them in the cache."""
    from edgeq.bundle.report import write_report
    from edgeq.pipeline.maker import Maker
    from edgeq.pipeline.release import bundled
    from edgeq.quantize import NEEDS_CALIBRATION

    groups = _grouped(cells)
    with recording() as recorder, Maker(job, work, progress, products=len(groups)) as maker:
        prepared = prepare(
            job,
            progress,
            needs_calibration=any(cell.scheme in NEEDS_CALIBRATION for cell in cells),
            describe=maker.described,
        )
        recorder.on = False
        dependencies = recorder.dependencies()
        finished: _Finished = {}
        for recipe, group in groups.items():
            start = time.perf_counter()
            product = maker.product(prepared, recipe, group[0].label)
            seconds = time.perf_counter() - start
            for cell in group:
                place = work / f"bundle-{cells.index(cell)}"
                row = bundled(job, prepared, product, cell.target, cell.scheme, place)
                row = dataclasses.replace(row, seconds={"make": round(seconds, 3)})
                write_report(place, row)
                finished[cell.key] = (row, prepared.data)
    if job.cache:
        for key, (row, data) in finished.items():
            cache.store(key, row, data, dependencies)
    return finished


def _grouped(cells: tuple[Cell, ...]) -> dict[Recipe, list[Cell]]:
    groups: dict[Recipe, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe, []).append(cell)
    return groups


def _published(job: Job, cells: tuple[Cell, ...], finished: _Finished) -> BuildReport:
    """Switch every bundle into its place: accepted ones under the model's name, others under `rejected/`."""
    rows = []
    for cell in cells:
        row, _ = finished[cell.key]
        name = cell.target.name if len(job.schemes) < 2 else f"{cell.target.name}@{cell.scheme}"
        accepted, rejected = (root / row.model / name for root in (job.out, job.out / "rejected"))
        place, other = (rejected, accepted) if row.checked.exit_code else (accepted, rejected)
        with staged_dir(place) as staging:
            shutil.copytree(row.path, staging, dirs_exist_ok=True)
        # a bundle of an earlier run must not pass for this one's
        remove_dir(other, below=job.out)
        rows.append(dataclasses.replace(row, path=place))
    return BuildReport(rows=tuple(rows), data=finished[cells[0].key][1])
