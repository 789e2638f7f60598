"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from edgeq._io import copy_files, disk_errors, lock_dir, remove_dir, staged_dir
from edgeq.artifacts import BuildReport, DataFacts, Row
from edgeq.device import check_cost_options
from edgeq.errors import EdgeqError, EnvironmentProblem, UnsupportedError, first_line
from edgeq.extras import check_extras
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.cost import with_cost
from edgeq.pipeline.emulate import Emulator
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import REJECTED_NAME, prepare, with_demo_data
from edgeq.pipeline.produce import Recipe
from edgeq.pipeline.record import Recorder, recording
from edgeq.pipeline.reuse import check_reuse, reusing_product
from edgeq.scheme import NEEDS_CALIBRATION, NEEDS_SEARCH, NEEDS_TRAINING
from edgeq.target import why_not_run
from edgeq.verify.emulate.wanted import check_tools, wants_emulation

if TYPE_CHECKING:
    from edgeq.target import TargetProfile

WORK_NAME = ".edgeq-work"
_LEAST_FREE_BYTES = 64 * 1024


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
        return Recipe(
            runtime=target.runtime,
            backend=target.backend,
            scheme=self.scheme,
            threads=target.device.threads,
            reduce_range=target.runtime == "onnx" and not target.device.vnni,
            file_format=target.file_format,
        )

    @property
    def label(self) -> str:
        """The cell in words, for progress."""
        return f"{self.target.name} {self.scheme}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job with what is there of it already.

    Attributes:
        facts: what the cells' keys are over.
        finished: by the cells' keys.
    """

    job: Job
    facts: dict[str, Any]
    cells: tuple[Cell, ...]
    finished: dict[str, tuple[Row, DataFacts]]

    @property
    def missing(self) -> tuple[Cell, ...]:
        """The cells that are still to be made."""
        return tuple(cell for cell in self.cells if cell.key not in self.finished)


def build(job: Job, progress: Progress) -> BuildReport:
    """Package a model for every target and scheme of `job`.

    Bundles whose gates passed lie in `OUT/<model>/<target>/`, others in `OUT/rejected/…`. On any error nothing that
    was there before is touched, and nothing is left behind.

    Raises:
        EdgeqError: a step's own errors; a failed gate is no error but a row of the report.
    """
    job = with_demo_data(job)
    check_job(job)
    with disk_errors(job.out), lock_dir(job.out, wait_s=0), work_folder(job.out) as work:
        report = publish(complete(plan(job, work), work, progress))
        if len(report.rows) > 1:
            from edgeq.pipeline.pages import write_page

            title = f"{report.rows[0].model} for {len(report.rows)} targets"
            write_page(job.out, report.rows, report.data, title=title)
    return report


def check_job(job: Job) -> None:
    """Check before a long run what would end it; raises what the steps would."""
    from edgeq.check.gates import validate_options
    from edgeq.lower.delegates import check_delegates

    validate_options(job.gates, job.targets)
    check_delegates(tuple(target.backend for target in job.targets))
    check_extras([*(target.runtime for target in job.targets), *(["onnx"] if job.source.endswith(".onnx") else [])])
    _check_pixels(job)
    check_tools(job.device, job.targets)
    check_cost_options(job.gates, job.targets)
    check_reuse(job)


def _check_pixels(job: Job) -> None:
    """Refuse bytes as inputs where nothing here could show that they are taken rightly."""
    unrun = next((target for target in job.targets if why_not_run(target.backend)), None)
    if job.input_dtype is not None and unrun is not None:
        what = f"--input-dtype {job.input_dtype} was never seen to work on {unrun.name}: {why_not_run(unrun.backend)}"
        raise UnsupportedError(what, "leave out --input-dtype, or this target")


def plan(job: Job, work: Path) -> Plan:
    """Return the job's cells, and those that the cache has, each bundle copied into the work folder."""
    facts = cache.job_facts(job)
    cells = _cells(job, facts)
    return Plan(job=job, facts=facts, cells=cells, finished=_cached(cells, work) if job.cache else {})


def complete(planned: Plan, work: Path, progress: Progress) -> Plan:
    """Make what is missing, and keep it in the cache; raises the steps' own errors."""
    missing, job = planned.missing, planned.job
    if not missing:
        return planned
    made, dependencies = _made(job, missing, work, progress)
    # a file that was changed meanwhile may be part of the result or not
    if job.cache and dependencies is not None and cache.job_facts(job) == planned.facts:
        made = _stored(made, dependencies)
    return dataclasses.replace(planned, finished=planned.finished | made)


def _cells(job: Job, facts: Mapping[str, Any]) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            target=target,
            scheme=scheme,
            key=cache.cell_key(facts, target, scheme, emulated=wants_emulation(target, job.device)),
        )
        for target in job.targets
        for scheme in (job.schemes or target.schemes[:1])
    )


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `out`; what a killed run left there goes first."""
    work = out / WORK_NAME
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    except Exception as err:
        # torch reports a full disk in its own words
        if not isinstance(err, EnvironmentProblem | OSError) and shutil.disk_usage(work).free < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work)) from err
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


_Finished = dict[str, tuple[Row, DataFacts]]
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _cached(cells: tuple[Cell, ...], work: Path) -> _Finished:
    """Return what the cache has, each bundle copied into the work folder."""
    found: _Finished = {}
    for index, cell in enumerate(cells):
        hit = cache.look_up(cell.key, work / f"cached-{index}")
        if hit is not None:
            found[cell.key] = hit
    return found


def _made(job: Job, cells: tuple[Cell, ...], work: Path, progress: Progress) -> tuple[_Finished, dict[str, str] | None]:
    """Build the cells, cells of one recipe together.

    Returns:
        What was made, and what the user's code looked at; None for the latter where that changed meanwhile.
    """
    from edgeq.bundle.report import write_report
    from edgeq.pipeline.maker import Maker
    from edgeq.pipeline.pages import page_title, write_page
    from edgeq.pipeline.release import bundled

    groups = _grouped(cells)
    emulator = Emulator(job.device, progress)
    emulator.prepare(tuple(cell.target for cell in cells))
    products = len(groups) * (1 if job.reuse_qparams_from is None else 2)
    with Maker(job, work, progress, products=products) as maker, recording() as recorder:
        prepared = prepare(
            job,
            progress,
            needs_calibration=any(cell.scheme in NEEDS_CALIBRATION for cell in cells),
            needs_training=any(cell.scheme in NEEDS_TRAINING for cell in cells),
            needs_search=any(cell.scheme in NEEDS_SEARCH for cell in cells),
            describe=maker.described,
        )
        recorder.on = False
        check_owner(job, prepared.model.name)  # before the minutes that follow
        prepared = dataclasses.replace(
            prepared, metric=_heard(prepared.metric, recorder), train=_heard(prepared.train, recorder)
        )
        finished: _Finished = {}
        for recipe, group in groups.items():
            start = time.perf_counter()
            emulated = any(wants_emulation(cell.target, job.device) for cell in group)
            product = reusing_product(job, maker, prepared, recipe, group[0].label, emulated=emulated)
            seconds = {"make": round(time.perf_counter() - start, 3)}
            for cell in group:
                place = work / f"bundle-{cells.index(cell)}"
                start = time.perf_counter()
                on_device = emulator.product(prepared, product, cell.target, cell.scheme, cell.label)
                on_device = with_cost(job.gates, job.device, prepared, on_device, cell.target, progress)
                row = bundled(job, prepared, on_device, cell.target, cell.scheme, place)
                if on_device is not product:
                    seconds = seconds | {"emulate": round(time.perf_counter() - start, 3)}
                row = dataclasses.replace(row, seconds=seconds)
                write_report(place, row)
                write_page(place, (row,), prepared.data, title=page_title(row))
                finished[cell.key] = (row, prepared.data)
        return finished, recorder.dependencies()


def _heard(function: Callable[_P, _R] | None, recorder: Recorder) -> Callable[_P, _R] | None:
    """Return a function of the user's with the recorder on while it runs: it may open files only then."""
    if function is None:
        return None
    users = function

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with recorder.listening():
            return users(*args, **kwargs)

    return call


def _stored(made: _Finished, dependencies: Mapping[str, str]) -> _Finished:
    """Keep what was made in the cache; a cache that cannot be written to costs a warning, not the result."""
    kept = {}
    for key, (row, data) in made.items():
        if _may_pass_later(row):
            kept[key] = (row, data)
            continue
        try:
            cache.store(key, row, data, dependencies)
        except (EdgeqError, OSError) as err:
            why = err.what if isinstance(err, EdgeqError) else first_line(err)
            warning = f"the result was not kept in the cache: {why}"
            checked = dataclasses.replace(row.checked, warnings=(*row.checked.warnings, warning))
            row = dataclasses.replace(row, checked=checked)
        kept[key] = (row, data)
    return kept


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


def _grouped(cells: tuple[Cell, ...]) -> dict[Recipe, list[Cell]]:
    groups: dict[Recipe, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe, []).append(cell)
    return groups


def publish(planned: Plan) -> BuildReport:
    """Switch every bundle into its place: accepted ones under the model's name, others under `rejected/`."""

    job, cells, finished = planned.job, planned.cells, planned.finished
    for name in {row.model for row, _ in finished.values()}:
        check_owner(job, name)
    rows: list[Row] = []
    replaced: list[Path] = []
    # all are copied before the first is switched: a disk that fills up leaves what was there
    with contextlib.ExitStack() as switches:
        for cell in cells:
            row, _ = finished[cell.key]
            name, former = cell.target.name, f"{cell.target.name}@{cell.scheme}"
            if len(job.schemes) > 1:
                name, former = former, name
            accepted, rejected = (root / row.model / name for root in (job.out, job.out / REJECTED_NAME))
            place, other = (rejected, accepted) if row.checked.exit_code else (accepted, rejected)
            copy_files(row.path, switches.enter_context(staged_dir(place)))
            rows.append(dataclasses.replace(row, path=place))
            replaced += [other, *(side.with_name(former) for side in (accepted, rejected))]
    for other in replaced:
        # a bundle of an earlier run must not pass for this one's
        remove_dir(other, below=job.out)
    return BuildReport(rows=tuple(rows), data=finished[cells[0].key][1])
