"""`edgeq package`: the whole job, from a model to gated, verified and installed bundles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from edgeq.cli import flags, views
from edgeq.cli.install import Installed, install_rows, match_apps
from edgeq.cli.output import say, say_json, say_problem
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
    from edgeq.job import Job
    from edgeq.project import ProjectReport


@grouped
def package(
    model: ModelParams,
    bundle: BundleParams,
    scheme: SchemeParams,
    gates: GateParams,
    store: StoreParams,
    device: DeviceParams,
    run: RunParams,
    trust_source: flags.TrustSource = False,
) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Most options can stand in an edgeq.toml; the command line wins.
    """
    raise typer.Exit(_run(to_options(model, bundle, scheme, gates, store, device, run), run, trusted=trust_source))


def _run(command_line: Options, run: RunParams, *, trusted: bool) -> ExitCode:
    from edgeq.cli.config import request
    from edgeq.cli.precheck import check_files
    from edgeq.cli.project import read_project

    wanted = request(command_line, read_project(run.config))
    wanted = dataclasses.replace(wanted, job=dataclasses.replace(wanted.job, trust_source=trusted))
    check_files(wanted.job)
    apps = match_apps(wanted)
    if run.dry_run:
        _print_plan(wanted, as_json=run.as_json)
        return ExitCode.OK
    report = _build(wanted.job, quiet=run.quiet, verbose=run.verbose)
    installed, problem = install_rows(report, apps)
    from edgeq.project import of_one

    whole = dataclasses.replace(of_one(report), not_installed=problem)
    with views.beside(whole, run):
        _print(report, whole, installed, as_json=run.as_json)
    return whole.exit_code


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


def _print(report: BuildReport, whole: ProjectReport, installed: tuple[Installed, ...], *, as_json: bool) -> None:
    if as_json:
        from edgeq.report.as_json import error_json, to_json

        document = {**to_json(report), "exit_code": int(whole.exit_code)}
        document |= {"installed": [entry.as_json() for entry in installed], "error": error_json(whole.not_installed)}
        say_json(document)
    else:
        from edgeq.cli.table import render

        say("\n".join([render(report), *(entry.as_text() for entry in installed)]))
    if whole.not_installed is not None:
        say_problem(whole.not_installed.what, whole.not_installed.fix)
