"""From the options of `edgeq ota release`, over the project's file, to a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli.clock import clock, now
from edgeq.cli.params import ConfigOptions, to_values
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from edgeq.deliver.ota.entries import Terms
    from edgeq.job import DataOptions, GateOptions
    from edgeq.manifest import Manifest
    from edgeq.pipeline.ota import ReleaseJob


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelParams:
    """Where is published, and by whom."""

    channel: Annotated[Path, typer.Option(metavar="FOLDER", help="The channel: a folder that a web server can serve.")]
    keys: Annotated[Path, typer.Option(metavar="FOLDER", help="The signing keys, as `edgeq keys new` made them.")]
    valid_days: Annotated[
        int, typer.Option(metavar="N", help="Days after which clients refuse the index.", min=1, max=3650)
    ] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseParams:
    """Whom a release is for, the patches that lead to it, and what is written beside it."""

    delta_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="A bundle that devices have besides, such as the app's own; repeatable."),
    ] = None
    deltas: Annotated[int, typer.Option(metavar="N", help="Patches from the last N releases.", min=0, max=20)] = 3
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VERSION", help="A runtime of an app build in the field: executorch=1.5; repeatable."
        ),
    ] = None
    device: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The only devices that it is for; repeatable.")
    ] = None
    licence: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="The model's licence, for the bill of materials.")
    ] = None
    allow_expired: Annotated[
        bool,
        typer.Option("--allow-expired", help="Write an index that has expired: an old SOURCE_DATE_EPOCH's, again."),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseGateParams:
    """What a release is held to, and by which data."""

    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            help="download=4MB, delta=1MB, size=5MB, flips=2%, class_drop=1pp; repeatable.",
        ),
    ] = None
    verdict: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="As for `edgeq install`, of one of these bundles; repeatable."),
    ] = None


RELEASE_OPTIONS = ConfigOptions(
    keys=("data.evaluation", "data.labels", "store_limits", "app_size"),
    docs={
        "data.evaluation": "Evaluation data for flips and class_drop: an image folder, .npz/.npy or file.py:function."
    },
)


def release_job(
    bundles: Sequence[Path],
    channel: ChannelParams,
    release: ReleaseParams,
    gates: ReleaseGateParams,
    options: dict[str, Any],
    config: Path | None,
) -> ReleaseJob:
    """Return what the options ask for.

    Raises:
        UsageError: an option that would change nothing, an unknown name, or a file that cannot be read.
        IntegrityError: a folder that is no bundle.
    """
    from edgeq.bundle.reader import read_manifest
    from edgeq.cli.models import read_released
    from edgeq.cli.project import merge
    from edgeq.pipeline.ota import ReleaseJob

    manifests = [read_manifest(folder)[1] for folder in bundles]
    project = read_released(config, tuple(dict.fromkeys(one.model.name for one in manifests)))
    in_app = project.get("app", {}).get("runtimes", {})
    command_line = to_values(options)
    values = merge(command_line, project)
    held_to = _gates(gates, values)
    if "data" in command_line:
        _check_eval_data(command_line["data"].get("evaluation"), held_to)
    return ReleaseJob(
        bundles=tuple(bundles),
        channel=channel.channel,
        keys=channel.keys,
        deltas=release.deltas,
        delta_from=_bases(release.delta_from or (), manifests),
        verdicts=tuple(gates.verdict or ()),
        terms=_terms(release, _runtimes(release.runtime or (), manifests, in_app), channel.valid_days),
        gates=held_to,
        data=_data(values),
    )


def _terms(release: ReleaseParams, runtimes: tuple[tuple[str, str], ...], valid_days: int) -> Terms:
    from edgeq.deliver.ota.entries import Terms

    return Terms(
        now=now(),
        clock=None if release.allow_expired else clock(),
        runtimes=runtimes,
        devices=_devices(release.device or ()),
        licence=release.licence,
        valid_days=valid_days,
    )


def _gates(gates: ReleaseGateParams, values: dict[str, Any]) -> GateOptions:
    from edgeq.job import GateOptions
    from edgeq.pipeline.ota import RELEASE_LIMITS
    from edgeq.scheme import parse_limit
    from edgeq.units import parse_size_bytes

    in_file = [f"{name}={text}" for name, text in values.get("limit", {}).items() if name in RELEASE_LIMITS]
    size = values.get("app_size")
    return GateOptions(
        # the last of a name counts, as for `edgeq package`
        limits=tuple(dict(parse_limit(text) for text in (*in_file, *(gates.limit or ()))).items()),
        store_limits=tuple(values.get("store_limits", ())),
        app_size_bytes=None if size is None else parse_size_bytes(size),
    )


def _data(values: dict[str, Any]) -> DataOptions:
    from edgeq.cli.project import filled
    from edgeq.job import DataOptions

    data = values.get("data", {})
    return filled(DataOptions, {key: data[key] for key in ("evaluation", "labels") if key in data})


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


def _runtimes(
    texts: Sequence[str], manifests: Sequence[Manifest], in_app: dict[str, list[str]]
) -> tuple[tuple[str, str], ...]:
    """Return the runtimes in the field; those of the project's app where no option names one."""
    known = sorted({one.target.runtime for one in manifests})
    in_file = ((name, version) for name, versions in in_app.items() for version in versions)
    return tuple(_runtime(text, known) for text in texts) or tuple(in_file)


def _runtime(text: str, known: Sequence[str]) -> tuple[str, str]:
    """Return a runtime's name and version; one that none of the bundles runs on would judge nothing."""
    name, equals, version = text.partition("=")
    if not equals or not name or not version:
        raise UsageError(f"expected NAME=VERSION, got {text!r}", f"write, for example, --runtime {known[0]}=1.5")
    if name not in known:
        raise UsageError(f"--runtime {text}: none of the bundles runs on {name!r}", f"theirs: {', '.join(known)}")
    return name, version
