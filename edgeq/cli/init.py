"""`edgeq init`: write a commented edgeq.toml with everything that can be detected without running the model."""

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
    """The findings in a project's folder.

    Attributes:
        apps: app projects below it, with their platforms.
        calibration, evaluation: data, recognized by name.
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
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = Path(PROJECT_FILE),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented edgeq.toml for one or more models, to be built with `edgeq build`.

    Names, factories, data folders and app projects are detected in the current folder; no code runs.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} already exists", "edit it, or give --force to replace it")
    sources = [_source(text) for text in models]
    for source in sources:
        edgeq.pipeline.preflight.check_source(source)
    is_vision = all(source.startswith("torchvision:") for source in sources)
    write_text(output, project_text(sources, look_around(Path(), is_vision=is_vision)))
    say(f"written: {output}; next: edgeq build --dry-run, then edgeq build")


def look_around(folder: Path, *, is_vision: bool) -> Found:
    """Return a folder's data, recognized by name, and the app projects one level down."""
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
    """Return the file's text: detected values as keys, others as commented examples."""
    platforms = [platform for _, names in found.apps for platform in names]
    targets = [_TARGETS[name] for name in dict.fromkeys(platforms) if name in _TARGETS] or [_TARGETS["android"]]
    lines = [
        "# Models and options for `edgeq build`. Paths are relative to this file.",
        "# Keys above the first [[model]] apply to all models; a model's own keys override them.",
        'out = "out"',
        "",
        "# `edgeq targets list` shows all targets; default scheme: the first one of each target",
        f"targets = {json.dumps([*targets, _HOST_TARGET])}",
        '# schemes = ["static-int8", "fp32"]',
        "",
        "# apps to install into if all gates of all models pass",
        _key("install_into", [name for name, _ in found.apps], '["android_app"]'),
        "",
        "[data]",
        "# an image folder, .npz, .npy or file.py:function; the two must not overlap",
        _key("calibration", found.calibration, '"data/train"'),
        _key("evaluation", found.evaluation, '"data/val"'),
        "# imagenet, unit, or a .toml file with color, resize, crop, scale, mean, std, layout",
        _key("preprocess", found.preprocess, '"imagenet"'),
        "",
        "# limits for each model; a limit that cannot be measured fails",
        "[limit]",
        '# size = "5MB"',
        '# accuracy_drop = "1pp"',
        '# latency = "40ms"',
        "",
        "# limits for the whole app: all models for one ABI and the runtimes' libraries",
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
        lines.append(
            '# weights = "weights.safetensors"  # without weights they are random, and the bundle cannot be installed'
        )
    return lines + _inputs(source)


def _key(name: str, value: str | list[str] | None, example: str) -> str:
    return f"{name} = {json.dumps(value)}" if value else f"# {name} = {example}"


def _inputs(source: str) -> list[str]:
    """Say that inputs are needed where a factory's file gives no example."""
    path, colon, _ = source.partition(":")
    if not colon or not path.endswith(".py") or "example_inputs" in _functions(Path(path)):
        return []
    return ['# inputs = ["1x3x224x224"]  # or define example_inputs() next to the factory']


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
    """Return the source with its factory filled in, if a Python file has one that can be identified."""
    if ":" in text or not text.endswith(".py"):
        return text
    functions = _functions(Path(text))
    chosen = [name for name in GENERIC_FACTORIES if name in functions] or [
        name for name in functions if name != "example_inputs"
    ]
    if not chosen or (chosen[0] not in GENERIC_FACTORIES and len(chosen) > 1):
        candidates = (
            f"functions without arguments: {', '.join(functions)}"
            if functions
            else "it has no functions without arguments"
        )
        raise UsageError(f"{text}: which function returns the model? {candidates}", f"give it as {text}:FUNCTION")
    return f"{text}:{chosen[0]}"


def _functions(path: Path) -> list[str]:
    """Return the public functions of a Python file that need no argument, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as err:
        raise UsageError(f"cannot read {path}: {err}", "check the path, and that the file is Python") from err
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
