"""`edgeq emulator`: the ARM64 runtimes that replace a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli.console import open_progress, say, say_json
from edgeq.core.units import format_bytes
from edgeq.verify.emulate.cpus import CPUS, qemu_cpus, qemu_path, qemu_version
from edgeq.verify.emulate.install import DEFAULT_WHEELS, is_native

if TYPE_CHECKING:
    import edgeq.pipeline.devices
    from edgeq.verify.emulate.selftest import Machine


app = typer.Typer(help="Install and list the ARM64 runtimes that run a device's kernels here.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_CPUS = ("cortex-a53", "cortex-a76")  # those of the shipped target profiles


@app.command("install")
def install(
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Download the runtimes' ARM64 wheels, compile edgeq's runners, and test them on cortex-a53 and cortex-a76.

    `edgeq package` and `edgeq verify --on emulator` do this themselves when needed.
    """
    if not is_native():
        qemu_path()
    with open_progress(quiet=quiet) as progress:
        found = [
            m for w in DEFAULT_WHEELS for m in edgeq.pipeline.devices.machines(w.runtime, (w.version,), _CPUS, progress)
        ]
    if as_json:
        say_json({"schema_version": 1, "machines": [_as_json(machine) for machine in found]})
    else:
        for machine in found:
            size = format_bytes(
                sum(path.stat().st_size for path in machine.runtime.folder.rglob("*") if path.is_file())
            )
            say(f"ready: {machine.name}, self-test passed ({size} in {machine.runtime.folder})")


@app.command("list")
def list_cpus(as_json: AsJson = False) -> None:
    """List the CPU models that can be emulated here."""
    here = qemu_cpus()
    if as_json:
        models = [{"name": cpu.name, "available": cpu.name in here, "features": cpu.features.split()} for cpu in CPUS]
        say_json({"schema_version": 1, "emulator": qemu_version(), "cpus": models})
        return
    for cpu in CPUS:
        dot = "dot-product kernels" if "asimddp" in cpu.features else "no dot product"
        say(f"{cpu.name:12}  {dot if cpu.name in here else f'{qemu_version()} does not know it'}")


def _as_json(machine: Machine) -> dict[str, Any]:
    wheel = machine.runtime.wheel
    return {
        "package": wheel.package,
        "version": wheel.version,
        "cpu": machine.cpu_name,
        "folder": str(machine.runtime.folder),
        "self_test": "passed",
    }
