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
from edgeq.cli.console import open_progress, say
from edgeq.cli.outputs import write_text
from edgeq.core.config import PROJECT_FILE
from edgeq.core.errors import UsageError
from edgeq.core.sources import GENERIC_FACTORIES, factory_model_name

if TYPE_CHECKING:
    import edgeq.deliver.install
    import edgeq.pipeline.preflight
    import edgeq.pipeline.proposals
    from edgeq.pipeline.proposals import Preprocessing

_TARGETS = {"android": "android-arm64-xnnpack", "ios": "ios-arm64-xnnpack"}

_STORES = {"android": "play-base-module"}

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")

_ARCHITECTURES = ("torchvision:", "timm:")

_HOST_TARGET = "linux-x86_64-x86"

_CALIBRATION = ("calibration", "calib", "train")

_EVALUATION = ("evaluation", "eval", "val", "validation", "test")

_PLACES = ("", "data", "images", "dataset")

_QUIET_S = 3.0  # a shorter run shows its result alone

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The findings in a project's folder.

    Attributes:
        apps: app projects below it, with their platforms.
        calibration, evaluation: data, recognized by name.
        weights: checkpoints beside the model.
        apk: the newest APK of the apps, built without the model; None if there is none.
    """

    apps: tuple[tuple[str, tuple[str, ...]], ...]
    calibration: str | None
    evaluation: str | None
    weights: tuple[str, ...] = ()
    apk: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A `[[model]]` of the file.

    Attributes:
        weights: the value of --weights.
        classes: how many the weights have, where they are not those of the published architecture.
        input: the proposed shape of its input.
        preprocessing: the proposed preprocessing.
    """

    name: str
    source: str
    weights: str | None
    classes: int | None
    input: str | None
    preprocessing: Preprocessing | None


def init(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="torchvision:NAME, file.py or file.py:factory, model.pt2, … or digits."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = Path(PROJECT_FILE),
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE[#KEY]", help="Trained weights of the model; its inputs are read off."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented edgeq.toml for one or more models, to be built with `edgeq build`.

    Names, factories, data folders, checkpoints and app projects are detected in the current folder, inputs in the
    weights, preprocessing in what torchvision, timm and transformers state. Your code does not run.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} already exists", "edit it, or give --force to replace it")
    if weights is not None and len(models) > 1:
        raise UsageError(
            f"--weights was given with {len(models)} models", "give one model, or edit the file afterwards"
        )
    if weights is not None and "." in weights and not Path(weights.partition("#")[0]).is_file():
        raise UsageError(f"--weights: no such file: {weights}", "check the path")
    sources = [_source(text) for text in models]
    for source in sources:
        edgeq.pipeline.preflight.check_source(source)
    described = []
    with open_progress(quiet=False, quiet_s=_QUIET_S) as progress:
        with progress.task("look for data, checkpoints and apps"):
            found = look_around(Path())
            proposals = edgeq.pipeline.proposals
            side = None if found.calibration is None else proposals.image_side(Path(found.calibration))
        for name, source in zip(_names(sources), sources, strict=True):
            with progress.task(f"look for the preprocessing of {name}"):
                preprocessing = proposals.proposed_preprocessing(source)
            crop = preprocessing.spec.crop[0] if preprocessing is not None and preprocessing.spec.crop else None
            with progress.task(f"read {weights or 'what is known of the inputs'}"):
                shape = proposals.proposed_input(weights, crop or side) if _needs_inputs(source) else None
                classes = proposals.found_classes(source, weights)
            described.append(
                Model(
                    name=name,
                    source=source,
                    weights=weights,
                    classes=classes,
                    input=shape,
                    preprocessing=preprocessing,
                )
            )
    written = [output]
    for model in described:
        if model.preprocessing is not None and not model.preprocessing.preset:
            written.append(_preprocess_file(output, model.name))
            write_text(written[-1], _preprocess_text(model.preprocessing))
    write_text(output, project_text(described, found, output))
    for model in described:
        if model.classes is not None:
            say(f"{model.name}: {model.classes} classes, as {model.weights} has")
    say(f"written: {', '.join(map(str, written))}; next: edgeq build --dry-run, then edgeq build")


def look_around(folder: Path) -> Found:
    """Return a folder's data and checkpoints, recognized by name, and the app projects one level down."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    apps = tuple(
        (path.name, platforms) for path in below if (platforms := tuple(edgeq.deliver.install.project_platforms(path)))
    )
    calibration, evaluation = (_data(folder, names) for names in (_CALIBRATION, _EVALUATION))
    weights = tuple(path.name for path in sorted(folder.iterdir()) if path.suffix in _CHECKPOINTS)
    apks = [path for name, _ in apps for path in (folder / name).glob("**/build/outputs/apk/**/*.apk")]
    apk = max(apks, key=lambda path: path.stat().st_mtime, default=None)
    return Found(apps=apps, calibration=calibration, evaluation=evaluation, weights=weights, apk=apk)


def project_text(models: Sequence[Model], found: Found, output: Path) -> str:
    """Return the file's text: detected values as keys, others as commented examples."""
    platforms = [platform for _, names in found.apps for platform in names]
    targets = [_TARGETS[name] for name in dict.fromkeys(platforms) if name in _TARGETS]
    stores = [_STORES[name] for name in dict.fromkeys(platforms) if name in _STORES]
    # a store's limit is for targets of its platform alone
    known_size = found.apk is not None and set(platforms) == {"android"}
    lines = [
        "# Models and options for `edgeq build`. Paths are relative to this file.",
        "# Keys above the first [[model]] apply to all models; a model's own keys override them.",
        'out = "out"',
        "",
        "# `edgeq targets list` shows all targets; default scheme: by the model, most often the first of each target",
        f"targets = {json.dumps(targets or [_TARGETS['android'], _HOST_TARGET])}",
        '# schemes = ["static-int8", "fp32"]',
        "",
        "# apps to install into if all gates of all models pass",
        _key("install_into", [name for name, _ in found.apps], '["android_app"]'),
        "",
        "# what the app store takes; app_size is that of the app without the models",
        _key("store_limits", stores if known_size else None, json.dumps(stores or [_STORES["android"]])),
        f'app_size = "{found.apk.stat().st_size}B"  # {found.apk}'
        if found.apk and known_size
        else '# app_size = "60MB"',
        "",
        "[data]",
        "# an image folder, .npz, .npy or file.py:function; the two must not overlap",
        _key("calibration", found.calibration, '"data/train"'),
        _key("evaluation", found.evaluation, '"data/val"'),
        '# preprocess = "imagenet"  # or unit, or a .toml file with color, resize, crop, scale, mean, std, layout',
        "",
        "# limits for each model; a limit that cannot be measured fails",
        "[limit]",
        '# size = "5MB"',
        ("" if found.evaluation else "# ") + 'accuracy_drop = "1pp"',
        '# latency = "40ms"',
        "",
        "# limits for the whole app: all models for one ABI and the runtimes' libraries",
        "# [app]",
        '# limit.download = "20MB"',
        '# runtime_size.android-arm64.executorch = "7MB"',
    ]
    for model in models:
        lines += _model(model, found, output)
    return "\n".join(lines) + "\n"


def _preprocess_file(output: Path, name: str) -> Path:
    return output.parent / f"{name}.preprocess.toml"


def _preprocess_text(found: Preprocessing) -> str:
    """Return a preprocessing file; `docs/models.md` describes its keys."""
    values = found.spec.model_dump(mode="json", exclude_defaults=True)
    head = [f"# From {found.origin}.", "# edgeq and apps resize by bilinear interpolation without antialiasing."]
    return "\n".join([*head, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"


def _likely_weights(model: Model, found: Found) -> str | None:
    """Return the checkpoint of the model's name, or the only one there is."""
    names = {model.name, model.source.rpartition(":")[2]}
    of_name = [file for file in found.weights if Path(file).stem in names]
    return next(iter(of_name or (found.weights if len(found.weights) == 1 else ())), None)


def _model(model: Model, found: Found, output: Path) -> list[str]:
    lines = [
        "",
        "[[model]]",
        f"name = {json.dumps(model.name)}",
        f"source = {json.dumps(model.source)}",
        'version = "1"',
    ]
    if model.weights is not None:
        classes = "" if model.classes is None else f"  # {model.classes} classes"
        lines.append(f"weights = {json.dumps(model.weights)}{classes}")
    elif model.source.startswith(_ARCHITECTURES):
        such = json.dumps(_likely_weights(model, found) or "weights.safetensors")
        lines.append(f"# weights = {such}  # without weights they are random, and the bundle cannot be installed")
    elif ".py:" in model.source and (likely := _likely_weights(model, found)) is not None:
        lines.append(f"# weights = {json.dumps(likely)}  # if {model.source} does not load them itself")
    if model.preprocessing is not None:
        name = model.preprocessing.preset or _preprocess_file(output, model.name).name
        lines.append(f"data.preprocess = {json.dumps(name)}  # {model.preprocessing.origin}")
    if model.input is not None:
        lines.append(f"inputs = [{json.dumps(model.input)}]  # from the first layer of the weights: check the sizes")
    elif _needs_inputs(model.source):
        lines.append('# inputs = ["1x3x224x224"]  # or define example_inputs() next to the factory')
    return lines


def _key(name: str, value: str | list[str] | None, example: str) -> str:
    return f"{name} = {json.dumps(value)}" if value else f"# {name} = {example}"


def _needs_inputs(source: str) -> bool:
    """Whether a factory's file gives no example of its inputs."""
    path, colon, _ = source.partition(":")
    return bool(colon) and path.endswith(".py") and "example_inputs" not in _functions(Path(path))


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
    functions = _functions(Path(text)) or _modules(Path(text))
    chosen = [name for name in GENERIC_FACTORIES if name in functions] or [
        name for name in functions if name != "example_inputs"
    ]
    if not chosen or (chosen[0] not in GENERIC_FACTORIES and len(chosen) > 1):
        data = {*_CALIBRATION, *_EVALUATION, "example_inputs"}
        others = [name for name in functions if name.partition("_")[0] not in data and name not in data] or functions
        candidates = (
            f"those that need no argument: {', '.join(others)}"
            if functions
            else "it has no functions without arguments, and no such modules"
        )
        fix = f"give it as {text}:FUNCTION; of several models each: {text}:ONE {text}:TWO"
        raise UsageError(f"{text}: which function returns the model? {candidates}", fix)
    return f"{text}:{chosen[0]}"


def _functions(path: Path) -> list[str]:
    """Return the public functions of a Python file that need no argument, without running it."""
    tree = _parsed(path)
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _is_callable(node, node.args)]


def _modules(path: Path) -> list[str]:
    """Return the public classes of a Python file that are modules by the name of a base, and need no argument."""
    found = []
    for node in _parsed(path).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Module") for base in node.bases):
            start = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            if all(_is_callable(node, one.args, own=1) for one in start):
                found.append(node.name)
    return found


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as err:
        raise UsageError(f"cannot read {path}: {err}", "check the path, and that the file is Python") from err


def _is_callable(node: ast.FunctionDef | ast.ClassDef, arguments: ast.arguments, *, own: int = 0) -> bool:
    needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - own
    return not node.name.startswith("_") and needed <= 0 and None not in arguments.kw_defaults


def _data(folder: Path, names: Iterable[str]) -> str | None:
    """Return the first folder, or .npz, of a usual name and place."""
    for place in _PLACES:
        for name in names:
            for path in (folder / place / name, folder / place / f"{name}.npz"):
                if path.is_dir() or path.is_file():
                    return path.relative_to(folder).as_posix()
    return None
