"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq._io import disk_errors, lock_dir
from edgeq.artifacts import BuildReport, Row
from edgeq.device import check_cost_options
from edgeq.errors import EnvironmentProblem, UnsupportedError
from edgeq.extras import check_extras
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.cells import Cell, Finished, Plan, grouped, plan, stored
from edgeq.pipeline.cost import with_cost
from edgeq.pipeline.emulate import Emulator
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import prepare, with_demo_data
from edgeq.pipeline.publish import publish
from edgeq.pipeline.record import recording
from edgeq.pipeline.reuse import check_reuse, reusing_product
from edgeq.target import why_not_run
from edgeq.verify.emulate.wanted import check_tools, wants_emulation

if TYPE_CHECKING:
    from edgeq.pipeline.prepare import Prepared
    from edgeq.pipeline.product import Product

WORK_NAME = ".edgeq-work"
_LEAST_FREE_BYTES = 64 * 1024


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
    _check_inputs(job)
    check_tools(job.device, job.targets)
    check_cost_options(job.gates, job.targets)
    check_reuse(job)


def _check_inputs(job: Job) -> None:
    """Refuse what some target cannot take as inputs, or where nothing here could show that it does."""
    for target in job.targets:
        if job.input_dtype is not None and (why := why_not_run(target.backend)):
            what = f"--input-dtype {job.input_dtype} was never seen to work on {target.name}: {why}"
            raise UnsupportedError(what, "leave out --input-dtype, or this target")
        if job.dynamic_batch and target.runtime != "onnx":
            what = (
                f"--dynamic-batch is for ONNX targets; {target.name} runs {target.runtime}, one batch size an artifact"
            )
            raise UnsupportedError(what, "leave it out, and give --input with the batch that the app feeds")


def complete(planned: Plan, work: Path, progress: Progress) -> Plan:
    """Make what is missing, and keep it in the cache; raises the steps' own errors."""
    missing, job = planned.missing, planned.job
    if not missing:
        return planned
    made, dependencies = _made(job, missing, work, progress)
    # a file that was changed meanwhile may be part of the result or not
    if job.cache and dependencies is not None and cache.job_facts(job) == planned.facts:
        made = stored(made, dependencies)
    return dataclasses.replace(planned, finished=planned.finished | made)


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


def _made(job: Job, cells: tuple[Cell, ...], work: Path, progress: Progress) -> tuple[Finished, dict[str, str] | None]:
    """Build the cells, cells of one recipe together.

    Returns:
        What was made, and what the user's code looked at; None for the latter where that changed meanwhile.
    """
    from edgeq.pipeline.maker import Maker

    groups = grouped(cells)
    emulator = Emulator(job.device, progress)
    emulator.prepare(tuple(cell.target for cell in cells))
    products = len(groups) * (1 if job.reuse_qparams_from is None else 2)
    with Maker(job, work, progress, products=products) as maker, recording() as recorder:
        schemes = frozenset(cell.scheme for cell in cells)
        prepared = prepare(job, progress, schemes=schemes, describe=maker.described)
        recorder.on = False
        check_owner(job, prepared.model.name)  # before the minutes that follow
        prepared = dataclasses.replace(
            prepared, metric=recorder.heard(prepared.metric), train=recorder.heard(prepared.train)
        )
        finished: Finished = {}
        for recipe, group in groups.items():
            start = time.perf_counter()
            emulated = any(wants_emulation(cell.target, job.device) for cell in group)
            product = reusing_product(job, maker, prepared, recipe, group[0].label, emulated=emulated)
            made_s = time.perf_counter() - start
            for cell in group:
                place = work / f"bundle-{cells.index(cell)}"
                row = _bundled(job, prepared, product, cell, place, emulator, made_s, progress)
                finished[cell.key] = (row, prepared.data)
        return finished, recorder.dependencies()


def _bundled(
    job: Job,
    prepared: Prepared,
    product: Product,
    cell: Cell,
    place: Path,
    emulator: Emulator,
    made_s: float,
    progress: Progress,
) -> Row:
    """Run the product on the cell's device, and write the bundle with its report and its page."""
    from edgeq.bundle.report import write_report
    from edgeq.pipeline.pages import page_title, write_page
    from edgeq.pipeline.release import bundled

    start = time.perf_counter()
    on_device = emulator.product(prepared, product, cell.target, cell.scheme, cell.label)
    on_device = with_cost(job.gates, job.device, prepared, on_device, cell.target, progress)
    row = bundled(job, prepared, on_device, cell.target, cell.scheme, place)
    seconds = {"make": round(made_s, 3)}
    if on_device is not product:
        seconds["emulate"] = round(time.perf_counter() - start, 3)
    row = dataclasses.replace(row, seconds=seconds)
    write_report(place, row)
    write_page(place, (row,), prepared.data, title=page_title(row))
    return row
