"""`edgeq targets`: list, show and check target profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeq
from edgeq.cli import options
from edgeq.cli.console import say, say_json
from edgeq.core.profiles import group_files, profile_files, profile_values

if TYPE_CHECKING:
    import edgeq.core.schema
    import edgeq.core.targets

app = typer.Typer(help="List, show and check target profiles.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_targets(as_json: AsJson = False) -> None:
    """List the shipped targets; the first scheme is the default for most models."""
    if as_json:
        targets = [edgeq.core.targets.load_target(name) for name in profile_files()]
        found = [edgeq.core.targets.load_target_or_group(name) for name in group_files()]
        groups = [one for one in found if isinstance(one, edgeq.core.targets.TargetGroup)]
        say_json(
            {
                "schema_version": 1,
                "targets": [_as_json(target) for target in targets],
                "groups": [_group_json(group) for group in groups],
            }
        )
        return
    # without edgeq.core.targets, and so without pydantic: the shipped files are checked by the tests
    profiles = [profile_values(name) for name in (*profile_files(), *group_files())]
    for group in profiles:
        if "candidates" in group:
            group["schemes"] = [f"{len(group['candidates'])} candidates"]
    name_width = max((len(profile["name"]) for profile in profiles), default=0)
    scheme_width = max((len(", ".join(profile["schemes"])) for profile in profiles), default=0)
    for profile in profiles:
        schemes = ", ".join(profile["schemes"])
        say(f"{profile['name']:{name_width}}  {schemes:{scheme_width}}  {profile['description']}")


def _as_json(target: edgeq.core.targets.TargetProfile) -> dict[str, Any]:
    keys = ("name", "description", "platform", "arch", "runtime", "backend", "schemes")
    return {
        **{key: getattr(target, key) for key in keys},
        "accelerator": edgeq.core.targets.accelerator(target.backend),
        "verified_by": edgeq.core.targets.verified_by(target),
        "emulated_cpus": target.device.cpu,
        "oldest_runtime": target.app.oldest,
        "app_adds": target.app.adds,
    }


def _group_json(group: edgeq.core.targets.TargetGroup) -> dict[str, Any]:
    names = [one.name for one in group.candidates]
    return {"name": group.name, "description": group.description, "candidates": names}


@app.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A target's name, or a .toml file.", autocompletion=options.targets)
    ],
    as_json: AsJson = False,
) -> None:
    """Show a target with all values, including those that it inherits."""
    found = edgeq.core.targets.load_target_or_group(name)
    if isinstance(found, edgeq.core.targets.TargetGroup):
        values = _group_json(found)
    else:
        # only Ethos-U has an npu
        excluded = {"extends"} if found.npu else {"extends", "npu"}
        values = found.model_dump(mode="json", exclude=excluded, exclude_unset=False)
    if as_json:
        say_json({"schema_version": 1, "target": values})
    else:
        if "runtime" in values and values["runtime"] != "onnx":  # both are of ONNX Runtime alone
            del values["file_format"], values["app"]["build"]
        say("\n".join(_toml(values)))


def _toml(values: dict[str, Any], table: str = "") -> list[str]:
    import json

    # TOML writes strings, numbers and arrays of them as JSON does
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    if table and lines:
        lines = ["", f"[{table}]", *lines]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{table}.{key}" if table else key)
    return lines


@app.command("validate")
def validate(file: Annotated[str, typer.Argument(metavar="FILE", help="A target's .toml file.")]) -> None:
    """Check a target file: every key, every value, and the target that it extends."""
    # a bare name of a file without the suffix is still a file here
    path = file if Path(file).suffix == ".toml" else str(Path(file).absolute())
    profile = edgeq.core.targets.load_target_or_group(path)
    say(f"{file}: ok, target {profile.name}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of target files, for editors."""
    say_json(edgeq.core.schema.json_schema(edgeq.core.targets.TargetProfile))
