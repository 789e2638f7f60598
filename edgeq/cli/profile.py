"""`edgeq profile`: what a bundle's operators cost on a phone's core, and how long an inference should take."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.cli import options
from edgeq.cli.console import open_progress, say, say_json
from edgeq.core.profiles import device_files
from edgeq.core.units import counted

if TYPE_CHECKING:
    from edgeq.core.devices import CountReport, Counts
    from edgeq.pipeline.fit_device import DeviceFit
    from edgeq.pipeline.profile import BundleProfile, CoreProfile, Predicted


SCHEMA_VERSION = 1

_TOP = 10


def profile(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, as `edgeq package` wrote it.")],
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="CORE,…", help="Cores to count on, such as cortex-a53,cortex-a76; the target's if not given."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A device of `edgeq devices list`, or a .toml file, to predict for."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of the prediction; the manifest's if not given.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="How many operators to list; JSON has all.")] = _TOP,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="The longest that a core may take.")] = 600.0,
    trust_source: options.TrustSource = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Count what one inference makes a core do, and predict how long it takes.

    The device's own kernels run under emulation on one thread, and every instruction is counted. Latencies are
    predicted from the counts, not measured.
    """
    cores = tuple(dict.fromkeys(name.strip() for name in (cpu or "").split(",") if name.strip()))
    with open_progress(quiet=quiet) as progress:
        from edgeq.pipeline.profile import profile_bundle

        found = profile_bundle(
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
    """Return a block for each core: totals, predictions, the dearest operators."""
    from edgeq.report.text import printable

    manifest = found.manifest
    title = f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"
    lines = [f"{title}: {printable(str(found.folder))}", f"one inference in {found.runtime}, emulated on one thread"]
    for core in found.cores:
        lines += ["", *_core_lines(core, top)]
    return "\n".join(lines)


def _core_lines(core: CoreProfile, top: int) -> list[str]:
    from edgeq.report.text import aligned

    counts = core.counted.total
    lines = [f"{core.counted.cpu}: {_millions(counts.instructions)} M instructions"]
    facts = [("vector multiplies", _kinds(counts)), ("other", _others(counts)), ("memory", _traffic(counts))]
    facts += [(f"{one.device}, predicted", _latency(one)) for one in core.predicted]
    lines += [f"  {line}" for line in aligned(facts)]
    return [*lines, *(f"  {line}" for line in _operator_lines(core.counted, top))]


def _kinds(counts: Counts) -> str:
    kinds = (("float", counts.fp_mac), ("integer", counts.int_mac), ("dot", counts.dot), ("i8mm", counts.i8mm))
    return ", ".join(f"{_millions(count)} M {name}" for name, count in kinds if count) or "none"


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
    told, threads = one.latency, counted(one.threads, "thread")
    beyond = ", extrapolated" if told.extrapolated else ""
    return f"{told.estimate_ms:.3g} ms ({told.low_ms:.3g} to {told.high_ms:.3g}) on {threads}{beyond}"


def _operator_lines(counted: CountReport, top: int) -> list[str]:
    from edgeq.report.text import aligned

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
    lines = [f"operators: {len(counted.operators)}, the dearest {len(dearest)}:"]
    return [*lines, *aligned([head, *rows], right=frozenset({0, 1, 2}))]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 1e8 else f"{count / 1e6:.1f}"


def to_json(found: BundleProfile) -> dict[str, Any]:
    """Return the same for machines; `schema_version` changes when a key goes or changes its meaning."""
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


app = typer.Typer(help="List, show and fit the devices that latency is predicted for.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_devices(as_json: AsJson = False) -> None:
    """List the shipped devices."""
    from edgeq.report.text import aligned

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
    from edgeq.core.devices import load_device
    from edgeq.pipeline.fit_device import device_toml

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
    trust_source: options.TrustSource = False,
    as_json: AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Correct a device's predictions by latencies that you measured on it.

    The bundles are counted here under emulation. With --out, the corrected device is written to a .toml file, which
    --device takes.
    """
    with open_progress(quiet=quiet) as progress:
        from edgeq.pipeline.fit_device import fit_device, write_device

        found = fit_device(measurements, progress, trusted=trust_source)
        if out is not None:
            write_device(found.profile, out)
    say_json(_to_json(found)) if as_json else say(_render(found, out))


def _render(found: DeviceFit, out: Path | None) -> str:
    from edgeq.pipeline.fit_device import device_toml
    from edgeq.report.text import aligned

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
