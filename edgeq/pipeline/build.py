"""`build`: the steps in order, shared between targets, answered from the cache where nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeq._io import disk_errors, lock_dir
from edgeq.artifacts import BuildReport
from edgeq.device import check_cost_options
from edgeq.errors import EnvironmentProblem, UnsupportedError
from edgeq.extras import check_extras
from edgeq.job import Job, Progress
from edgeq.pipeline.auto import obtain_all
from edgeq.pipeline.beside import compared
from edgeq.pipeline.cells import Plan, plan
from edgeq.pipeline.make import Run, obtain
from edgeq.pipeline.prepare import with_demo_data
from edgeq.pipeline.publish import publish
from edgeq.pipeline.reuse import check_reuse
from edgeq.target import why_not_run
from edgeq.units import counted
from edgeq.verify.emulate.wanted import check_tools

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

            title = f"{report.rows[0].model} for {counted(len(report.rows), 'target')}"
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
    run = Run(job=job, facts=planned.facts, work=work, progress=progress)
    made = compared(run, missing, obtain) if job.compare else obtain_all(run, missing, obtain)
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
