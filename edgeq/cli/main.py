"""Entry point: signals unwind like Ctrl-C, and every exception becomes a two-line message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main

import edgeq
from edgeq.cli import (
    build,
    cache,
    compare,
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
    sensitivity,
    targets,
    verify,
)
from edgeq.cli.console import INTERRUPTS, say, say_error, silence_stdout
from edgeq.cli.options import GroupedCommand
from edgeq.core.errors import EdgeqError, EnvironmentProblem, ExitCode, UsageError, first_line

if TYPE_CHECKING:
    from typer import TyperException

    import edgeq.core.system


PROGRAM = "edgeq"

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_HELP = frozenset({"-h", "--help", "--version", "--show-completion"})

_COMPLETION = frozenset({"--show-completion", "--install-completion"})

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class Interrupted(EdgeqError):
    """Ctrl-C, SIGTERM or SIGHUP (exit code 130)."""

    exit_code = ExitCode.INTERRUPTED


@functools.cache  # it takes 20 ms, and the tests run hundreds of commands in a process
def _command() -> Any:
    return typer.main.get_command(app)


def run(argv: Sequence[str], *, ends_process: bool = False) -> int:
    """Run the command line `argv` and return its exit code.

    Args:
        argv: the arguments without the program's name.
        ends_process: whether the process ends afterwards; further signals are then ignored.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show must not end the run
    debug, as_json = "--debug" in argv, "--json" in argv
    received = INTERRUPTS
    received.clear()
    try:
        with _unwinding_signals(received, ends_process=ends_process):
            arguments = [arg for arg in argv if arg != "--debug"]
            if " ".join(arguments[:2]) == _MERGE:  # beside `edgeq report FOLDER…`, which takes any other word
                arguments = [_MERGE, *arguments[2:]]
            command = _command()
            if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
                _skip_coercion(command)
                try:
                    command.main(arguments, prog_name=PROGRAM)
                except SystemExit as err:  # that is how it ends
                    return int(err.code or 0)
            # not command.main(): it ends the process silently on any EPIPE, and turns EOFError into "Aborted!"
            try:
                with command.make_context(PROGRAM, arguments) as context:
                    command.invoke(context)
            except typer.Exit as err:
                return err.exit_code
            except SystemExit as err:
                if not _COMPLETION.intersection(argv):
                    raise
                return int(err.code or 0)  # typer ends the process after these two options
            return ExitCode.OK
    except BrokenPipeError as err:
        # whatever does more than print help has said so by itself: in the middle of a run it is no success
        if _HELP.intersection(argv) and _stdout_is_gone():
            return ExitCode.OK
        return _fail(err, debug=debug, as_json=as_json)
    except (Exception, KeyboardInterrupt, SystemExit) as err:
        # an import that is cut short leaves half a module, which a library then takes for an error of its own
        return _fail(err, debug=debug, as_json=as_json, interrupted=bool(received))


def _open_closed_streams() -> None:
    """Give a stream that whoever started edgeq had closed (`>&-`) somewhere to go; Python has None for it."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _skip_coercion(command: Any) -> None:
    """Take the values as they are typed: names are completed from text, and typer's coercion loads pydantic."""
    for param in command.params:
        param.process_value = _as_typed
    for inner in getattr(command, "commands", {}).values():
        _skip_coercion(inner)


def _as_typed(_context: object, value: object) -> object:
    return value


def _fail(err: BaseException, *, debug: bool, as_json: bool, interrupted: bool = False) -> int:
    if debug:
        traceback.print_exception(err)
    problem = explain(KeyboardInterrupt() if interrupted else err)
    say_error(problem, as_json=as_json)
    return problem.exit_code


def explain(err: BaseException) -> EdgeqError:
    """Return the error to report for any exception."""
    if isinstance(err, EdgeqError):
        return err
    if isinstance(err, KeyboardInterrupt):
        return Interrupted("interrupted", "run the same command again")
    if isinstance(err, typer.TyperException):
        return _usage(err)
    if isinstance(err, SystemExit):
        # a model's forward, say: its code may be 0, which would pass for a success
        last = traceback.extract_tb(err.__traceback__)[-1]
        what = f"user code called exit({err.code}) at {Path(last.filename).name}:{last.lineno}"
        return UsageError(what, "remove that call and run again; --debug shows the whole traceback")
    for link in _chain(err):
        if (missing := edgeq.core.system.missing_module(f"{type(link).__name__}: {link}")) is not None:
            return missing
        if isinstance(link, OSError) and link.errno in _DISK_FULL:
            where = f" that holds {link.filename}" if link.filename else ""
            what = f"no space left on the disk{where}"
            return EnvironmentProblem(what, "free some space, or choose another --out, and run again")
    if isinstance(err, OSError) and err.errno == errno.ENAMETOOLONG:
        what = f"a path is too long for this system: {str(err.filename)[:60]}…"
        return UsageError(what, "give a shorter path")
    if isinstance(err, MemoryError):
        return EnvironmentProblem("out of memory", "close other programs, or use a machine with more memory")
    what = f"internal error: {type(err).__name__}: {first_line(err)}"
    return EdgeqError(what, "run again with --debug and report the output")


def _usage(err: TyperException) -> UsageError:
    context = getattr(err, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    fix = f"see `{path} --help`"
    option = getattr(err, "option_name", None)
    if hasattr(err, "possibilities") and option:
        near = err.possibilities
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return UsageError(f"no such option '{option}'.{hint}", fix)
    message = err.format_message()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), fix)


def _chain(err: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = err
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _stdout_is_gone() -> bool:
    """Tell `edgeq … | head` from a child process of a step that went away."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        silence_stdout()
    return gone


@contextlib.contextmanager
def _unwinding_signals(received: list[int], *, ends_process: bool) -> Iterator[None]:
    """Make the signals that end a run raise KeyboardInterrupt, so that `finally` blocks leave nothing behind.

    Args:
        received: takes the number of the one that came.
        ends_process: whether, after one came, all stay ignored while libraries do what they do on their way out.
    """

    def unwind(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleanup short
        raise KeyboardInterrupt

    # a signal that the parent ignores (nohup) stays ignored
    before = {
        number: signal.signal(number, unwind) for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received and ends_process else handler)
        if received and ends_process:
            # KeyboardInterrupt inside an exec() of text (dataclasses, as torch is imported) has `python -m` end by
            # SIGINT in place of the exit code, until the next exec() of text has ended well
            exec("")  # noqa: S102


# --- The app: its commands, a file each, and the options that stand before them.


_MERGE = "report merge"

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
    _MERGE: {"help": False},
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

app.command("diff")(report.diff)

app.command("compare")(compare.compare)

app.command("sensitivity", cls=GroupedCommand, context_settings=_WIDE)(sensitivity.sensitivity)

app.command("schema")(report.schema)

app.command("report")(report.report)

app.command(_MERGE)(report.merge)

app.command("profile")(profile.profile)

app.add_typer(targets.app, name="targets")

app.add_typer(profile.app, name="devices")

app.add_typer(cache.app, name="cache")

app.add_typer(emulator.app, name="emulator")

app.add_typer(keys.app, name="keys")

app.add_typer(ota.app, name="ota")

app.command("doctor", cls=GroupedCommand, context_settings=_WIDE)(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[  # noqa: ARG001  # run() takes it out wherever it stands; here only for the help
        bool, typer.Option("--debug", help="Print a traceback with an error; allowed at any position.")
    ] = False,
) -> None:
    """Package a trained PyTorch model for phones and edge hosts: quantize, lower, gate, verify, install.

    Exit codes: 0 ok, 1 internal error, 2 usage or bad input, 3 unsupported, 4 size, 5 accuracy, 6 latency, memory or
    load time, 7 verification, 8 integrity, 9 environment, 130 interrupted.
    """
    if version:
        say(f"edgeq {edgeq.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help())
