"""`edgeq ota`: publish releases into a channel, and follow a channel as the reference client."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options as flags
from edgeq.cli import ota_device
from edgeq.cli.console import SCHEMA_VERSION, clock, now, open_progress, say, say_json
from edgeq.cli.options import ConfigOptions, grouped, to_values
from edgeq.core.config import DataConfig, GateOptions
from edgeq.core.errors import UsageError
from edgeq.core.schemes import parse_limit
from edgeq.core.units import counted, format_bytes, parse_size_bytes

if TYPE_CHECKING:
    import edgeq.bundle.reader
    import edgeq.config.options
    import edgeq.config.project_file
    import edgeq.deliver.ota.index
    import edgeq.deliver.ota.keys
    import edgeq.deliver.ota.release
    import edgeq.pipeline.ota_release
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.core.manifest import Manifest
    from edgeq.core.results.report import Gate
    from edgeq.deliver.ota.release import Published
    from edgeq.pipeline.ota_release import ReleaseReport, ReleaseRow


# --- From the options of `edgeq ota release`, over the project's file, to a job.


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelParams:
    """The channel and its keys."""

    channel: Annotated[Path, typer.Option(metavar="FOLDER", help="Channel: a folder that a web server can serve.")]
    keys: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the signing keys, from `edgeq keys new`.")]
    valid_days: Annotated[
        int, typer.Option(metavar="N", help="Days after which clients refuse the index.", min=1, max=3650)
    ] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseParams:
    """The devices, patches and metadata of a release."""

    delta_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BUNDLE", help=("Further bundle that devices may have, such as the one in the app; repeatable.")
        ),
    ] = None
    deltas: Annotated[int, typer.Option(metavar="N", help="Make patches from the last N releases.", min=0, max=20)] = 3
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VERSION", help="Runtime of an app build in the field: executorch=1.5; repeatable."),
    ] = None
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help=("Release only for this device; repeatable. [default: all devices]")),
    ] = None
    licence: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="License of the model, for the bill of materials.")
    ] = None
    allow_expired: Annotated[
        bool,
        typer.Option(
            "--allow-expired", help=("Write the index even if an old SOURCE_DATE_EPOCH makes it already expired.")
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseGateParams:
    """The limits of a release, and the data that they are judged by."""

    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            help="Limit: download=4MB, delta=1MB, size=5MB, flips=2%, class_drop=1pp; repeatable.",
        ),
    ] = None
    verdict: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Measurements of one of these bundles, as for `edgeq install`; repeatable."),
    ] = None
    trust_source: flags.TrustSource = False


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
) -> edgeq.pipeline.ota_release.ReleaseJob:
    """Return the job for the options.

    Raises:
        UsageError: an option without effect, an unknown name, or a file that cannot be read.
        IntegrityError: a folder is not a bundle.
    """
    manifests = [edgeq.bundle.reader.read_manifest(folder)[1] for folder in bundles]
    project = edgeq.config.project_file.read_released(config, tuple(dict.fromkeys(one.model.name for one in manifests)))
    in_app = project.get("app", {}).get("runtimes", {})
    command_line = to_values(options)
    values = edgeq.config.options.merge(command_line, project)
    held_to = _gates(gates, values)
    if "data" in command_line:
        # refuse an evaluation set that no limit asks for: it would not even be opened
        eval_data = command_line["data"].get("evaluation")
        if eval_data is not None and not {"flips", "class_drop"} & {name for name, _ in held_to.limits}:
            what = "--eval-data is for the limits flips and class_drop, but neither is given"
            raise UsageError(what, "add a limit such as --limit flips=2%, or omit --eval-data")
    return edgeq.pipeline.ota_release.ReleaseJob(
        bundles=tuple(bundles),
        channel=channel.channel,
        keys=channel.keys,
        deltas=release.deltas,
        delta_from=_bases(release.delta_from or (), manifests),
        verdicts=tuple(gates.verdict or ()),
        terms=edgeq.deliver.ota.release.Terms(
            now=now(),
            clock=None if release.allow_expired else clock(),
            runtimes=_runtimes(release.runtime or (), manifests, in_app),
            devices=_devices(release.device or ()),
            licence=release.licence,
            valid_days=channel.valid_days,
        ),
        gates=held_to,
        data=_data(values),
        trusted=gates.trust_source,
    )


def _gates(gates: ReleaseGateParams, values: dict[str, Any]) -> GateOptions:
    in_file = [
        f"{name}={text}"
        for name, text in values.get("limit", {}).items()
        if name in edgeq.pipeline.ota_release.RELEASE_LIMITS
    ]
    size = values.get("app_size")
    return GateOptions(
        # the last of a name counts, as for `edgeq package`
        limits=tuple(dict(parse_limit(text) for text in (*in_file, *(gates.limit or ()))).items()),
        store_limits=tuple(values.get("store_limits", ())),
        app_size_bytes=None if size is None else parse_size_bytes(size),
    )


def _data(values: dict[str, Any]) -> DataConfig:
    data = values.get("data", {})
    return edgeq.config.options.filled(DataConfig, {key: data[key] for key in ("evaluation", "labels") if key in data})


def _bases(folders: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Path, ...]:
    """Refuse a base that no bundle of the release can be a patch from."""
    released = {(one.model.name, one.target.name) for one in manifests}
    for folder in folders:
        base = edgeq.bundle.reader.read_manifest(folder)[1]
        if (base.model.name, base.target.name) not in released:
            what = f"--delta-from {folder}: no bundle of this release is of {base.model.name} for {base.target.name}"
            raise UsageError(what, "give an earlier bundle of the same model and target")
    return tuple(folders)


def _devices(ids: Sequence[str]) -> tuple[str, ...]:
    from pydantic import TypeAdapter, ValidationError

    for one in ids:
        try:
            TypeAdapter(edgeq.deliver.ota.index.DeviceId).validate_python(one)
        except ValidationError as err:
            what = f"invalid device id --device {one!r}"
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
        raise UsageError(f"expected NAME=VERSION, got {text!r}", f"for example --runtime {known[0]}=1.5")
    if name not in known:
        raise UsageError(
            (f"--runtime {text}: none of the bundles runs on {name!r}"), f"their runtimes: {', '.join(known)}"
        )
    return name, version


app = typer.Typer(help="Publish over-the-air updates, and follow a channel as a device does.")

app.command("update")(ota_device.update)

app.command("start")(ota_device.start)

app.command("healthy")(ota_device.healthy)

app.command("rollback")(ota_device.rollback)

app.command("status")(ota_device.status)


@app.command("release")
@grouped
def release(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Bundles from `edgeq package`.")],
    into: ChannelParams,
    release: ReleaseParams,
    gates: ReleaseGateParams,
    options: Annotated[dict[str, Any], RELEASE_OPTIONS],
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    config: flags.Config = None,
) -> None:
    """Publish bundles as a signed release with patches. Nothing is written if a gate fails.

    Limits, evaluation data and [app.runtimes] can also be set in edgeq.toml; the command line takes precedence.
    """
    job = release_job(bundles, into, release, gates, options, config)

    with open_progress(quiet=quiet) as progress:
        report = edgeq.pipeline.ota_release.release(job, progress)
    if as_json:
        say_json(report_json(report))
    else:
        say(report_text(report))
    raise typer.Exit(report.exit_code)


@app.command("withdraw")
@grouped
def withdraw(
    version: Annotated[int, typer.Argument(metavar="RELEASE", help="The release's number.", min=1)],
    of: ChannelParams,
    as_json: flags.AsJson = False,
) -> None:
    """Publish the bundles from before a release again under a higher number, so that devices go back."""
    done = edgeq.deliver.ota.release.withdraw(
        of.channel,
        edgeq.deliver.ota.keys.load_keys(of.keys),
        version,
        edgeq.deliver.ota.release.Terms(now=now(), clock=clock(), valid_days=of.valid_days),
    )
    tell_published(f"withdrawn: release {version} of {of.channel}", done, as_json)


@app.command("refresh")
@grouped
def refresh(of: ChannelParams, as_json: flags.AsJson = False) -> None:
    """Sign a channel's index again before it expires; run this regularly."""
    done = edgeq.deliver.ota.release.refresh(
        of.channel,
        edgeq.deliver.ota.keys.load_keys(of.keys),
        edgeq.deliver.ota.release.Terms(now=now(), clock=clock(), valid_days=of.valid_days),
    )
    tell_published(f"signed again: {of.channel}, for {counted(of.valid_days, 'day')}", done, as_json)


# --- What `edgeq ota` prints of a release, for people and for machines.


def tell_published(head: str, done: Published, as_json: bool) -> None:
    """Print the published release."""
    if as_json:
        say_json({"schema_version": SCHEMA_VERSION, **published_json(done)})
    else:
        say("\n".join([head, *_published_lines(done)]))


def published_json(done: Published) -> dict[str, Any]:
    """Return the state of a channel as JSON."""
    return {
        "release": done.release,
        "files": [{"path": name, "size_bytes": size} for name, size in done.files],
        "root_version": done.root_version,
        "trust": str(done.trust),
        "expires": f"{done.expires:%Y-%m-%dT%H:%M:%SZ}",
    }


def _published_lines(done: Published) -> list[str]:
    return [
        f"release {done.release}, root version {done.root_version}, valid until {done.expires:%Y-%m-%d %H:%M} UTC",
        *edgeq.report.text.aligned([(format_bytes(size), name) for name, size in done.files], right=frozenset({0})),
    ]


def report_text(report: ReleaseReport) -> str:
    """Return a line for each gate and each size, and the published release."""
    lines = []
    for row in report.rows:
        lines.append(f"{row.model} {row.model_version} for {row.target}: {edgeq.report.text.printable(str(row.path))}")
        lines += edgeq.report.text.aligned([(gate.outcome, gate.name, _gate_text(gate)) for gate in row.checked.gates])
        if row.settled:
            lines.append(f"  {edgeq.report.text.printable(row.settled)}: digest {row.digest[:12]}")
        lines += edgeq.report.text.aligned(_sizes(row), right=frozenset({1}))
        if row.reuse is not None:
            lines += [f"  {line}" for line in edgeq.report.text.reuse(row.reuse.found, row.reuse.fidelity)]
    if report.published is None:
        failed = [gate.name for row in report.rows for gate in row.checked.gates if not gate.passed]
        return "\n".join(
            [*lines, f"refused: {', '.join(failed)} (exit code {int(report.exit_code)}); nothing was written"]
        )
    done = report.published
    head = f"published: release {done.release} in {report.channel}, valid until {done.expires:%Y-%m-%d %H:%M} UTC"
    return "\n".join([*lines, head, *_published_lines(done)[1:], f"root to ship in the app: {done.trust}"])


def _sizes(row: ReleaseRow) -> list[tuple[str, str, str]]:
    rows = [("download", format_bytes(row.download_bytes), "deflated ZIP")]
    for delta in row.deltas:
        share = f"{delta.size_bytes / row.download_bytes:.1%} of the download, {delta.algorithm}"
        kept = "" if delta.published else ", not published"
        rows.append((f"patch from {delta.label}", format_bytes(delta.size_bytes), share + kept))
    return rows


def _gate_text(gate: Gate) -> str:
    values = " ".join(part for part in (gate.measured, f"({gate.limit})" if gate.limit else "") if part)
    return f"{values}: {gate.detail}" if values and gate.detail else values or gate.detail


def report_json(report: ReleaseReport) -> dict[str, Any]:
    """Return the same as JSON."""
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
                "settled": row.settled or None,
                "reuse": edgeq.report.json.finite(dataclasses.asdict(row.reuse)) if row.reuse else None,
                "gates": [{**dataclasses.asdict(gate), "passed": gate.passed} for gate in row.checked.gates],
            }
            for row in report.rows
        ],
        "published": published_json(done) if done else None,
    }
