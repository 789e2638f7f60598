"""The app: its commands, a file each, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeq.cli import (
    build,
    cache,
    compare,
    devices,
    diff,
    doctor,
    emulator,
    init,
    inspect,
    install,
    keys,
    ota,
    package,
    profile,
    report,
    schema,
    sensitivity,
    targets,
    verify,
)
from edgeq.cli.output import say
from edgeq.cli.params import GroupedCommand

# for a flag that is None typer loads pydantic, which costs more than all of `targets list`, or than a completion
_FLAGS_OFF = {
    "help": False,
    "install_completion": False,
    "show_completion": False,
    "targets": {"help": False, "list": {"help": False}, "show": {"help": False}},
    "package": {"help": False},
    "emulator": {"help": False, "install": {"help": False}, "list": {"help": False}},
    "build": {"help": False},
    "init": {"help": False},
    "schema": {"help": False},
    "verify": {"help": False},
    "inspect": {"help": False},
    "report": {"help": False},
    "diff": {"help": False},
    "compare": {"help": False},
    "sensitivity": {"help": False},
    "profile": {"help": False},
    "devices": {"help": False, "list": {"help": False}, "show": {"help": False}, "fit": {"help": False}},
    "keys": {"help": False},
    "ota": {"help": False},
}
_WIDE = {"max_content_width": 100}

app = typer.Typer(
    name="edgeq",
    rich_markup_mode=None,  # its help would load rich
    pretty_exceptions_enable=False,
    context_settings={"default_map": _FLAGS_OFF, "help_option_names": ["-h", "--help"]},
)
app.command("package", cls=GroupedCommand, context_settings=_WIDE)(package.package)
app.command("init")(init.init)
app.command("build", cls=GroupedCommand, context_settings=_WIDE)(build.build)
app.command("install")(install.install)
app.command("verify", cls=GroupedCommand, context_settings=_WIDE)(verify.verify)
app.command("inspect")(inspect.inspect)
app.command("diff")(diff.diff)
app.command("compare")(compare.compare)
app.command("sensitivity", cls=GroupedCommand, context_settings=_WIDE)(sensitivity.sensitivity)
app.command("schema")(schema.schema)
app.command("report")(report.report)
app.command("profile")(profile.profile)
app.add_typer(targets.app, name="targets")
app.add_typer(devices.app, name="devices")
app.add_typer(cache.app, name="cache")
app.add_typer(emulator.app, name="emulator")
app.add_typer(keys.app, name="keys")
app.add_typer(ota.app, name="ota")
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[  # noqa: ARG001  # run() takes it out wherever it stands; here only for the help
        bool, typer.Option("--debug", help="Print a traceback with an error; may stand anywhere.")
    ] = False,
) -> None:
    """Package a trained PyTorch model for phones and edge hosts: quantize, lower, gate, verify, install.

    Exit codes: 0 ok, 1 internal error, 2 usage or bad input, 3 unsupported, 4 size, 5 accuracy, 6 latency, memory or
    load time, 7 verification, 8 integrity, 9 environment, 130 interrupted.
    """
    if version:
        from edgeq import __version__

        say(f"edgeq {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help())
