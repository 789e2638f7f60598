"""`edgeq ota`: releases into a channel, and the reference client that follows one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq.cli import flags, ota_device
from edgeq.cli.clock import clock, now
from edgeq.cli.ota_job import RELEASE_OPTIONS, ChannelParams, ReleaseGateParams, ReleaseParams, release_job
from edgeq.cli.ota_words import report_json, report_text, tell_published
from edgeq.cli.output import say, say_json
from edgeq.cli.params import grouped
from edgeq.units import counted

app = typer.Typer(help="Publish over-the-air updates, and follow a channel as a device does.")
app.command("update")(ota_device.update)
app.command("start")(ota_device.start)
app.command("healthy")(ota_device.healthy)
app.command("rollback")(ota_device.rollback)
app.command("status")(ota_device.status)


@app.command("release")
@grouped
def release(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Bundles, as `edgeq package` wrote them.")],
    into: ChannelParams,
    release: ReleaseParams,
    gates: ReleaseGateParams,
    options: Annotated[dict[str, Any], RELEASE_OPTIONS],
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
    config: flags.Config = None,
) -> None:
    """Add a release to a channel: gated, patched, signed. Nothing is written if a gate fails.

    Limits, evaluation data and [app.runtimes] can stand in an edgeq.toml; the command line wins.
    """
    job = release_job(bundles, into, release, gates, options, config)
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
@grouped
def withdraw(
    version: Annotated[int, typer.Argument(metavar="RELEASE", help="The release's number.", min=1)],
    of: ChannelParams,
    as_json: flags.AsJson = False,
) -> None:
    """Publish what was there before a release again, under a higher number, so that devices go back."""
    from edgeq.deliver.ota.entries import Terms
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import withdraw as run

    done = run(of.channel, load_keys(of.keys), version, Terms(now=now(), clock=clock(), valid_days=of.valid_days))
    tell_published(f"withdrawn: release {version} of {of.channel}", done, as_json)


@app.command("refresh")
@grouped
def refresh(of: ChannelParams, as_json: flags.AsJson = False) -> None:
    """Sign a channel's index again before it expires; run it from a timer."""
    from edgeq.deliver.ota.entries import Terms
    from edgeq.deliver.ota.keys import load_keys
    from edgeq.deliver.ota.release import refresh as run

    done = run(of.channel, load_keys(of.keys), Terms(now=now(), clock=clock(), valid_days=of.valid_days))
    tell_published(f"signed again: {of.channel}, for {counted(of.valid_days, 'day')}", done, as_json)
