"""`edgeq build`: package all models of a project, with gates for each model and for the app."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import outputs
from edgeq.cli.console import note, open_progress, say, say_json, say_problem
from edgeq.cli.install import Installed, install_rows
from edgeq.cli.options import ConfigOptions, RunParams, grouped, to_values
from edgeq.core.config import MORE_OUTPUT
from edgeq.core.errors import EdgeqError, FoundErrors, of_all, raise_findings

if TYPE_CHECKING:
    import edgeq.config.project_file
    import edgeq.core.results.report
    import edgeq.pipeline.auto
    import edgeq.pipeline.plan
    import edgeq.pipeline.preflight
    import edgeq.pipeline.prepare
    import edgeq.pipeline.project
    import edgeq.pipeline.shards
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.config.project_file import ProjectRequest
    from edgeq.core.results.model import ModelFacts
    from edgeq.core.results.report import ProjectReport


Names = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Models of the file to build. [default: all]")]


@grouped
def build(
    options: Annotated[dict[str, Any], ConfigOptions(("out", "cache", "build", "trust_source"))],
    run: RunParams,
    names: Names = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Build only the I-th of N parts, such as 2/5; `edgeq report merge` joins them.",
            rich_help_panel=MORE_OUTPUT.title,
        ),
    ] = None,
) -> None:
    """Build all models of an edgeq.toml in parallel; unchanged models come from the cache.

    A model that fails does not stop the others. The exit code is the lowest of all failures.
    """
    part = None if shard is None else edgeq.pipeline.shards.parse_shard(shard)
    with outputs.errors_shown(run):
        wanted = edgeq.config.project_file.look_at_models(run.config, names or (), to_values(options))
        whole = wanted.models
        if part is not None:
            wanted = dataclasses.replace(wanted, models=edgeq.pipeline.shards.of_shard(whole, part))
        seen = _check(wanted, run) if run.dry_run or wanted.errors else []
    if run.dry_run:
        looked_at = [
            (model, edgeq.pipeline.auto.default_choices(model, None if facts is None else facts.work), facts)
            for model, facts in zip(wanted.models, seen, strict=True)
        ]
        if run.as_json:
            plans = [edgeq.pipeline.plan.plan_json(*one)["plan"] | {"name": one[0].name} for one in looked_at]
            say_json({"schema_version": 1, "plans": plans})
        elif len(looked_at) == 1 or run.verbose:
            width = edgeq.report.text.terminal_width()
            say("\n\n".join(edgeq.pipeline.plan.plan_text(*one, width) for one in looked_at))
        else:
            say(edgeq.pipeline.plan.plans_text(looked_at, edgeq.report.text.columns(sys.stdout)))
        return
    apps = [edgeq.pipeline.plan.match_apps(model) for model in wanted.models]
    if part is not None:
        (wanted.out / edgeq.pipeline.shards.SHARD_NAME).unlink(missing_ok=True)  # of an earlier run
    report = _build(wanted, is_part=part is not None, quiet=run.quiet, verbose=run.verbose)
    if part is not None:
        edgeq.pipeline.shards.write_shard(report, wanted.out, part, whole)
    installed: list[Installed] = []
    if not report.exit_code:
        for model, places in zip(report.models, apps, strict=True):
            if model.report is not None and report.not_installed is None:
                done, problem = install_rows(model.report, places)
                installed += done
                report = dataclasses.replace(report, not_installed=problem)
    with outputs.beside(report, run):
        _print(report, installed, run)
    raise typer.Exit(report.exit_code)


def _check(wanted: ProjectRequest, run: RunParams) -> list[ModelFacts | None]:
    """Raise what the file and its models have wrong, of all models at once; with --dry-run, what running them shows.

    Returns:
        What each model is; with --dry-run.
    """
    seen = []
    outputs.check_dry_run(run)
    found = FoundErrors()
    codes = [one.exit_code for one in wanted.errors]
    names = [job.name or job.source for job in wanted.models]
    with open_progress(quiet=run.quiet, verbose=run.verbose) as progress:
        for name, job in zip(names, wanted.models, strict=True):
            with found.of("", model=name):
                try:
                    if run.dry_run:
                        seen.append(edgeq.pipeline.prepare.check_job(job, progress))
                    else:
                        edgeq.pipeline.preflight.preflight(job, builds_here=job.build.cluster is None)
                except EdgeqError as err:
                    codes.append(err.exit_code)  # of this model's run, in which not all of its errors would be found
                    raise
    raise_findings([*wanted.errors, *of_all(found.errors, names)], min(codes, default=None))
    return seen


def _build(wanted: ProjectRequest, *, is_part: bool, quiet: bool, verbose: bool) -> ProjectReport:
    is_whole = not is_part and len(wanted.models) == len(wanted.names)
    if not is_whole and wanted.app != edgeq.core.results.report.AppOptions():
        note("the limits of the app as a whole are not checked, since only some of its models are built")
    app = wanted.app if is_whole else edgeq.core.results.report.AppOptions()
    project = edgeq.core.results.report.Project(jobs=wanted.models, out=wanted.out, app=app)
    with open_progress(quiet=quiet, verbose=verbose) as progress:
        return edgeq.pipeline.project.build_project(project, progress)


def _print(report: ProjectReport, installed: list[Installed], run: RunParams) -> None:
    outputs.show(report, edgeq.report.json.project_json(report), installed, run)
    for model in report.models:
        if run.verbose and model.error is not None and model.error.trace:
            note(f"{model.name}:\n{model.error.trace.rstrip()}")
        for one in model.refused if run.verbose else ():
            note(f"{model.name} {one.label}:\n{one.error.trace.rstrip()}")
    if report.not_installed is not None:
        say_problem(report.not_installed.what, report.not_installed.fix)
