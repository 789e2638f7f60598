"""`edgeq package`: the whole job, from a model to gated, verified and installed bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgeq.cli import views
from edgeq.cli.install import Installed, install_rows, match_apps
from edgeq.cli.output import say, say_error, say_json
from edgeq.cli.params import (
    BundleParams,
    DeviceParams,
    GateParams,
    ModelParams,
    RunParams,
    SchemeParams,
    StoreParams,
    grouped,
    to_options,
)
from edgeq.errors import ExitCode

if TYPE_CHECKING:
    from edgeq.artifacts import BuildReport
    from edgeq.cli.config import Request
    from edgeq.cli.project import Options
    from edgeq.errors import EdgeqError
    from edgeq.job import Job


@grouped
def package(
    model: ModelParams,
    bundle: BundleParams,
    scheme: SchemeParams,
    gates: GateParams,
    store: StoreParams,
    device: DeviceParams,
    run: RunParams,
) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Most options can stand in an edgeq.toml; the command line wins.
    """
    raise typer.Exit(_run(to_options(model, bundle, scheme, gates, store, device, run), run))


def _run(command_line: Options, run: RunParams) -> ExitCode:
    from edgeq.cli.config import request
    from edgeq.cli.precheck import check_files
    from edgeq.cli.project import read_project

    wanted = request(command_line, read_project(run.config))
    check_files(wanted.job)
    apps = match_apps(wanted)
    if run.dry_run:
        _print_plan(wanted, as_json=run.as_json)
        return ExitCode.OK
    report = _build(wanted.job, quiet=run.quiet, verbose=run.verbose)
    installed, problem = install_rows(report, apps)
    _print(report, installed, problem, as_json=run.as_json)

    from edgeq.project import of_one

    views.write_views(of_one(report), junit=run.junit, markdown=run.markdown, github=run.github)
    return problem.exit_code if problem else report.exit_code


def _print_plan(wanted: Request, *, as_json: bool) -> None:
    from edgeq.cli.plan import plan_json, plan_text

    if as_json:
        say_json(plan_json(wanted))
    else:
        say(plan_text(wanted))


def _build(job: Job, *, quiet: bool, verbose: bool) -> BuildReport:
    from edgeq.cli.progress import open_progress

    with open_progress(quiet=quiet, verbose=verbose) as progress:
        # a task of its own: loading torch takes seconds in which nothing else would be said
        with progress.task("starting"):
            from edgeq.pipeline import build
        return build(job, progress)


def _print(report: BuildReport, installed: tuple[Installed, ...], problem: EdgeqError | None, *, as_json: bool) -> None:
    if as_json:
        from edgeq.report.as_json import to_json

        document = {**to_json(report), "installed": [entry.as_json() for entry in installed]}
        if problem is not None:
            document["error"] = {"what": problem.what, "fix": problem.fix, "exit_code": int(problem.exit_code)}
        say_json(document)
    else:
        from edgeq.cli.table import render

        say("\n".join([render(report), *(entry.as_text() for entry in installed)]))
    if problem is not None:
        say_error(problem, as_json=False)
