"""`build_project`: several models into one folder, here or on a cluster, and the limits of the whole app."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.check.app import Shipped, app_gates
from edgeq.config.resolve import among_several, with_demo_data
from edgeq.core.config import Job, Progress
from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.files import disk_errors, lock_dir
from edgeq.core.results.report import DataFacts, Library, ModelError, ModelResult, Project, ProjectReport
from edgeq.core.targets import TargetProfile
from edgeq.deliver.android import growth_by_abi
from edgeq.pipeline.cluster import Fleet, connected
from edgeq.pipeline.package import make_plan, work_folder
from edgeq.pipeline.plan import Plan
from edgeq.pipeline.preflight import preflight
from edgeq.pipeline.publish import publish
from edgeq.pipeline.reports import write_index
from edgeq.pipeline.workers import Order, Outcome, run_all


def build_project(project: Project, progress: Progress, client: Any = None) -> ProjectReport:
    """Package every model of a project; one that fails does not stop the others.

    What did not change comes from the cache, and starts no worker. A kill leaves every bundle whole, old or new.

    Args:
        project: its models have different names, and the project's output folder.
        progress: where progress is reported; each step has its model's name.
        client: of a Dask cluster whose workers build; None for the project's own `[build] cluster`, or this machine.

    Raises:
        EnvironmentProblem: another edgeq writes to the folder, the disk is full, or the cluster cannot build.
    """
    jobs = [with_demo_data(job) for job in project.jobs]
    address = next((job.build.cluster for job in jobs if job.build.cluster is not None), None)
    with contextlib.ExitStack() as opened:
        opened.enter_context(disk_errors(project.out))
        opened.enter_context(lock_dir(project.out, wait_s=0))
        work = opened.enter_context(work_folder(project.out))
        fleet: Fleet | None = None
        if client is not None or address is not None:
            with progress.task("look at the cluster's workers"):
                client = client or opened.enter_context(connected(address or ""))
                fleet = Fleet(client, project.out)
            jobs = [among_several(job) for job in jobs]
        orders, ended = [], {}
        with progress.task("look up what is there") as task:
            for i, job in enumerate(jobs):
                folder = work / f"model-{i}"
                folder.mkdir()
                planned = _planned(job, folder, None if fleet is None else fleet.machine)
                if isinstance(planned, Plan) and not planned.is_complete:
                    orders.append(Order(name=_name(job), plan=planned, work=folder))
                else:
                    ended[_name(job)] = planned
                if isinstance(planned, ModelError):  # told now, since the other models may take long
                    for one in planned.findings:
                        task.note(f"{_name(job)}: {one.what}")
        if orders:
            names = [order.name for order in orders]
            run = run_all if fleet is None else fleet.run_all
            ended |= dict(zip(names, run(orders, progress), strict=True))
        report = judged(project, [_published(_name(job), ended[_name(job)]) for job in jobs])
        # without a row too: an earlier run's page must not pass for this one's
        broken = [model for model in report.models if model.error is not None]
        write_index(project.out, report.rows, DataFacts(), app=report.app, broken=broken, refused=report.refused)
    return report


def _name(job: Job) -> str:
    return job.name or job.source


def _planned(job: Job, folder: Path, machine: Mapping[str, Any] | None) -> Outcome:
    try:
        preflight(job, builds_here=machine is None)
        return make_plan(job, folder, machine)
    except EdgeqError as err:
        return ModelError.of(err)


def _published(name: str, outcome: Outcome) -> ModelResult:
    if isinstance(outcome, ModelError):
        return ModelResult(name=name, report=None, error=outcome)
    try:
        return ModelResult(name=name, report=publish(outcome))
    except EdgeqError as err:
        return ModelResult(name=name, report=None, error=ModelError.of(err))


def judged(project: Project, results: Sequence[ModelResult]) -> ProjectReport:
    """Return the report of a project from its models' results, with the gates of the app as a whole."""
    targets = {target.name: target for job in project.jobs for target in job.all_targets}
    targets |= {group.name: group.candidates[0] for job in project.jobs for group in job.groups}  # of one platform
    shipped = [Shipped(row=row, target=targets[row.target]) for result in results for row in result.rows]
    missing = [result.name for result in results if result.error is not None]
    refused = [(one.model, targets[one.target]) for result in results for one in result.refused]
    libraries = _libraries([item.target for item in shipped])
    gates = app_gates(shipped, project.app, found=libraries, missing=missing, refused=refused)
    return ProjectReport(models=tuple(results), app=gates)


def _libraries(targets: Sequence[TargetProfile]) -> dict[tuple[str, str], Library]:
    """Return the Android libraries that a Gradle or Maven build has fetched to this machine, by (runtime, ABI)."""
    found: dict[tuple[str, str], Library] = {}
    for target in targets:
        if target.platform != "android":
            continue
        try:
            (growth,) = growth_by_abi(target.arch, target.runtime, 0, None)
        except UsageError:  # one without a library for this ABI says nothing of the app's
            continue
        if growth.library_bytes is not None and growth.compressed_bytes is not None:
            found[target.runtime, f"{target.platform}-{target.arch}"] = Library(
                size_bytes=growth.library_bytes,
                download_bytes=growth.compressed_bytes,
                origin=f"in {growth.library} on this machine",
            )
    return found
