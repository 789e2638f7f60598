"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq._io import copy_files, disk_errors, lock_dir, remove_dir, staged_dir
from edgeq.artifacts import BuildReport, Row
from edgeq.device import check_cost_options
from edgeq.errors import EnvironmentProblem
from edgeq.extras import check_extras
from edgeq.job import Job, Progress
from edgeq.pipeline import cache
from edgeq.pipeline.auto import obtain_all
from edgeq.pipeline.cells import Cell, Finished, Run, look_up, plain_cell
from edgeq.pipeline.compare import COMPARED, compared
from edgeq.pipeline.owner import check_owner
from edgeq.pipeline.prepare import REJECTED_NAME, with_demo_data
from edgeq.pipeline.reuse import check_reuse
from edgeq.verify.emulate.wanted import check_tools

WORK_NAME = ".edgeq-work"
_LEAST_FREE_BYTES = 64 * 1024


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
    finished: Finished

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
    check_extras(target.runtime for target in job.targets)
    check_tools(job.device, job.targets)
    check_cost_options(job.gates, job.targets)
    check_reuse(job)


def plan(job: Job, work: Path) -> Plan:
    """Return the job's cells, and those that the cache has, each bundle copied into the work folder."""
    facts = cache.job_facts(job)
    note = COMPARED if job.compare else ""
    cells = tuple(
        plain_cell(job, facts, target, scheme, note=note) for target in job.targets for scheme in job.schemes_of(target)
    )
    return Plan(job=job, facts=facts, cells=cells, finished=look_up(cells, work) if job.cache else {})


def complete(planned: Plan, work: Path, progress: Progress) -> Plan:
    """Make what is missing, and keep it in the cache; raises the steps' own errors."""
    missing, job = planned.missing, planned.job
    if not missing:
        return planned
    run = Run(job=job, facts=planned.facts, work=work, progress=progress)
    made = compared(run, missing) if job.compare else obtain_all(run, missing)
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
            name, former = cell.target.name, f"{cell.target.name}@{row.scheme}"
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
