"""`edgeq package`: the whole job, from a model to gated, verified and installed bundles."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from edgeq.cli import outputs
from edgeq.cli.console import open_progress, say, say_json, say_problem
from edgeq.cli.install import install_rows
from edgeq.cli.options import ConfigOptions, RunParams, grouped, to_values


@grouped
def package(options: Annotated[dict[str, Any], ConfigOptions()], run: RunParams) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Options can also be set in edgeq.toml; the command line takes precedence.
    """
    from edgeq.config.options import read_project
    from edgeq.config.resolve import request
    from edgeq.core.results.report import of_one
    from edgeq.pipeline.plan import match_apps, plan_json, plan_text
    from edgeq.pipeline.preflight import check_files

    job = request(to_values(options), read_project(run.config))
    check_files(job)
    apps = match_apps(job)
    if run.dry_run:
        if run.as_json:
            say_json(plan_json(job))
        else:
            say(plan_text(job))
        return
    with open_progress(quiet=run.quiet, verbose=run.verbose) as progress:
        # a task of its own: loading torch takes seconds in which nothing else would be shown
        with progress.task("starting"):
            from edgeq.pipeline.package import package as run_package
        report = run_package(job, progress)
    installed, problem = install_rows(report, apps)
    whole = dataclasses.replace(of_one(report), not_installed=problem)
    with outputs.beside(whole, run):
        if run.as_json:
            from edgeq.report.json import error_json, to_json

            document = {**to_json(report), "exit_code": int(whole.exit_code)}
            document |= {"installed": [entry.as_json() for entry in installed], "error": error_json(problem)}
            say_json(document)
        else:
            from edgeq.report.text import render

            say("\n".join([render(report), *(entry.as_text() for entry in installed)]))
        if problem is not None:
            say_problem(problem.what, problem.fix)
    raise typer.Exit(whole.exit_code)
