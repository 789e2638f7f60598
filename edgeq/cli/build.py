"""`edgeq build`: all models of a project, gated one by one and as an app."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import outputs
from edgeq.cli.console import note, open_progress, say, say_json, say_problem
from edgeq.cli.install import Installed, install_rows
from edgeq.cli.options import ConfigOptions, RunParams, grouped, to_values

if TYPE_CHECKING:
    from edgeq.config.project_file import ProjectRequest
    from edgeq.core.results.report import ProjectReport


Names = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Models of the file to build. [default: all]")]


@grouped
def build(
    options: Annotated[dict[str, Any], ConfigOptions(("out", "cache", "trust_source"))],
    run: RunParams,
    names: Names = None,
) -> None:
    """Build all models of an edgeq.toml in parallel; what did not change comes from the cache.

    A model that fails does not stop the others. The exit code is the lowest of all failures.
    """
    from edgeq.config.project_file import read_models
    from edgeq.pipeline.plan import match_apps

    wanted = read_models(run.config, names or (), to_values(options))
    if run.dry_run:
        _print_plan(wanted, as_json=run.as_json)
        return
    apps = [match_apps(model) for model in wanted.models]
    report = _build(wanted, quiet=run.quiet, verbose=run.verbose)
    installed: list[Installed] = []
    if not report.exit_code:
        for model, places in zip(report.models, apps, strict=True):
            if model.report is not None and report.not_installed is None:
                done, problem = install_rows(model.report, places)
                installed += done
                report = dataclasses.replace(report, not_installed=problem)
    with outputs.beside(report, run):
        _print(report, installed, as_json=run.as_json, verbose=run.verbose)
    raise typer.Exit(report.exit_code)


def _print_plan(wanted: ProjectRequest, *, as_json: bool) -> None:
    from edgeq.pipeline.plan import plan_json, plan_text

    if as_json:
        plans = [plan_json(model)["plan"] | {"name": model.name} for model in wanted.models]
        say_json({"schema_version": 1, "plans": plans})
    else:
        say("\n\n".join(plan_text(model) for model in wanted.models))


def _build(wanted: ProjectRequest, *, quiet: bool, verbose: bool) -> ProjectReport:
    from edgeq.core.results.report import AppOptions, Project
    from edgeq.pipeline.preflight import check_files

    is_whole = len(wanted.models) == len(wanted.names)
    if not is_whole and wanted.app != AppOptions():
        note("the app as a whole is not judged: only some of its models are built")
    app = wanted.app if is_whole else AppOptions()
    project = Project(jobs=wanted.models, out=wanted.out, app=app)
    with open_progress(quiet=quiet, verbose=verbose) as progress:
        with progress.task("starting"):
            from edgeq.pipeline.project import build_project
        return build_project(project, progress, check=check_files)


def _print(report: ProjectReport, installed: list[Installed], *, as_json: bool, verbose: bool) -> None:
    if as_json:
        from edgeq.report.json import project_json

        say_json({**project_json(report), "installed": [entry.as_json() for entry in installed]})
    else:
        from edgeq.report.text import render_project

        say("\n".join([render_project(report), *(entry.as_text() for entry in installed)]))
    for model in report.models:
        if verbose and model.error is not None and model.error.trace:
            note(f"{model.name}:\n{model.error.trace.rstrip()}")
        for one in model.refused if verbose else ():
            note(f"{model.name} {one.label}:\n{one.error.trace.rstrip()}")
    if report.not_installed is not None:
        say_problem(report.not_installed.what, report.not_installed.fix)
