"""`edgeq verify`: read a bundle, run it on this host, and compare it with its manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options as flags
from edgeq.cli.console import note, now, open_progress, say, say_json
from edgeq.cli.options import ConfigOptions, grouped, to_values
from edgeq.core.config import DataConfig, DeviceConfig
from edgeq.core.errors import UsageError

if TYPE_CHECKING:
    import edgeq.config.options
    import edgeq.config.resolve
    import edgeq.pipeline.measurement
    import edgeq.pipeline.verify
    import edgeq.report.json
    import edgeq.report.text
    from edgeq.core.results.report import BundleVerification, Gate


SCHEMA_VERSION = 1

_OPTIONS = ConfigOptions(
    keys=(
        *("data.evaluation", "data.metric", "data.labels", "data.skip_bad_images"),
        *("limit", "limit_on", "predict_for", "shipped", "allow_unmeasured", "device"),
    ),
    defaults={"device.on": "host"},
    docs={"data.evaluation": "Labelled data to score: an image folder, .npz/.npy or file.py:function."},
)


@grouped
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, from `edgeq package`.")],
    options: Annotated[dict[str, Any], _OPTIONS],
    digest: flags.Digest = None,
    verdict: flags.Verdict = None,
    write_verdict: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write this run's measurements to FILE, for --verdict on another machine."),
    ] = None,
    no_run: Annotated[
        bool,
        typer.Option(
            "--no-run", help="Check only sizes, hashes, the gates from packaging, and size limits; needs no runtime."
        ),
    ] = False,
    trust_source: flags.TrustSource = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> None:
    """Verify a bundle on this host and, with --on, on its device's kernels, emulated or real.

    Checks the bundle's hashes, the gates from packaging, inputs and outputs, and golden samples; limits and evaluation
    data can be added. The artifact runs in a separate process.
    """
    values = to_values(options)
    device = edgeq.config.resolve.device_options(edgeq.config.options.filled(DeviceConfig, values["device"]))
    if device.cpu and device.on != "emulator":
        raise UsageError("--cpu was given without --on emulator", "add --on emulator")
    # refuse combinations that would measure twice or not at all
    if verdict is not None and (device.on != "host" or write_verdict is not None):
        other = f"--on {device.on}" if device.on != "host" else "--write-verdict"
        what = f"--verdict (measurements from another device) cannot be combined with {other}"
        raise UsageError(what, "omit one of them")
    if write_verdict is not None and device.on == "emulator":
        what = "--write-verdict needs a real device or this host; emulated timings are not meaningful"
        raise UsageError(what, "omit --on emulator, or give a device: --on ssh:HOST or --on adb")
    if no_run:
        given = {
            "--eval-data": "evaluation" in values.get("data", {}),
            f"--on {device.on}": device.on != "host",
            "--write-verdict": write_verdict is not None,
        }
        if name := next((name for name, is_given in given.items() if is_given), None):
            raise UsageError(f"{name} runs the artifact, and cannot be combined with --no-run", "omit one of them")
    when = now()

    with open_progress(quiet=quiet) as progress:
        result = edgeq.pipeline.verify.verify_bundle(
            bundle,
            data=edgeq.config.options.filled(DataConfig, values.get("data", {})),
            gates=edgeq.config.resolve.gate_options(values),
            device=device,
            progress=progress,
            digest=digest,
            verdict=verdict,
            trusted=trust_source,
            run=not no_run,
        )
        written = edgeq.pipeline.measurement.write_verdict(result, write_verdict, when) if write_verdict else None
    if as_json:
        say_json(to_json(result) | {"verdict_file": None if written is None else str(written)})
    else:
        say(render(result))
    if write_verdict is not None:
        note(f"verdict written: {written}" if written else "no verdict written: nothing was measured")
    raise typer.Exit(result.exit_code)


def render(result: BundleVerification) -> str:
    """Return a line for each check, the remarks, and the verdict."""
    manifest = result.manifest
    title = f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"
    lines = [f"{title}: {edgeq.report.text.printable(str(result.folder))}"]
    lines += edgeq.report.text.aligned([(gate.outcome, gate.name, _gate_text(gate)) for gate in result.checked.gates])
    if result.verified.emulation is not None:
        lines += edgeq.report.text.runs_table(result.verified.emulation)
    lines += [f"note: {edgeq.report.text.printable(text)}" for text in result.checked.warnings]
    failed = [gate.name for gate in result.checked.gates if not gate.passed]
    verdict = f"failed: {', '.join(failed)} (exit code {int(result.exit_code)})" if failed else "ok"
    return "\n".join([*lines, f"verdict: {edgeq.report.text.printable(verdict)}"])


def _gate_text(gate: Gate) -> str:
    values = " ".join(part for part in (gate.measured, f"({gate.limit})" if gate.limit else "") if part)
    return f"{values}: {gate.detail}" if values and gate.detail else values or gate.detail


def to_json(result: BundleVerification) -> dict[str, Any]:
    """Return the same as JSON.

    `schema_version` changes when a key is removed or changes its meaning, not when one is added. Key names include
    units; unmeasured values are null; infinities and NaN are strings as in `edgeq package --json`.
    """
    verified, manifest = result.verified, result.manifest
    document: dict[str, Any] = edgeq.report.json.finite(
        {
            "schema_version": SCHEMA_VERSION,
            "passed": not result.exit_code,
            "exit_code": int(result.exit_code),
            "bundle": str(result.folder),
            "digest": result.digest,
            "model": manifest.model.name,
            "model_version": manifest.model.version,
            "target": manifest.target.name,
            "scheme": manifest.scheme,
            "host": verified.host,
            "gates": [{**dataclasses.asdict(gate), "passed": gate.passed} for gate in result.checked.gates],
            "golden": _fields(result.golden),
            "score": _fields(result.score),
            "timing": _fields(verified.timing),
            "emulation": _fields(verified.emulation),
            "device": _fields(verified.device),
            "peak_memory_bytes": verified.peak_memory_bytes,
            "load_ms": verified.load_ms,
            "notes": list(result.checked.warnings),
        }
    )
    return document


def _fields(value: Any) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)
