"""`edgeq ota`: releases into a channel, and the reference client that follows one."""
# ruff: noqa: ARG001  # typer reads the parameters; their values come together in context.params

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import flags, ota_device
from edgeq.cli.clock import clock, now
from edgeq.cli.ota_words import report_json, report_text, tell_published
from edgeq.cli.output import say, say_json
from edgeq.errors import UsageError
from edgeq.units import counted

if TYPE_CHECKING:
    from edgeq.job import DataOptions, GateOptions
    from edgeq.manifest import Manifest
    from edgeq.pipeline.ota import ReleaseJob

app = typer.Typer(help="Publish over-the-air updates, and follow a channel as a device does.")
app.command("update")(ota_device.update)
app.command("start")(ota_device.start)
app.command("healthy")(ota_device.healthy)
app.command("rollback")(ota_device.rollback)
app.command("status")(ota_device.status)
_DAYS = 30

_Channel = Annotated[Path, typer.Option(metavar="FOLDER", help="The channel: a folder that a web server can serve.")]
_Keys = Annotated[Path, typer.Option(metavar="FOLDER", help="The signing keys, as `edgeq keys new` made them.")]
_ValidDays = Annotated[
    int, typer.Option(metavar="N", help="Days after which clients refuse the index; 30.", min=1, max=3650)
]


@app.command("release")
def release(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Bundles, as `edgeq package` wrote them.")],
    channel: _Channel,
    keys: _Keys,
    delta_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="A bundle that devices have besides, such as the app's own; repeatable."),
    ] = None,
    deltas: Annotated[int, typer.Option(metavar="N", help="Patches from the last N releases; 3.", min=0, max=20)] = 3,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VERSION", help="A runtime of an app build in the field: executorch=1.5; repeatable."
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The only devices that it is for; repeatable.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="The model's licence, for the bill of materials.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            help="download=4MB, delta=1MB, size=5MB, flips=2%, class_drop=1pp; repeatable.",
        ),
    ] = None,
    store_limit: flags.StoreLimit = None,
    app_size: flags.AppSize = None,
    eval_data: flags.EvalData = None,
    labels: flags.Labels = None,
    verdict: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="As for `edgeq install`, of one of these bundles; repeatable."),
    ] = None,
    valid_days: _ValidDays = _DAYS,
    allow_expired: Annotated[
        bool,
        typer.Option("--allow-expired", help="Write an index that has expired: an old SOURCE_DATE_EPOCH's, again."),
    ] = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    config: flags.Config = None,
) -> None:
    """Add a release to a channel: gated, patched, signed. Nothing is written if a gate fails.

    Limits, evaluation data and [app.runtimes] can stand in an edgeq.toml; the command line wins.
    """
    job = _job(context.params)
    from edgeq.cli.progress import open_progress

    with open_progress(quiet=quiet) as progress:
        from edgeq.pipeline.ota import release as run

        report = run(job, progress)
    if as_json:
        say_json(report_json(report))
    else:
        say(report_text(report))
    raise typer.Exit(report.exit_code)


@app.command("withdraw")
def withdraw(
    version: Annotated[int, typer.Argument(metavar="RELEASE", help="The release's number.", min=1)],
    channel: _Channel,
    keys: _Keys,
    valid_days: _ValidDays = _DAYS,
    as_json: flags.AsJson = False,
) -> None:
    """Publish what was there before a release again, under a higher number, so that devices go back."""
    from edgeq.deliver.ota.entries import Terms
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import withdraw as run

    done = run(channel, load_keys(keys), version, Terms(now=now(), clock=clock(), valid_days=valid_days))
    tell_published(f"withdrawn: release {version} of {channel}", done, as_json)


@app.command("refresh")
def refresh(
    channel: _Channel,
    keys: _Keys,
    valid_days: _ValidDays = _DAYS,
    as_json: flags.AsJson = False,
) -> None:
    """Sign a channel's index again before it expires; run it from a timer."""
    from edgeq.deliver.ota.entries import Terms
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import refresh as run

    done = run(channel, load_keys(keys), Terms(now=now(), clock=clock(), valid_days=valid_days))
    tell_published(f"signed again: {channel}, for {counted(valid_days, 'day')}", done, as_json)


def _job(params: Mapping[str, Any]) -> ReleaseJob:
    from edgeq.bundle.reader import read_manifest
    from edgeq.cli.models import read_released
    from edgeq.deliver.ota.entries import Terms
    from edgeq.pipeline.ota import ReleaseJob

    manifests = [read_manifest(folder)[1] for folder in params["bundles"]]
    project = read_released(params["config"], tuple(dict.fromkeys(one.model.name for one in manifests)))
    data = _data(params, project.data.evaluation, project.data.labels)
    gates = _gates(params, project)
    _check_eval_data(params["eval_data"], gates)
    known = sorted({one.target.runtime for one in manifests})
    runtimes = tuple(_runtime(text, known) for text in params["runtime"] or ())
    if not runtimes:
        runtimes = tuple((name, version) for name, versions in project.app.runtimes.items() for version in versions)
    return ReleaseJob(
        bundles=tuple(params["bundles"]),
        channel=params["channel"],
        keys=params["keys"],
        deltas=params["deltas"],
        delta_from=_bases(params["delta_from"] or (), manifests),
        verdicts=tuple(params["verdict"] or ()),
        terms=Terms(
            now=now(),
            clock=None if params["allow_expired"] else clock(),
            runtimes=runtimes,
            devices=_devices(params["device"] or ()),
            licence=params["licence"],
            valid_days=params["valid_days"],
        ),
        gates=gates,
        data=data,
    )


def _gates(params: Mapping[str, Any], project: Any) -> GateOptions:
    from edgeq.job import GateOptions
    from edgeq.pipeline.ota import RELEASE_LIMITS
    from edgeq.scheme import parse_limit
    from edgeq.units import parse_size_bytes

    in_file = [f"{name}={text}" for name in RELEASE_LIMITS if (text := getattr(project.limit, name)) is not None]
    size = params["app_size"] or project.app_size
    return GateOptions(
        # the last of a name counts, as for `edgeq package`
        limits=tuple(dict(parse_limit(text) for text in (*in_file, *(params["limit"] or ()))).items()),
        store_limits=tuple(params["store_limit"] or project.store_limits or ()),
        app_size_bytes=None if size is None else parse_size_bytes(size),
    )


def _data(params: Mapping[str, Any], evaluation: str | None, labels: str | None) -> DataOptions:
    from edgeq.job import DataOptions

    chosen = params["labels"] or labels
    return DataOptions(evaluation=params["eval_data"] or evaluation, labels=None if chosen is None else Path(chosen))


def _check_eval_data(eval_data: str | None, gates: GateOptions) -> None:
    """Refuse an evaluation set that no limit asks for: it would not even be opened."""
    if eval_data is not None and not {"flips", "class_drop"} & {name for name, _ in gates.limits}:
        what = "--eval-data is for the limits flips and class_drop, and neither is given"
        raise UsageError(what, "add, for example, --limit flips=2%, or leave it out")


def _bases(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Path, ...]:
    """Refuse a base that no bundle of the release can be a patch from."""
    from edgeq.bundle.reader import read_manifest

    released = {(one.model.name, one.target.name) for one in manifests}
    for folder in folders:
        base = read_manifest(folder)[1]
        if (base.model.name, base.target.name) not in released:
            what = f"--delta-from {folder}: no bundle of this release is of {base.model.name} for {base.target.name}"
            raise UsageError(what, "give an earlier bundle of the same model and target")
    return tuple(folders)


def _devices(ids: Sequence[str]) -> tuple[str, ...]:
    from pydantic import TypeAdapter, ValidationError

    from edgeq.deliver.ota.facts import DeviceId

    for one in ids:
        try:
            TypeAdapter(DeviceId).validate_python(one)
        except ValidationError as err:
            what = f"--device {one!r} is no device id"
            raise UsageError(
                what, "up to 64 letters, digits, '.', '_', ':' and '-', the first a letter or digit"
            ) from err
    return tuple(dict.fromkeys(ids))


def _runtime(text: str, known: Sequence[str]) -> tuple[str, str]:
    """Return a runtime's name and version; one that none of the bundles runs on would judge nothing."""
    name, equals, version = text.partition("=")
    if not equals or not name or not version:
        raise UsageError(f"expected NAME=VERSION, got {text!r}", f"write, for example, --runtime {known[0]}=1.5")
    if name not in known:
        raise UsageError(f"--runtime {text}: none of the bundles runs on {name!r}", f"theirs: {', '.join(known)}")
    return name, version
