"""`edgeq init`: a commented edgeq.toml, with all that can be found out without running the model."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgeq
from edgeq.cli.console import say
from edgeq.cli.outputs import write_text
from edgeq.core.config import PROJECT_FILE
from edgeq.core.errors import UsageError
from edgeq.core.sources import GENERIC_FACTORIES, factory_model_name

if TYPE_CHECKING:
    import edgeq.deliver.install
    import edgeq.pipeline.preflight

_TARGETS = {"android": "android-arm64-xnnpack", "ios": "ios-arm64-xnnpack"}

_HOST_TARGET = "linux-x86_64-x86"

_CALIBRATION = ("calibration", "calib", "train")

_EVALUATION = ("evaluation", "eval", "val", "validation", "test")

_PLACES = ("", "data", "images", "dataset")

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What could be found out of a project's folder.

    Attributes:
        apps: app projects below it, with their platforms.
        calibration, evaluation: data by its name.
    """

    apps: tuple[tuple[str, tuple[str, ...]], ...]
    calibration: str | None
    evaluation: str | None
    preprocess: str | None


def init(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="torchvision:NAME, file.py or file.py:factory, model.pt2, … or digits."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")] = Path(
        PROJECT_FILE
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented edgeq.toml for one or more models, to be built with `edgeq build`.

    Names, factories, data folders and app projects are looked for here and written in; nothing is run.
    """

    if output.exists() and not force:
        raise UsageError(f"{output} is there already", "edit it, or give --force to replace it")
    sources = [_source(text) for text in models]
    for source in sources:
        edgeq.pipeline.preflight.check_source(source)
    write_text(output, project_text(sources, look_around(Path(), is_vision=_is_vision(sources))))
    say(f"written: {output}; next: edgeq build --dry-run, then edgeq build")


def look_around(folder: Path, *, is_vision: bool) -> Found:
    """Return what a folder holds: data by its name, and app projects one level down."""

    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    apps = tuple(
        (path.name, platforms) for path in below if (platforms := tuple(edgeq.deliver.install.project_platforms(path)))
    )
    calibration, evaluation = (_data(folder, names) for names in (_CALIBRATION, _EVALUATION))
    is_images = calibration is not None and (folder / calibration).is_dir()
    return Found(
        apps=apps,
        calibration=calibration,
        evaluation=evaluation,
        preprocess="imagenet" if is_images and is_vision else None,
    )


def project_text(sources: Sequence[str], found: Found) -> str:
    """Return the file: what was found as keys, what was not as comments that show the key."""
    platforms = [platform for _, names in found.apps for platform in names]
    targets = [_TARGETS[name] for name in dict.fromkeys(platforms) if name in _TARGETS] or [_TARGETS["android"]]
    lines = [
        "# What `edgeq build` makes of each model. Paths are relative to this file.",
        "# What stands above the first [[model]] holds for all of them; a model's own keys win.",
        'out = "out"',
        "",
        "# `edgeq targets list` names them all; the first scheme of a target is used unless you name some",
        f"targets = {json.dumps([*targets, _HOST_TARGET])}",
        '# schemes = ["static-int8", "fp32"]',
        "",
        "# apps to install into when all gates of all models pass",
        _key("install_into", [name for name, _ in found.apps], '["android_app"]'),
        "",
        "[data]",
        "# an image folder, .npz, .npy or file.py:function; no sample may be in both",
        _key("calibration", found.calibration, '"data/train"'),
        _key("evaluation", found.evaluation, '"data/val"'),
        "# imagenet, unit, or a .toml file with color, resize, crop, scale, mean, std, layout",
        _key("preprocess", found.preprocess, '"imagenet"'),
        "",
        "# the most that each model may be; what is asked for and cannot be measured fails",
        "[limit]",
        '# size = "5MB"',
        '# accuracy_drop = "1pp"',
        '# latency = "40ms"',
        "",
        "# the app as a whole: all models that one ABI gets, and the runtimes' libraries",
        "# [app]",
        '# limit.download = "20MB"',
        '# runtime_size.android-arm64.executorch = "7MB"',
    ]
    for name, source in zip(_names(sources), sources, strict=True):
        lines += _model(name, source)
    return "\n".join(lines) + "\n"


def _model(name: str, source: str) -> list[str]:
    lines = ["", "[[model]]", f"name = {json.dumps(name)}", f"source = {json.dumps(source)}", 'version = "1"']
    if source.startswith("torchvision:"):
        lines.append('# weights = "weights.safetensors"  # without it the weights are random, and nothing installs')
    return lines + _inputs(source)


def _key(name: str, value: str | list[str] | None, example: str) -> str:
    return f"{name} = {json.dumps(value)}" if value else f"# {name} = {example}"


def _inputs(source: str) -> list[str]:
    """Say that inputs are needed where a factory's file gives no example."""
    path, colon, _ = source.partition(":")
    if not colon or not path.endswith(".py") or "example_inputs" in _functions(Path(path)):
        return []
    return ['# inputs = ["1x3x224x224"]  # or example_inputs() beside the factory']


def _names(sources: Sequence[str]) -> list[str]:
    names: list[str] = []
    for source in sources:
        base = source.removeprefix("torchvision:")
        base = factory_model_name(base) if ":" in base else Path(base).stem
        name = _NOT_A_NAME.sub("-", base).strip("-.") or "model"
        count = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(name if not count else f"{name}-{count + 1}")
    return names


def _source(text: str) -> str:
    """Return the source with its factory filled in, where a Python file has one that can be told."""
    if ":" in text or not text.endswith(".py"):
        return text
    functions = _functions(Path(text))
    chosen = [name for name in GENERIC_FACTORIES if name in functions] or [
        name for name in functions if name != "example_inputs"
    ]
    if not chosen or (chosen[0] not in GENERIC_FACTORIES and len(chosen) > 1):
        told = f"its functions without arguments: {', '.join(functions)}" if functions else "it has none"
        raise UsageError(f"{text}: which function returns the model? {told}", f"name it: {text}:FUNCTION")
    return f"{text}:{chosen[0]}"


def _functions(path: Path) -> list[str]:
    """Return the public functions of a Python file that need no argument, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as err:
        raise UsageError(f"cannot read {path}: {err}", "check the path, and that it is Python") from err
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _is_callable(node)]


def _is_callable(node: ast.FunctionDef) -> bool:
    arguments = node.args
    needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return not node.name.startswith("_") and needed <= 0 and None not in arguments.kw_defaults


def _data(folder: Path, names: Iterable[str]) -> str | None:
    """Return the first folder, or .npz, of a usual name and place."""
    for place in _PLACES:
        for name in names:
            for path in (folder / place / name, folder / place / f"{name}.npz"):
                if path.is_dir() or path.is_file():
                    return path.relative_to(folder).as_posix()
    return None


def _is_vision(sources: Sequence[str]) -> bool:
    return all(source.startswith("torchvision:") for source in sources)
