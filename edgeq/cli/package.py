"""`edgeq package`: the whole job, from a model to gated, verified and installed bundles."""
# ruff: noqa: ARG001  # typer reads the parameters; their values come together in context.params

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from edgeq.cli import flags, views
from edgeq.cli.install import Installed, install_rows, match_apps
from edgeq.cli.output import say, say_error, say_json
from edgeq.errors import ExitCode

if TYPE_CHECKING:
    from edgeq.artifacts import BuildReport
    from edgeq.cli.project import Options
    from edgeq.errors import EdgeqError
    from edgeq.job import Job

# where in an edgeq.toml the option of each parameter would stand
KEYS: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "target": ("targets",),
    "scheme": ("schemes",),
    "out": ("out",),
    "name": ("name",),
    "model_version": ("model_version",),
    "weights": ("weights",),
    "inputs": ("inputs",),
    "input_dtype": ("input_dtype",),
    "calibration_data": ("data", "calibration"),
    "eval_data": ("data", "evaluation"),
    "metric": ("data", "metric"),
    "preprocess": ("data", "preprocess"),
    "labels": ("data", "labels"),
    "num_calibration_samples": ("data", "num_calibration_samples"),
    "search_data": ("data", "search"),
    "num_search_samples": ("data", "num_search_samples"),
    "qat_data": ("qat", "data"),
    "qat_samples": ("qat", "samples"),
    "qat_epochs": ("qat", "epochs"),
    "qat_lr": ("qat", "lr"),
    "qat_batch": ("qat", "batch"),
    "qat_train": ("qat", "train"),
    "data_lint": ("data", "lint"),
    "skip_bad_images": ("data", "skip_bad_images"),
    "seed": ("seed",),
    "observer": ("observer",),
    "keep_fp32": ("keep_fp32",),
    "reuse_qparams_from": ("reuse_qparams_from",),
    "limit": ("limit",),
    "limit_on": ("limit_on",),
    "shipped": ("shipped",),
    "device": ("predict_for",),
    "allow_unmeasured": ("allow_unmeasured",),
    "store_limit": ("store_limits",),
    "app_size": ("app_size",),
    "on": ("device", "on"),
    "cpu": ("device", "cpu"),
    "device_samples": ("device", "samples"),
    "timeout": ("device", "timeout_s"),
    "install_into": ("install_into",),
    "cache": ("cache",),
}


def package(
    context: typer.Context,
    model: flags.Model = None,
    target: flags.Target = None,
    scheme: flags.Scheme = None,
    out: flags.Out = None,
    name: flags.Name = None,
    model_version: flags.ModelVersion = None,
    weights: flags.Weights = None,
    inputs: flags.Input = None,
    input_dtype: flags.InputDtype = None,
    calibration_data: flags.CalibrationData = None,
    eval_data: flags.EvalData = None,
    metric: flags.Metric = None,
    preprocess: flags.Preprocess = None,
    labels: flags.Labels = None,
    num_calibration_samples: flags.NumCalibrationSamples = None,
    search_data: flags.SearchData = None,
    num_search_samples: flags.NumSearchSamples = None,
    seed: flags.Seed = None,
    observer: flags.Observer = None,
    keep_fp32: flags.KeepFp32 = None,
    reuse_qparams_from: flags.ReuseQParams = None,
    qat_data: flags.QatData = None,
    qat_samples: flags.QatSamples = None,
    qat_epochs: flags.QatEpochs = None,
    qat_lr: flags.QatLr = None,
    qat_batch: flags.QatBatch = None,
    qat_train: flags.QatTrain = None,
    data_lint: flags.DataLint = None,
    skip_bad_images: flags.SkipBadImages = None,
    limit: flags.Limit = None,
    limit_on: flags.LimitOn = None,
    shipped: flags.Shipped = None,
    device: flags.Device = None,
    allow_unmeasured: flags.AllowUnmeasured = None,
    store_limit: flags.StoreLimit = None,
    app_size: flags.AppSize = None,
    on: flags.On = None,
    cpu: flags.Cpu = None,
    device_samples: flags.DeviceSamples = None,
    timeout: flags.Timeout = None,
    install_into: flags.InstallInto = None,
    cache: flags.Cache = None,
    dry_run: flags.DryRun = False,
    as_json: flags.AsJson = False,
    junit: views.Junit = None,
    markdown: views.Markdown = None,
    github: views.Github = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
    config: flags.Config = None,
) -> None:
    """Package a model for each target, gated and verified.

    MODEL is quantized, lowered, checked, run on this host and on the device's kernels under QEMU, bundled, and
    installed if asked for. Most options can stand in an edgeq.toml; the command line wins.
    """
    raise typer.Exit(_run(context.params))


def _run(params: Mapping[str, Any]) -> ExitCode:
    from edgeq.cli.config import request
    from edgeq.cli.precheck import check_files
    from edgeq.cli.project import read_project

    wanted = request(from_params(params), read_project(params["config"]))
    check_files(wanted.job)
    apps = match_apps(wanted)
    as_json: bool = params["as_json"]
    if params["dry_run"]:
        from edgeq.cli.plan import plan_json, plan_text

        if as_json:
            say_json(plan_json(wanted))
        else:
            say(plan_text(wanted))
        return ExitCode.OK
    report = _build(wanted.job, quiet=params["quiet"], verbose=params["verbose"])
    installed, problem = install_rows(report, apps)
    _print(report, installed, problem, as_json=as_json)

    from edgeq.project import of_one

    written = of_one(report)
    views.write_views(written, junit=params["junit"], markdown=params["markdown"], github=params["github"])
    return problem.exit_code if problem else report.exit_code


def from_params(params: Mapping[str, Any]) -> Options:
    """Return the command line's options in the form of an `edgeq.toml`.

    Raises:
        UsageError: a value of the wrong type, or a limit that is none.
    """
    from edgeq.cli.config import limit_table
    from edgeq.cli.project import validated

    values: dict[str, Any] = {"data": {}, "qat": {}, "device": {}}
    for param, path in KEYS.items():
        given = params[param]
        # typer gives an empty list for a repeatable option that was not used
        if given is None or given in ([], ()):
            continue
        if param == "limit":
            values["limit"] = limit_table(given)
        elif len(path) > 1:
            values[path[0]][path[1]] = list(given) if isinstance(given, list | tuple) else given
        else:
            values[path[0]] = list(given) if isinstance(given, list | tuple) else given
    return validated(values, "command line")


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
