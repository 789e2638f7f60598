"""`edgeq devices`: the devices that latency can be predicted for, and fitting one to measurements."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import flags
from edgeq.cli.columns import aligned
from edgeq.cli.output import say, say_json
from edgeq.profiles import device_files

if TYPE_CHECKING:
    from edgeq.pipeline.fit import DeviceFit

app = typer.Typer(help="List, show and fit the devices that latency is predicted for.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_devices(as_json: AsJson = False) -> None:
    """List the shipped devices."""
    # without edgeq.device, and so without pydantic: the shipped files are checked by the tests
    profiles: list[dict[str, Any]] = [
        tomllib.loads(path.read_text(encoding="utf-8")) for path in device_files().values()
    ]
    if as_json:
        keys = ("name", "description", "core", "width", "clock_ghz", "cores")
        say_json({"schema_version": 1, "devices": [{key: one[key] for key in keys} for one in profiles]})
        return
    rows = [
        (one["name"], f"{one['cores']} x {one['core']}, {one['clock_ghz']:.3g} GHz", one["description"])
        for one in profiles
    ]
    say("\n".join(aligned(rows, indent="")) if rows else "no devices are shipped")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A device's name, or a .toml file.")],
    as_json: AsJson = False,
) -> None:
    """Show a device as edgeq understands it, with the source of each value."""
    from edgeq.device import load_device
    from edgeq.pipeline.fit import device_toml

    profile = load_device(name)
    if as_json:
        say_json({"schema_version": 1, "device": profile.model_dump(mode="json")})
    else:
        say(device_toml(profile).rstrip("\n"))


@app.command("fit")
def fit(
    measurements: Annotated[
        Path,
        typer.Option(metavar="FILE", help="TOML: `device`, and [[measurement]] tables: bundle, latency_ms, threads."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the device profile goes.")
    ] = None,
    as_json: AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Correct a device's predictions by latencies that you measured on it.

    The bundles are counted here under emulation. With --out, the corrected device is written to a .toml file, which
    --device takes.
    """
    from edgeq.cli.progress import open_progress

    with open_progress(quiet=quiet) as progress:
        from edgeq.pipeline.fit import fit_device, write_device

        found = fit_device(measurements, progress)
        if out is not None:
            write_device(found.profile, out)
    say_json(_to_json(found)) if as_json else say(_render(found, out))


def _render(found: DeviceFit, out: Path | None) -> str:
    from edgeq.pipeline.fit import device_toml

    head = ("measured", "published fit", "this fit", "threads", "bundle")
    rows = [
        (
            _ms(one.measured_ms),
            _off(one.published_ms, one.measured_ms),
            _off(one.fitted_ms, one.measured_ms),
            str(one.threads),
            one.bundle,
        )
        for one in found.residuals
    ]
    lines = aligned([head, *rows], indent="", right=frozenset({0, 1, 2, 3}))
    return "\n".join([*lines, "", f"written: {out}" if out else device_toml(found.profile).rstrip("\n")])


def _ms(value: float) -> str:
    return f"{value:.3g} ms"


def _off(predicted: float, measured: float) -> str:
    return f"{_ms(predicted)} ({predicted / measured - 1:+.0%})"


def _to_json(found: DeviceFit) -> dict[str, Any]:
    import dataclasses

    return {
        "schema_version": 1,
        "device": found.profile.model_dump(mode="json"),
        "measurements": [dataclasses.asdict(one) for one in found.residuals],
    }
