"""Making cells: those of one recipe together, answered from the cache where nothing changed, else kept there."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import DataFacts, Row
from edgeq.errors import EdgeqError
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.cells import Cell, Finished, grouped, look_up, stored
from edgeq.pipeline.cost import with_cost
from edgeq.pipeline.emulate import Emulator
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import prepare
from edgeq.pipeline.record import Recorder, recording
from edgeq.pipeline.reuse import reusing_product
from edgeq.verify.emulate.wanted import wants_emulation

if TYPE_CHECKING:
    from edgeq.pipeline.maker import Maker
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job under way.

    Attributes:
        facts: what the cells' keys are over.
        work: a folder on the disk of the output, gone at the end.
        deflated: what files that were written come to in a ZIP, by their sha256; targets share artifacts.
    """

    job: Job
    facts: Mapping[str, Any]
    work: Path
    progress: Progress
    deflated: dict[str, int] = dataclasses.field(default_factory=dict)

    def folder(self) -> Path:
        """Return a new folder in the work folder."""
        return Path(tempfile.mkdtemp(prefix="cells-", dir=self.work))


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtained:
    """What became of cells, by their keys: most are finished; those whose making failed have its error."""

    finished: Finished
    refused: dict[str, EdgeqError]


def obtain(run: Run, cells: Sequence[Cell], *, refusals: tuple[type[EdgeqError], ...] = ()) -> Obtained:
    """Return cells from the cache; make what is missing, cells of one recipe together, and keep it there.

    Args:
        run: whose cells they are.
        cells: of named schemes.
        refusals: errors in making an artifact that end that cell alone; all others are raised.
    """
    folder = run.folder()
    found = look_up(cells, folder) if run.job.cache else {}
    missing = tuple(cell for cell in cells if cell.key not in found)
    if not missing:
        return Obtained(finished=found, refused={})
    made, dependencies = _made(run, missing, folder, refusals)
    return Obtained(finished=found | keep(run, made.finished, dependencies), refused=made.refused)


def keep(run: Run, made: Finished, dependencies: Mapping[str, str] | None) -> Finished:
    """Keep results in the cache, where there is one, and return them.

    Args:
        run: the job, and its files as they were at its start.
        made: by the cells' keys.
        dependencies: what the user's code looked at; None where that changed meanwhile.
    """
    # a file that was changed meanwhile may be part of the result or not
    if not run.job.cache or dependencies is None or cache.job_facts(run.job) != run.facts:
        return made
    return stored(made, dependencies)


def seen_of(keys: Sequence[str]) -> dict[str, str] | None:
    """Return what the user's code looked at for several results; None where one of them is not in the cache."""
    seen = [cache.dependencies_of(key) for key in keys]
    if any(one is None for one in seen):
        return None
    return {name: state for one in seen if one is not None for name, state in one.items()}


def _made(
    run: Run, cells: Sequence[Cell], folder: Path, refusals: tuple[type[EdgeqError], ...]
) -> tuple[Obtained, dict[str, str] | None]:
    """Build the cells.

    Returns:
        What was made, and what the user's code looked at; None for the latter where that changed meanwhile.
    """
    from edgeq.pipeline.maker import Maker

    job, groups = run.job, grouped(cells)
    emulator = Emulator(job.device, run.progress)
    emulator.prepare(tuple(cell.target for cell in cells))
    products = len(groups) * (1 if job.reuse_qparams_from is None else 2)
    made = Obtained(finished={}, refused={})
    with Maker(job, folder, run.progress, products=products) as maker, recording() as recorder:
        prepared = _prepared(run, cells, maker, recorder)
        for recipe, group in groups.items():
            start = time.perf_counter()
            emulated = any(wants_emulation(cell.target, job.device) for cell in group)
            try:
                product = reusing_product(job, maker, prepared, recipe, group[0].label, emulated=emulated)
            except refusals as err:
                made.refused.update((cell.key, err) for cell in group)
                continue
            made_s = time.perf_counter() - start
            for cell in group:
                place = folder / f"bundle-{cells.index(cell)}"
                row = _bundled(run, prepared, product, cell, place, emulator, made_s)
                made.finished[cell.key] = (row, prepared.data)
        return made, recorder.dependencies()


def _prepared(run: Run, cells: Sequence[Cell], maker: Maker, recorder: Recorder) -> Prepared:
    """Load the model and its data; what the user's functions open later is recorded while they run."""
    schemes = frozenset(cell.scheme for cell in cells)
    prepared = prepare(run.job, run.progress, schemes=schemes, describe=maker.described)
    recorder.on = False
    check_owner(run.job, prepared.model.name)  # before the minutes that follow
    return dataclasses.replace(prepared, metric=recorder.heard(prepared.metric), train=recorder.heard(prepared.train))


def _bundled(
    run: Run, prepared: Prepared, product: Product, cell: Cell, place: Path, emulator: Emulator, made_s: float
) -> Row:
    """Run the product on the cell's device, and write the bundle with its report and its page."""
    from edgeq.pipeline.release import bundled

    job, start = run.job, time.perf_counter()
    on_device = emulator.product(prepared, product, cell.target, cell.scheme, cell.label)
    on_device = with_cost(job.gates, job.device, prepared, on_device, cell.target, run.progress)
    row = bundled(job, prepared, on_device, cell.target, cell.scheme, place, deflated=run.deflated)
    seconds = {"make": round(made_s, 3)}
    if on_device is not product:
        seconds["emulate"] = round(time.perf_counter() - start, 3)
    return write_reports(dataclasses.replace(row, seconds=seconds), prepared.data)


def write_reports(row: Row, data: DataFacts) -> Row:
    """Write what a run tells of a row beside its bundle, in place of what is there, and return the row."""
    from edgeq.bundle.report import write_report
    from edgeq.pipeline.pages import page_title, write_page

    write_report(row.path, row)
    write_page(row.path, (row,), data, title=page_title(row))
    return row
