"""`edgeq profile`: instruction counts of a bundle's operators on a phone's core, and predicted latency."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options
from edgeq.cli.console import open_progress, say, say_json
from edgeq.core.profiles import device_files
from edgeq.core.units import counted

if TYPE_CHECKING:
    import edgeq.core.devices
    import edgeq.pipeline.fit_device
    import edgeq.pipeline.profile
    import edgeq.report.text
    from edgeq.core.results.measured import CountReport, Counts
    from edgeq.pipeline.fit_device import DeviceFit
    from edgeq.pipeline.profile import BundleProfile, CoreProfile, Predicted


SCHEMA_VERSION = 1

_TOP = 10


def profile(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, from `edgeq package`.")],
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="CORE,…", help="Cores to count on, such as cortex-a53,cortex-a76. [default: the target's cores]"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A device of `edgeq devices list`, or a .toml file, to predict for."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of the prediction. [default: the manifest's]")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Number of operators to list; --json has all.")] = _TOP,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Time limit for each core.")] = 600.0,
    trust_source: options.TrustSource = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Count the instructions of one inference on each core, and predict its latency.

    The device's own kernels run under emulation on one thread, and every instruction is counted. Latencies are
    predicted from the counts, not measured.
    """
    cores = tuple(dict.fromkeys(name.strip() for name in (cpu or "").split(",") if name.strip()))
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.profile.profile_bundle(
            bundle,
            cpus=cores,
            device=device,
            threads=threads,
            progress=progress,
            timeout_s=timeout,
            operators=top > 0,
            trusted=trust_source,
        )
    if as_json:
        say_json(to_json(found))
    else:
        say(render(found, top))


def render(found: BundleProfile, top: int) -> str:
    """Return a block for each core: totals, predictions, the most expensive operators."""
    manifest = found.manifest
    title = f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"
    lines = [
        f"{title}: {edgeq.report.text.printable(str(found.folder))}",
        f"one inference in {found.runtime}, emulated on one thread",
    ]
    for core in found.cores:
        lines += ["", *_core_lines(core, top)]
    return "\n".join(lines)


def _core_lines(core: CoreProfile, top: int) -> list[str]:
    counts = core.counted.total
    lines = [f"{core.counted.cpu}: {_millions(counts.instructions)} M instructions"]
    kinds = (("float", counts.fp_mac), ("integer", counts.int_mac), ("dot", counts.dot), ("i8mm", counts.i8mm))
    facts = [
        ("vector multiplies", ", ".join(f"{_millions(count)} M {name}" for name, count in kinds if count) or "none"),
        ("other", _others(counts)),
        ("memory", _traffic(counts)),
    ]
    facts += [(f"{one.device}, predicted", _latency(one)) for one in core.predicted]
    lines += [f"  {line}" for line in edgeq.report.text.aligned(facts)]
    return [*lines, *(f"  {line}" for line in _operator_lines(core.counted, top))]


def _others(counts: Counts) -> str:
    kinds = {
        "vector": counts.neon,
        "load": counts.load,
        "store": counts.store,
        "branch": counts.branch,
        "scalar": counts.scalar,
        "unknown": counts.other,
    }
    return ", ".join(f"{_millions(count)} M {name}" for name, count in kinds.items() if count)


def _traffic(counts: Counts) -> str:
    lines = (
        f"{counts.lines_32k * 64 / 1e6:.1f} MB into a 32 KiB cache, {counts.lines_1024k * 64 / 1e6:.1f} MB into 1 MiB"
    )
    return f"{counts.bytes_loaded / 1e6:.1f} MB loaded, {counts.bytes_stored / 1e6:.1f} MB stored; {lines}"


def _latency(one: Predicted) -> str:
    latency, threads = one.latency, counted(one.threads, "thread")
    beyond = ", extrapolated" if latency.extrapolated else ""
    return f"{latency.estimate_ms:.3g} ms ({latency.low_ms:.3g} to {latency.high_ms:.3g}) on {threads}{beyond}"


def _operator_lines(counted: CountReport, top: int) -> list[str]:
    if counted.why_no_operators:
        return [f"operators: not counted separately: {counted.why_no_operators}"]
    if not counted.operators or not top:
        return []
    whole = counted.total.instructions or 1
    dearest = sorted(counted.operators, key=lambda one: -one.counts.instructions)[:top]
    rows = [
        (
            _millions(one.counts.instructions),
            f"{one.counts.instructions / whole:.1%}",
            f"{one.counts.lines_32k * 64 / 1e6:.2f}",
            one.name,
        )
        for one in dearest
    ]
    head = ("M instructions", "share", "MB fetched", "operator")
    lines = [f"operators: {len(counted.operators)}, the most expensive {len(dearest)}:"]
    return [*lines, *edgeq.report.text.aligned([head, *rows], right=frozenset({0, 1, 2}))]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 1e8 else f"{count / 1e6:.1f}"


def to_json(found: BundleProfile) -> dict[str, Any]:
    """Return the same as JSON; `schema_version` changes when a key is removed or changes its meaning."""
    manifest = found.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": str(found.folder),
        "model": manifest.model.name,
        "model_version": manifest.model.version,
        "target": manifest.target.name,
        "scheme": manifest.scheme,
        "runtime": found.runtime,
        "cores": [_core_json(core) for core in found.cores],
    }


def _core_json(core: CoreProfile) -> dict[str, Any]:
    counted = core.counted
    return {
        "cpu": counted.cpu,
        "instructions": counted.total.instructions,
        "counts": dataclasses.asdict(counted.total),
        "predicted": [
            {"device": one.device, "threads": one.threads, **dataclasses.asdict(one.latency)} for one in core.predicted
        ],
        "operators": [
            {"name": one.name, "instructions": one.counts.instructions, "counts": dataclasses.asdict(one.counts)}
            for one in counted.operators
        ],
        "operators_unknown": counted.why_no_operators or None,
    }


# --- `edgeq devices`: the devices that latency can be predicted for, and fitting one to measurements.


app = typer.Typer(help="List, show and fit the devices for latency predictions.")

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
    say("\n".join(edgeq.report.text.aligned(rows, indent="")) if rows else "no devices are shipped")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A device's name, or a .toml file.")],
    as_json: AsJson = False,
) -> None:
    """Show a device as edgeq understands it, with the source of each value."""
    profile = edgeq.core.devices.load_device(name)
    if as_json:
        say_json({"schema_version": 1, "device": profile.model_dump(mode="json")})
    else:
        say(edgeq.pipeline.fit_device.device_toml(profile).rstrip("\n"))


@app.command("fit")
def fit(
    measurements: Annotated[
        Path,
        typer.Option(metavar="FILE", help="TOML: `device`, and [[measurement]] tables: bundle, latency_ms, threads."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write the device profile to.")
    ] = None,
    trust_source: options.TrustSource = False,
    as_json: AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit a device's predictions to latencies that you measured on it.

    The bundles' instructions are counted here under emulation. With --out, the fitted device is written to a .toml file
    for --device.
    """
    with open_progress(quiet=quiet) as progress:
        found = edgeq.pipeline.fit_device.fit_device(measurements, progress, trusted=trust_source)
        if out is not None:
            edgeq.pipeline.fit_device.write_device(found.profile, out)
    say_json(_to_json(found)) if as_json else say(_render(found, out))


def _render(found: DeviceFit, out: Path | None) -> str:
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
    lines = edgeq.report.text.aligned([head, *rows], indent="", right=frozenset({0, 1, 2, 3}))
    return "\n".join(
        [*lines, "", f"written: {out}" if out else edgeq.pipeline.fit_device.device_toml(found.profile).rstrip("\n")]
    )


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
