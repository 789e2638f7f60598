"""`edgeq package`: from a model to gated, verified and installed bundles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import outputs
from edgeq.cli.console import open_progress, say, say_json, say_problem
from edgeq.cli.install import install_rows
from edgeq.cli.options import ConfigOptions, RunParams, grouped, to_values

if TYPE_CHECKING:
    import edgeq.config.project_file
    import edgeq.config.resolve
    import edgeq.core.results.report
    import edgeq.pipeline.auto
    import edgeq.pipeline.package
    import edgeq.pipeline.plan
    import edgeq.pipeline.prepare
    import edgeq.report.json
    import edgeq.report.text


@grouped
def package(options: Annotated[dict[str, Any], ConfigOptions(without=("build.cluster",))], run: RunParams) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Options can also be set in edgeq.toml; the command line takes precedence.
    """
    values = to_values(options)
    with outputs.errors_shown(run):
        project = edgeq.config.project_file.read_one(run.config, values.get("model"))
        job = edgeq.config.resolve.request(values, project)
        outputs.check_dry_run(run)
        if not run.dry_run:
            apps = edgeq.pipeline.plan.match_apps(job)
        with open_progress(quiet=run.quiet, verbose=run.verbose) as progress:
            if run.dry_run:
                facts = edgeq.pipeline.prepare.check_job(job, progress)
            else:
                report = edgeq.pipeline.package.package(job, progress)
    if run.dry_run:
        defaults = edgeq.pipeline.auto.default_choices(job, None if facts is None else facts.work)
        if run.as_json:
            say_json(edgeq.pipeline.plan.plan_json(job, defaults, facts))
        else:
            say(edgeq.pipeline.plan.plan_text(job, defaults, facts, edgeq.report.text.terminal_width()))
        return
    installed, problem = install_rows(report, apps)
    whole = dataclasses.replace(edgeq.core.results.report.of_one(report), not_installed=problem)
    with outputs.beside(whole, run):
        document = {**edgeq.report.json.to_json(report), "exit_code": int(whole.exit_code)}
        outputs.show(whole, document | {"error": edgeq.report.json.error_json(problem)}, installed, run)
        if problem is not None:
            say_problem(problem.what, problem.fix)
    raise typer.Exit(whole.exit_code)
