"""`edgeq package`: from a model to gated, verified and installed bundles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import outputs
from edgeq.cli.console import open_progress, say, say_json, say_problem
from edgeq.cli.install import Installed, install_rows
from edgeq.cli.options import ConfigOptions, RunParams, grouped, to_values
from edgeq.core.config import Job
from edgeq.core.errors import ExitCode

if TYPE_CHECKING:
    from edgeq.core.results.report import ProjectReport, RunReport


@grouped
def package(options: Annotated[dict[str, Any], ConfigOptions()], run: RunParams) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Options can also be set in edgeq.toml; the command line takes precedence.
    """
    raise typer.Exit(_run(to_values(options), run))


def _run(command_line: dict[str, Any], run: RunParams) -> ExitCode:
    from edgeq.config.options import read_project
    from edgeq.config.resolve import request
    from edgeq.pipeline.plan import match_apps
    from edgeq.pipeline.preflight import check_files

    job = request(command_line, read_project(run.config))
    check_files(job)
    apps = match_apps(job)
    if run.dry_run:
        _print_plan(job, as_json=run.as_json)
        return ExitCode.OK
    report = _build(job, quiet=run.quiet, verbose=run.verbose)
    installed, problem = install_rows(report, apps)
    from edgeq.core.results.report import of_one

    whole = dataclasses.replace(of_one(report), not_installed=problem)
    with outputs.beside(whole, run):
        _print(report, whole, installed, as_json=run.as_json)
    return whole.exit_code


def _print_plan(job: Job, *, as_json: bool) -> None:
    from edgeq.pipeline.plan import plan_json, plan_text

    if as_json:
        say_json(plan_json(job))
    else:
        say(plan_text(job))


def _build(job: Job, *, quiet: bool, verbose: bool) -> RunReport:
    with open_progress(quiet=quiet, verbose=verbose) as progress:
        # a task of its own: loading torch takes seconds in which nothing else would be said
        with progress.task("starting"):
            from edgeq.pipeline.package import build
        return build(job, progress)


def _print(report: RunReport, whole: ProjectReport, installed: tuple[Installed, ...], *, as_json: bool) -> None:
    if as_json:
        from edgeq.report.json import error_json, to_json

        document = {**to_json(report), "exit_code": int(whole.exit_code)}
        document |= {"installed": [entry.as_json() for entry in installed], "error": error_json(whole.not_installed)}
        say_json(document)
    else:
        from edgeq.report.text import render

        say("\n".join([render(report), *(entry.as_text() for entry in installed)]))
    if whole.not_installed is not None:
        say_problem(whole.not_installed.what, whole.not_installed.fix)
