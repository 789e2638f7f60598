"""`edgeq ota` on a device: the reference client, and the app's reports to its store."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgeq
from edgeq.cli import options
from edgeq.cli.console import SCHEMA_VERSION, open_progress, say, say_json
from edgeq.cli.options import grouped
from edgeq.core.errors import UsageError
from edgeq.core.files import disk_errors, lock_dir
from edgeq.core.units import counted, format_bytes

if TYPE_CHECKING:
    import edgeq.deliver.ota.client
    import edgeq.deliver.ota.fetch
    import edgeq.deliver.ota.store
    import edgeq.pipeline.verify
    import edgeq.report.text


_LOCK_S = 30.0

_Store = Annotated[Path, typer.Option(metavar="FOLDER", help="The device's store.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerParams:
    """The device and the channel that it follows."""

    channel: Annotated[str, typer.Option(metavar="URL|FOLDER", help="The channel.")]
    store: _Store
    device_id: Annotated[str, typer.Option(metavar="ID", help="This device's name.")]
    trust: Annotated[
        Path | None, typer.Option(metavar="ROOT.json", help="The channel's first root, which the app ships with.")
    ] = None
    target: Annotated[str | None, typer.Option(metavar="NAME", help="The device's target.")] = None
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model; a store holds one model.")] = None
    runtime: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The version of the runtime in this app build.")
    ] = None
    no_clock: Annotated[
        bool, typer.Option("--no-clock", help=("The device has no clock, so expiry is judged by the time of signing."))
    ] = False
    trust_source: options.TrustSource = False


@grouped
def update(device: FollowerParams, as_json: options.AsJson = False, quiet: options.Quiet = False) -> None:
    """Update a device's store to the channel's newest release; a failed update changes nothing."""
    root: bytes | None = None
    if device.trust is not None:
        try:
            root = Path(device.trust).read_bytes()
        except OSError as err:
            raise UsageError(f"cannot read --trust {device.trust}: {err.strerror}", "check the path") from err
    request = edgeq.deliver.ota.client.Request(
        source=edgeq.deliver.ota.fetch.open_source(device.channel),
        store=device.store,
        device_id=device.device_id,
        model=device.model,
        target=device.target,
        runtime=device.runtime,
        trust=root,
        clock=None if device.no_clock else datetime.datetime.now(datetime.UTC),
    )

    with open_progress(quiet=quiet) as progress, progress.task("update"):

        def self_test(folder: Path) -> None:
            # loaded when a new release has come, which it seldom has
            edgeq.pipeline.verify.golden_self_test(folder, progress, trusted=device.trust_source)

        done = edgeq.deliver.ota.client.update(request, self_test)
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(done), "place": str(done.place)})
        return
    came = f", {done.via}, {format_bytes(done.downloaded_bytes)}" if done.downloaded_bytes else ""
    before = f", release {done.previous} is kept" if done.previous and done.action == "installed" else ""
    say(f"{done.action}: release {done.release} (version {done.model_version}){came}{before}: {done.place}")
    for text in done.notes:
        say(f"note: {text}")


def start(store: _Store, as_json: options.AsJson = False) -> None:
    """Print the folder that an app loads now, verified, and count the start until the release is healthy."""
    _must_be_store(store)
    with disk_errors(store), lock_dir(store, wait_s=_LOCK_S):
        state, bundle, why = edgeq.deliver.ota.store.started(edgeq.deliver.ota.store.Store(store))
    release_number = state.current.release if state.current else None
    if as_json:
        facts = {"release": release_number, "place": str(bundle.folder), "rolled_back": why}
        say_json({"schema_version": SCHEMA_VERSION, **facts})
    else:
        if why:
            say(f"rolled back to release {release_number}: {edgeq.report.text.printable(why)}")
        say(str(bundle.folder))


def healthy(store: _Store, as_json: options.AsJson = False) -> None:
    """Report that the current release works, so that it stays."""
    _changed(store, "healthy", as_json)


def rollback(store: _Store, as_json: options.AsJson = False) -> None:
    """Go back to the previous release; the current one is not tried again on this device."""
    _changed(store, "rollback", as_json)


def status(store: _Store, as_json: options.AsJson = False) -> None:
    """Print the release that a store loads, and the state of others."""
    _changed(store, "status", as_json)


def _changed(folder: Path, what: str, as_json: bool) -> None:
    _must_be_store(folder)
    with disk_errors(folder), lock_dir(folder, wait_s=_LOCK_S):
        store = edgeq.deliver.ota.store.Store(folder)
        state = store.state()
        if what != "status":
            state = (
                edgeq.deliver.ota.store.healthy(state)
                if what == "healthy"
                else edgeq.deliver.ota.store.rolled_back(state, "rollback requested")
            )
            if state.current is not None:
                store.bundle(state.current)
            store.save(state)
            store.recover_between_updates()
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, "store": str(folder), "state": state.model_dump(mode="json")})
        return
    current = state.current
    if current is None:
        say("no release yet")
        return
    health = "healthy" if current.healthy else f"on trial, started {counted(current.starts, 'time')}"
    say(f"release {current.release}, {health}, digest {current.digest[:12]}")
    if state.previous:
        say(f"previous: release {state.previous.release}")
    if state.trying:
        say(f"trying: release {state.trying.release}, {counted(state.trying.tries, 'try')}")
    if state.bad:
        say(f"failed here: {', '.join(str(number) for number in state.bad)}")


def _must_be_store(folder: Path) -> None:
    if not (folder / "device.json").is_file():
        raise UsageError(f"{folder} is not a store", "create one with `edgeq ota update`")
