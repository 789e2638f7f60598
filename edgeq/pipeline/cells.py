"""Cells, one target and scheme each: answered from the cache where nothing changed, else made and kept there."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from edgeq.artifacts import DataFacts, Row
from edgeq.errors import EdgeqError, first_line
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.cost import with_cost
from edgeq.pipeline.emulate import Emulator
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import Prepared, prepare
from edgeq.pipeline.produce import Product, Recipe
from edgeq.pipeline.record import Recorder, recording
from edgeq.pipeline.reuse import reusing_product
from edgeq.scheme import NEEDS_CALIBRATION, NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.verify.emulate.wanted import wants_emulation

if TYPE_CHECKING:
    from edgeq.pipeline.maker import Maker
    from edgeq.target import TargetProfile

Finished = dict[str, tuple[Row, DataFacts]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One target and scheme of a run.

    Attributes:
        scheme: its name, or `auto`.
        key: its place in the cache.
    """

    target: TargetProfile
    scheme: str
    key: str

    @property
    def recipe(self) -> Recipe:
        """What the artifact depends on."""
        target = self.target
        return Recipe(
            runtime=target.runtime,
            backend=target.backend,
            scheme=self.scheme,
            threads=target.device.threads,
            reduce_range=target.runtime == "onnx" and not target.device.vnni,
        )

    @property
    def label(self) -> str:
        """The cell in words, for progress."""
        return f"{self.target.name} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A job under way.

    Attributes:
        facts: what the cells' keys are over.
        work: a folder on the disk of the output, gone at the end.
    """

    job: Job
    facts: Mapping[str, Any]
    work: Path
    progress: Progress

    def cell(self, target: TargetProfile, scheme: str) -> Cell:
        """Return a cell of this run, as a run of its own would have it."""
        return plain_cell(self.job, self.facts, target, scheme)

    def folder(self) -> Path:
        """Return a new folder in the work folder."""
        return Path(tempfile.mkdtemp(prefix="cells-", dir=self.work))


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtained:
    """What became of cells, by their keys: most are finished; those whose making failed have its error."""

    finished: Finished
    refused: dict[str, EdgeqError]


def plain_cell(job: Job, facts: Mapping[str, Any], target: TargetProfile, scheme: str, *, note: str = "") -> Cell:
    """Return a cell; `note` tells results apart that hold more than the scheme's bundle."""
    emulated = wants_emulation(target, job.device)
    return Cell(target=target, scheme=scheme, key=cache.cell_key(facts, target, scheme + note, emulated=emulated))


def look_up(cells: Sequence[Cell], work: Path) -> Finished:
    """Return what the cache has, each bundle copied into the work folder."""
    found: Finished = {}
    for index, cell in enumerate(cells):
        hit = cache.look_up(cell.key, work / f"cached-{index}")
        if hit is not None:
            found[cell.key] = hit
    return found


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
    kept = keep(run, made.finished, dependencies)
    return Obtained(finished=found | kept, refused=made.refused)


def _made(
    run: Run, cells: Sequence[Cell], folder: Path, refusals: tuple[type[EdgeqError], ...]
) -> tuple[Obtained, dict[str, str] | None]:
    """Build the cells.

    Returns:
        What was made, and what the user's code looked at; None for the latter where that changed meanwhile.
    """
    from edgeq.pipeline.maker import Maker

    job, groups = run.job, _grouped(cells)
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
            seconds = round(time.perf_counter() - start, 3)
            for cell in group:
                place = folder / f"bundle-{cells.index(cell)}"
                row = _bundled(run, cell, prepared, product, emulator, place, make_s=seconds)
                made.finished[cell.key] = (row, prepared.data)
        return made, recorder.dependencies()


def _prepared(run: Run, cells: Sequence[Cell], maker: Maker, recorder: Recorder) -> Prepared:
    """Load the model and its data; what the user's functions open later is recorded while they run."""
    prepared = prepare(
        run.job,
        run.progress,
        needs_calibration=any(cell.scheme in NEEDS_CALIBRATION for cell in cells),
        needs_training=any(cell.scheme in NEEDS_TRAINING for cell in cells),
        needs_search=any(cell.scheme in NEEDS_SEARCH for cell in cells),
        describe=maker.described,
    )
    recorder.on = False
    check_owner(run.job, prepared.model.name)  # before the minutes that follow
    return dataclasses.replace(
        prepared, metric=_heard(prepared.metric, recorder), train=_heard(prepared.train, recorder)
    )


def _bundled(
    run: Run, cell: Cell, prepared: Prepared, product: Product, emulator: Emulator, place: Path, *, make_s: float
) -> Row:
    """Run a product on its device's kernels, and write its bundle with its reports into a new folder."""
    from edgeq.pipeline.release import bundled

    job, start = run.job, time.perf_counter()
    on_device = emulator.product(prepared, product, cell.target, cell.scheme, cell.label)
    on_device = with_cost(job.gates, job.device, prepared, on_device, cell.target, run.progress)
    row = bundled(job, prepared, on_device, cell.target, cell.scheme, place)
    seconds = {"make": make_s}
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


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _heard(function: Callable[_P, _R] | None, recorder: Recorder) -> Callable[_P, _R] | None:
    """Return a function of the user's with the recorder on while it runs: it may open files only then."""
    if function is None:
        return None
    users = function

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with recorder.listening():
            return users(*args, **kwargs)

    return call


def keep(run: Run, made: Finished, dependencies: Mapping[str, str] | None) -> Finished:
    """Keep what was made in the cache; a cache that cannot be written to costs a warning, not the result.

    Args:
        run: whether there is a cache, and the files as they were at its start.
        made: by the cells' keys.
        dependencies: what the user's code looked at; None where that changed meanwhile.
    """
    # a file that was changed meanwhile may be part of the result or not
    if not run.job.cache or dependencies is None or cache.job_facts(run.job) != run.facts:
        return made
    return {key: (_kept(key, row, data, dependencies), data) for key, (row, data) in made.items()}


def _kept(key: str, row: Row, data: DataFacts, dependencies: Mapping[str, str]) -> Row:
    if _may_pass_later(row):
        return row
    try:
        cache.store(key, row, data, dependencies)
    except (EdgeqError, OSError) as err:
        why = err.what if isinstance(err, EdgeqError) else first_line(err)
        return with_warning(row, f"the result was not kept in the cache: {why}")
    return row


def seen_of(keys: Sequence[str]) -> dict[str, str] | None:
    """Return what the user's code looked at for several results; None where one of them is not in the cache."""
    seen = [cache.dependencies_of(key) for key in keys]
    if any(one is None for one in seen):
        return None
    return {name: state for one in seen if one is not None for name, state in one.items()}


def with_warning(row: Row, text: str) -> Row:
    """Return a row with one more warning."""
    return dataclasses.replace(row, checked=dataclasses.replace(row.checked, warnings=(*row.checked.warnings, text)))


def _may_pass_later(row: Row) -> bool:
    """Whether the same may pass with nothing changed but how busy the machine is: that is to be measured again.

    Load can only lengthen a time, so one that kept its limit is as good from the cache. The peak memory of a run
    differs by what the allocator had at hand.
    """
    verified = row.verified
    if verified.emulation is not None and verified.emulation.problem:
        return True
    predicted = {"latency"} if verified.cost is not None and verified.cost.prediction is not None else set()
    measured = {"latency", "load", "peak_memory"} - predicted
    return any(gate.outcome == "failed" and gate.name in measured for gate in row.checked.gates)


def _grouped(cells: Sequence[Cell]) -> dict[Recipe, list[Cell]]:
    groups: dict[Recipe, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe, []).append(cell)
    return groups
