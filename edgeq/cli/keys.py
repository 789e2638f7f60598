"""`edgeq keys`: the keys that sign a channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli.console import clock, now, say, say_json
from edgeq.core.errors import UsageError, nearest

if TYPE_CHECKING:
    import edgeq.deliver.ota.keys
    import edgeq.deliver.ota.release
    import edgeq.report.text
    from edgeq.deliver.ota.keys import KeyRing, RoleName


app = typer.Typer(help="Create, show and replace the keys that sign updates.")

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the keys.")]

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("new")
def new(
    folder: _Folder,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=K/N",
            help=("Threshold K and number N of a role's keys, as ROLE=K/N, such as root=2/3; repeatable."),
        ),
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=URI",
            help="Private key outside FOLDER: env:VARIABLE, or a KMS URI such as awskms:…; repeatable.",
        ),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Create Ed25519 keys for root, targets, snapshot and timestamp, in files that only you can read."""
    counts = {_role(role): _counts(text) for role, text in map(_pair, threshold or ())}
    places = {_role(role): uri for role, uri in map(_pair, place or ())}
    both = sorted(set(counts) & set(places))
    if both:
        what = f"--threshold and --place are both given for {both[0]}"
        raise UsageError(what, "a role with an external key (--place) has exactly one key: drop its --threshold")
    _print_keys(edgeq.deliver.ota.keys.new_keys(folder, counts=counts, places=places), as_json)


@app.command("show")
def show(folder: _Folder, as_json: _AsJson = False) -> None:
    """Print the public keys, the thresholds, and where the private keys are."""
    _print_keys(edgeq.deliver.ota.keys.load_keys(folder), as_json)


@app.command("rotate")
def rotate(
    folder: _Folder,
    role: Annotated[str, typer.Option(metavar="ROLE", help="root, targets, snapshot or timestamp.")],
    channel: Annotated[Path, typer.Option(metavar="FOLDER", help="The channel whose clients must accept the change.")],
    as_json: _AsJson = False,
) -> None:
    """Replace a role's keys and publish the change; clients then refuse the old keys."""
    ring = edgeq.deliver.ota.keys.load_keys(folder)
    if not ring.file.retired.get(_role(role)):  # a run that was killed has made the new ones already
        ring = edgeq.deliver.ota.keys.rotated(ring, _role(role))
    done = edgeq.deliver.ota.release.refresh(channel, ring, edgeq.deliver.ota.release.Terms(now=now(), clock=clock()))
    ring = edgeq.deliver.ota.keys.forget_retired(ring)
    if as_json:
        say_json({"schema_version": 1, **_facts(ring), "channel": str(channel), "root_version": done.root_version})
    else:
        say(_text(ring))
        say(f"published: {channel} has root version {done.root_version}")


def _print_keys(ring: KeyRing, as_json: bool) -> None:
    if as_json:
        say_json({"schema_version": 1, **_facts(ring)})
    else:
        say(_text(ring))


def _text(ring: KeyRing) -> str:
    rows = [
        (role, f"{keys.threshold} of {len(keys.keys)}", key.keyid[:16], key.uri.partition("?")[0])
        for role, keys in ring.file.roles.items()
        for key in keys.keys
    ]
    return "\n".join([f"keys: {ring.folder}", *edgeq.report.text.aligned(rows)])


def _facts(ring: KeyRing) -> dict[str, Any]:
    return {
        "folder": str(ring.folder),
        "roles": {
            role: {
                "threshold": keys.threshold,
                "keys": [
                    {"keyid": key.keyid, "public": key.public, "uri": key.uri.partition("?")[0]} for key in keys.keys
                ],
            }
            for role, keys in ring.file.roles.items()
        },
    }


def _pair(text: str) -> tuple[str, str]:
    role, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"expected ROLE=VALUE, got {text!r}", "for example --threshold root=2/3")
    return role, value


def _role(name: str) -> RoleName:
    for role in edgeq.deliver.ota.keys.ROLES:
        if role == name:
            return role
    raise UsageError(
        f"unknown role {name!r}.{nearest(name, edgeq.deliver.ota.keys.ROLES)}",
        f"roles: {', '.join(edgeq.deliver.ota.keys.ROLES)}",
    )


def _counts(text: str) -> tuple[int, int]:
    least, slash, count = text.partition("/")
    if not slash or not least.isdecimal() or not count.isdecimal() or not 1 <= int(least) <= int(count) <= 16:
        raise UsageError(f"expected K/N with 1 <= K <= N <= 16, got {text!r}", "for example root=2/3")
    return int(least), int(count)
