"""Options that several commands share and that edgeq.toml does not have.

The options of a configuration are the fields of `edgeq.core.config.PackageConfig`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

import edgeq
from edgeq.core.config import MORE_OUTPUT, OUTPUT, PANELS, PROJECT_FILE, PackageConfig
from edgeq.core.marks import Option, ProfileFile, options_of
from edgeq.core.profiles import device_files, group_files, profile_files
from edgeq.core.schemes import LIMITS

if TYPE_CHECKING:
    import edgeq.config.options

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Project file with options. [default: {PROJECT_FILE}, if there is one]",
        rich_help_panel=OUTPUT.title,
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check options, files and data, run the float model once, and print the plan; build nothing.",
        rich_help_panel=OUTPUT.title,
    ),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT.title)
]

Junit = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write JUnit XML, a test case for each gate.", rich_help_panel=MORE_OUTPUT.title),
]

Markdown = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a summary in Markdown.", rich_help_panel=MORE_OUTPUT.title),
]

Github = Annotated[
    bool,
    typer.Option(
        "--github",
        help="In GitHub Actions: annotate the change and add the summary to the job's page.",
        rich_help_panel=MORE_OUTPUT.title,
    ),
]

Sarif = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write SARIF 2.1.0 for code scanning: what failed, at the lines of edgeq.toml.",
        rich_help_panel=MORE_OUTPUT.title,
    ),
]

Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Bundles of the base branch: --markdown and --github show what changed.",
        rich_help_panel=MORE_OUTPUT.title,
    ),
]

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show no progress, only the result and errors.", rich_help_panel=MORE_OUTPUT.title
    ),
]

Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print a line for every step, even on a terminal.", rich_help_panel=MORE_OUTPUT.title
    ),
]

Digest = Annotated[
    str | None,
    typer.Option(metavar="HEX", help="Expected digest of the bundle, from `edgeq package --json`."),
]

Verdict = Annotated[
    Path | None,
    typer.Option(
        "--verdict",
        metavar="FILE",
        help=(
            "Measurements of this bundle from another device, written there by `edgeq verify --write-verdict`: "
            "latency, load time, peak memory and golden outputs. The gates are judged on this host."
        ),
    ),
]

TrustSource = Annotated[
    bool, typer.Option("--trust-source", help="Let code in the bundle's artifact run: pickled objects, machine code.")
]


# --- The options of the command line: those of a configuration are made of its fields, those of a run stand here.


_ARGUMENTS = "Arguments"

_FIRST_COLUMN = 28  # most options with their metavar are as wide, so that the texts of all panels line up


@dataclass(frozen=True, slots=True)
class ConfigOptions:
    """Marks a command's parameter that takes options of `PackageConfig`, as the dict that an edgeq.toml would hold.

    Attributes:
        keys: which options, or tables of them; none for all.
        without: options among these that the command does not have.
        defaults: defaults that differ from the fields', by key. They count as given.
        docs: help texts that differ from the fields', by key.
    """

    keys: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    docs: Mapping[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> tuple[Option, ...]:
        """The options that have a flag, in the order of `keys`."""
        every = options_of(PackageConfig)
        options = [option for option in every if option.flag is not None and option.key not in self.without]
        keys = self.keys or tuple(option.key for option in options)
        return tuple(option for key in keys for option in options if f"{option.key}.".startswith(f"{key}."))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParams:
    """Options for running and reporting of commands that build bundles."""

    config: Config = None
    dry_run: DryRun = False
    as_json: AsJson = False
    junit: Junit = None
    markdown: Markdown = None
    github: Github = False
    sarif: Sarif = None
    against: Against = None
    quiet: Quiet = False
    verbose: Verbose = False


class GroupedCommand(TyperCommand):
    """A command whose --help lists its options by panel: the common ones first, then the advanced ones."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each panel's options; options without a panel are listed under output."""
        titles = (_ARGUMENTS, *(panel.title for panel in PANELS))
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_option = param.param_type_name == "option"
                title = getattr(param, "rich_help_panel", None) or (OUTPUT.title if is_option else _ARGUMENTS)
                name = record[0] if is_option else param.metavar or record[0]
                panels[title].append((name.ljust(_FIRST_COLUMN), record[1]))
        for title, rows in panels.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=_FIRST_COLUMN)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer with each option of a group as a separate parameter.

    Args:
        command: has a parameter for each group, which is a dataclass or marked `ConfigOptions`, beside those of its
            own.
    """
    signature = inspect.signature(command, eval_str=True)
    params = signature.parameters.values()
    groups: dict[str, Any] = {
        param.name: param.annotation for param in params if dataclasses.is_dataclass(param.annotation)
    }
    configs = {param.name: mark for param in params if (mark := _config_mark(param.annotation)) is not None}
    # by keyword only, so that they keep this order, which is that of the help, whether they have defaults or not
    flat: list[inspect.Parameter] = []
    for param in params:
        if param.name in groups:
            flat += _group_params(groups[param.name])
        elif param.name in configs:
            flat += [_config_param(option, configs[param.name]) for option in configs[param.name].chosen]
        else:
            flat.append(param.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def call(**given: Any) -> None:
        made: dict[str, Any] = {
            name: group(**{item.name: given.pop(item.name) for item in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        for name, mark in configs.items():
            taken = {option.key: given.pop(_param_name(option)) for option in mark.chosen}
            # typer gives an empty list for a repeatable option that was not used
            used = {key: value for key, value in taken.items() if value is not None and value not in ([], ())}
            made[name] = _as_toml({**mark.defaults, **used})
        command(**given, **made)

    vars(call)["__signature__"] = signature.replace(parameters=flat)
    call.__annotations__ = {param.name: param.annotation for param in flat}
    return call


def _config_mark(annotation: Any) -> ConfigOptions | None:
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, ConfigOptions)), None)


def _group_params(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for item in dataclasses.fields(group):
        default = inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default
        yield inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[item.name])


def _param_name(option: Option) -> str:
    return option.key.replace(".", "_")


def _config_param(option: Option, mark: ConfigOptions) -> inspect.Parameter:
    """Return typer's parameter of a configuration's option; None, or an empty list, stands for "not given"."""
    flag, doc = option.flag, option.doc
    if flag is None or doc is None:
        raise TypeError(f"the field {option.key} of PackageConfig needs a Flag and a Doc")
    text = mark.docs.get(option.key, doc.text)
    default = default_text(option, mark.defaults.get(option.key, option.default))
    shared: dict[str, Any] = {
        "help": f"{text} [default: {default}]" if default else text,
        "metavar": flag.metavar or None,
        "rich_help_panel": None if option.panel is None else option.panel.title,
    }
    if flag.name.startswith("-"):
        names = [name for name in (flag.name, flag.short) if name]
        info: Any = typer.Option(*names, autocompletion=_completion(option), **shared)
    else:
        info = typer.Argument(**{**shared, "metavar": flag.name})
    return inspect.Parameter(
        _param_name(option),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_typer_type(option), info],
    )


def default_text(option: Option, default: Any) -> str:
    """Return a default as text; "" where it is not worth showing."""
    if option.doc is not None and option.doc.default:
        return option.doc.default
    if default is True:
        return "on"
    if default is False or default is None or default is dataclasses.MISSING or option.is_table or default == ():
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _typer_type(option: Option) -> Any:
    if option.is_table or get_origin(option.type) is tuple:
        return list[str] | None
    for kind in (bool, int, float):
        if kind in (option.type, *get_args(option.type)):
            return kind | None
    return str | None


def _completion(option: Option) -> Callable[[str], list[str]] | None:
    """Return what completes a value: the names of profiles, of limits, or those that the annotation lists."""
    if isinstance(option.path, ProfileFile):
        return targets if option.path.kind == "target" else devices
    if option.key == "limit":
        return limits
    names = tuple(_literals(option.type))

    def matching(incomplete: str) -> list[str]:
        return starting(incomplete, names)

    return matching if names else None


def _literals(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from _literals(inner)


def _as_toml(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by key in the form of an edgeq.toml, not yet validated."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        (found.setdefault(table, {}) if table else found)[name] = list(value) if isinstance(value, tuple) else value
    return found


def to_values(given: dict[str, Any]) -> dict[str, Any]:
    """Return the command line's options, validated, in the form of an `edgeq.toml`.

    Raises:
        UsageError: a value of the wrong type or out of bounds, or a limit that does not parse.
    """
    limits = {"limit": edgeq.config.options.limit_table(given["limit"])} if "limit" in given else {}
    # gates are reported in the order in which their limits were given
    return edgeq.config.options.validated(given | limits, edgeq.config.options.COMMAND_LINE) | limits


# --- Shell completion of names, from files alone: a key press must not wait for a library.


def targets(incomplete: str) -> list[str]:
    """Return the shipped targets that start with `incomplete`."""
    return starting(incomplete, (*profile_files(), *group_files()))


def devices(incomplete: str) -> list[str]:
    """Return the shipped devices that start with `incomplete`."""
    return starting(incomplete, device_files())


def limits(incomplete: str) -> list[str]:
    """Return the limits that start with `incomplete`, followed by "="."""
    return starting(incomplete, (f"{name}=" for name in LIMITS))


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Return the `names` that start with `incomplete`."""
    return [name for name in names if name.startswith(incomplete)]
