"""`edgeq ota`: releases into a channel, and the reference client that follows one."""
# ruff: noqa: ARG001  # typer reads the parameters; their values come together in context.params

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import flags
from edgeq.cli.columns import aligned, printable
from edgeq.cli.output import say, say_json
from edgeq.errors import UsageError
from edgeq.units import format_bytes

if TYPE_CHECKING:
    from edgeq.artifacts import Gate
    from edgeq.deliver.ota.client import Request
    from edgeq.deliver.ota.release import Published
    from edgeq.job import DataOptions, GateOptions
    from edgeq.pipeline.ota import ReleaseJob, ReleaseReport, ReleaseRow

app = typer.Typer(help="Publish over-the-air updates, and follow a channel as a device does.")
SCHEMA_VERSION = 1
_DAYS = 30

_Channel = Annotated[Path, typer.Option(metavar="FOLDER", help="The channel: a folder that a web server can serve.")]
_Keys = Annotated[Path, typer.Option(metavar="FOLDER", help="The signing keys, as `edgeq keys new` made them.")]
_Store = Annotated[Path, typer.Option(metavar="FOLDER", help="The device's store.")]
_ValidDays = Annotated[int, typer.Option(metavar="N", help="Days after which clients refuse the index; 30.", min=1)]


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
    valid_days: _ValidDays = _DAYS,
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
        say_json(_report_json(report))
    else:
        say(_report_text(report))
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
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import Terms
    from edgeq.deliver.ota.release import withdraw as run

    done = run(channel, load_keys(keys), version, Terms(now=now(), valid_days=valid_days))
    _tell_published(f"withdrawn: release {version} of {channel}", done, as_json)


@app.command("refresh")
def refresh(
    channel: _Channel,
    keys: _Keys,
    valid_days: _ValidDays = _DAYS,
    as_json: flags.AsJson = False,
) -> None:
    """Sign a channel's index again before it expires; run it from a timer."""
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import Terms
    from edgeq.deliver.ota.release import refresh as run

    done = run(channel, load_keys(keys), Terms(now=now(), valid_days=valid_days))
    _tell_published(f"signed again: {channel}, for {valid_days} days", done, as_json)


@app.command("update")
def update(
    context: typer.Context,
    channel: Annotated[str, typer.Option(metavar="URL|FOLDER", help="The channel.")],
    store: _Store,
    device_id: Annotated[str, typer.Option(metavar="ID", help="This device's name.")],
    trust: Annotated[
        Path | None, typer.Option(metavar="ROOT.json", help="The channel's first root, which the app ships with.")
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="The device's target.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model; a store is for one.")] = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The version of the runtime in this app build.")
    ] = None,
    no_clock: Annotated[bool, typer.Option("--no-clock", help="The device has no clock to judge expiry by.")] = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Bring a device's store to the channel's newest release, whole or not at all."""
    request = _request(context.params)
    from edgeq.cli.progress import open_progress

    with open_progress(quiet=quiet) as progress:
        from edgeq.pipeline.ota import update_device

        done = update_device(request, progress)
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(done), "place": str(done.place)})
        return
    came = f", {done.via}, {format_bytes(done.downloaded_bytes)}" if done.downloaded_bytes else ""
    before = f", release {done.previous} is kept" if done.previous and done.action == "installed" else ""
    say(f"{done.action}: release {done.release} (version {done.model_version}){came}{before}: {done.place}")
    for text in done.notes:
        say(f"note: {text}")


@app.command("start")
def start(store: _Store, as_json: flags.AsJson = False) -> None:
    """Print the folder that an app loads now, verified, and count the start until the release is healthy."""
    from edgeq._io import disk_errors, lock_dir
    from edgeq.deliver.ota.store import Store, started

    _must_be_store(store)
    with disk_errors(store), lock_dir(store, wait_s=_DAYS):
        state, bundle, why = started(Store(store))
    release_number = state.current.release if state.current else None
    if as_json:
        facts = {"release": release_number, "place": str(bundle.folder), "rolled_back": why}
        say_json({"schema_version": SCHEMA_VERSION, **facts})
    else:
        if why:
            say(f"rolled back to release {release_number}: {printable(why)}")
        say(str(bundle.folder))


@app.command("healthy")
def healthy(store: _Store, as_json: flags.AsJson = False) -> None:
    """Say that the current release works: it stays."""
    _changed(store, "healthy", as_json)


@app.command("rollback")
def rollback(store: _Store, as_json: flags.AsJson = False) -> None:
    """Go back to the previous release; the present one is not tried again on this device."""
    _changed(store, "rollback", as_json)


@app.command("status")
def status(store: _Store, as_json: flags.AsJson = False) -> None:
    """Print which release a store loads, and what it knows of others."""
    _changed(store, "status", as_json)


def _changed(folder: Path, what: str, as_json: bool) -> None:
    from edgeq._io import disk_errors, lock_dir
    from edgeq.deliver.ota import store as states

    _must_be_store(folder)
    with disk_errors(folder), lock_dir(folder, wait_s=_DAYS):
        store = states.Store(folder)
        state = store.state()
        if what != "status":
            state = states.healthy(state) if what == "healthy" else states.rolled_back(state, "asked to go back")
            if state.current is not None:
                store.bundle(state.current)
            store.save(state)
            store.recover()
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, "store": str(folder), "state": state.model_dump(mode="json")})
        return
    current = state.current
    if current is None:
        say("no release yet")
        return
    health = "healthy" if current.healthy else f"on trial, started {current.starts} times"
    say(f"release {current.release}, {health}, digest {current.digest[:12]}")
    if state.previous:
        say(f"previous: release {state.previous.release}")
    if state.trying:
        say(f"trying: release {state.trying.release}, {state.trying.tries} tries")
    if state.bad:
        say(f"failed here: {', '.join(str(number) for number in state.bad)}")


def _must_be_store(folder: Path) -> None:
    if not (folder / "device.json").is_file():
        raise UsageError(f"{folder} is no store", "make one with `edgeq ota update`")


def now() -> datetime.datetime:
    """Return the time of signing: SOURCE_DATE_EPOCH if set, so that a release can be made again byte by byte.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is no time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    try:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    except (ValueError, OverflowError, OSError) as err:
        what = f"SOURCE_DATE_EPOCH must be seconds since 1970, got {text!r}"
        raise UsageError(what, "set it to a number, or unset it") from err


def _job(params: Mapping[str, Any]) -> ReleaseJob:
    from edgeq.cli.project import read_project
    from edgeq.pipeline.ota import ReleaseJob

    project = read_project(params["config"])
    data = _data(params, project.data.evaluation, project.data.labels)
    runtimes = tuple(_runtime(text) for text in params["runtime"] or ())
    if not runtimes:
        runtimes = tuple((name, version) for name, versions in project.app.runtimes.items() for version in versions)
    return ReleaseJob(
        bundles=tuple(params["bundles"]),
        channel=params["channel"],
        keys=params["keys"],
        now=now(),
        deltas=params["deltas"],
        delta_from=tuple(params["delta_from"] or ()),
        runtimes=runtimes,
        devices=tuple(dict.fromkeys(params["device"] or ())),
        licence=params["licence"],
        valid_days=params["valid_days"],
        gates=_gates(params, project),
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


def _runtime(text: str) -> tuple[str, str]:
    name, equals, version = text.partition("=")
    if not equals or not name or not version:
        raise UsageError(f"expected NAME=VERSION, got {text!r}", "write, for example, --runtime executorch=1.5")
    return name, version


def _request(params: Mapping[str, Any]) -> Request:
    from edgeq.deliver.ota.client import Request
    from edgeq.deliver.ota.fetch import open_source

    root: bytes | None = None
    if params["trust"] is not None:
        try:
            root = Path(params["trust"]).read_bytes()
        except OSError as err:
            raise UsageError(f"cannot read --trust {params['trust']}: {err.strerror}", "check the path") from err
    return Request(
        source=open_source(params["channel"]),
        store=params["store"],
        device_id=params["device_id"],
        model=params["model"],
        target=params["target"],
        runtime=params["runtime"],
        trust=root,
        clock=None if params["no_clock"] else datetime.datetime.now(datetime.UTC),
    )


def _tell_published(head: str, done: Published, as_json: bool) -> None:
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, **_published(done)})
    else:
        say("\n".join([head, *_published_lines(done)]))


def _published(done: Published) -> dict[str, Any]:
    return {
        "release": done.release,
        "files": [{"path": name, "size_bytes": size} for name, size in done.files],
        "root_version": done.root_version,
        "trust": str(done.trust),
    }


def _published_lines(done: Published) -> list[str]:
    return [
        f"release {done.release}, root version {done.root_version}",
        *aligned([(format_bytes(size), name) for name, size in done.files], right=frozenset({0})),
    ]


def _report_text(report: ReleaseReport) -> str:
    lines = []
    for row in report.rows:
        lines.append(f"{row.model} {row.model_version} for {row.target}: {printable(str(row.path))}")
        lines += aligned([(gate.outcome, gate.name, _told(gate)) for gate in row.checked.gates])
        lines += aligned(_sizes(row), right=frozenset({1}))
    if report.published is None:
        failed = [gate.name for row in report.rows for gate in row.checked.gates if not gate.passed]
        return "\n".join(
            [*lines, f"refused: {', '.join(failed)} (exit code {int(report.exit_code)}); nothing was written"]
        )
    done = report.published
    head = f"published: release {done.release} in {report.channel}"
    return "\n".join([*lines, head, *_published_lines(done)[1:], f"an app ships with: {done.trust}"])


def _sizes(row: ReleaseRow) -> list[tuple[str, str, str]]:
    rows = [("download", format_bytes(row.download_bytes), "deflated ZIP")]
    for delta in row.deltas:
        share = f"{delta.size_bytes / row.download_bytes:.1%} of the download, {delta.algorithm}"
        kept = "" if delta.published else ", not published"
        rows.append((f"patch from {delta.label}", format_bytes(delta.size_bytes), share + kept))
    return rows


def _told(gate: Gate) -> str:
    told = " ".join(part for part in (gate.measured, f"({gate.limit})" if gate.limit else "") if part)
    return f"{told}: {gate.detail}" if told and gate.detail else told or gate.detail


def _report_json(report: ReleaseReport) -> dict[str, Any]:
    done = report.published
    return {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(report.exit_code),
        "channel": str(report.channel),
        "rows": [
            {
                "model": row.model,
                "model_version": row.model_version,
                "target": row.target,
                "path": str(row.path),
                "digest": row.digest,
                "download_bytes": row.download_bytes,
                "deltas": [dataclasses.asdict(delta) for delta in row.deltas],
                "gates": [{**dataclasses.asdict(gate), "passed": gate.passed} for gate in row.checked.gates],
            }
            for row in report.rows
        ],
        "published": _published(done) if done else None,
    }
