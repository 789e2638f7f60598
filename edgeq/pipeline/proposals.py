"""What `edgeq init` proposes: inputs from the weights, and preprocessing from where the weights came from."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.core.errors import EdgeqError, UsageError
from edgeq.core.marks import file_part
from edgeq.core.preprocess import PRESETS, Preprocess
from edgeq.core.sources import HUGGING_FACE, TIMM
from edgeq.load.images import EXTENSIONS
from edgeq.load.weights import class_count, input_axes

_USUAL_SIDE = 224

_LOOKED_AT = 20  # images of one size are most often all of one size


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """A proposal for `data.preprocess`.

    Attributes:
        name: of the model that it belongs to.
        origin: where it was found, for a comment.
        preset: the preset that it equals; "" where it needs a file of its own.
    """

    name: str
    spec: Preprocess
    origin: str
    preset: str = ""


def proposed_input(weights: str | None, side: int | None) -> str | None:
    """Return the text of `inputs` for a checkpoint, such as 1x3x224x224; None where its first layer does not tell.

    Args:
        weights: a checkpoint, as for `--weights`.
        side: of square images that the data or the preprocessing has; None for the usual one.
    """
    if weights is None or importlib.util.find_spec("torch") is None or not Path(weights.partition("#")[0]).is_file():
        return None
    try:
        axes = input_axes(weights)
    except EdgeqError:  # `edgeq build` has the whole message
        return None
    return None if axes is None else "x".join(str(axis or side or _USUAL_SIDE) for axis in (1, *axes))


def found_classes(source: str, weights: str | None) -> int | None:
    """Return how many classes a checkpoint has; None where they are the published ones, or the source is a file.

    Args:
        source: a model of torchvision or timm, which is built with random weights to be compared.
        weights: a checkpoint, as for `--weights`.
    """
    library, _, name = source.partition(":")
    is_there = library in ("torchvision", "timm") and importlib.util.find_spec(library) is not None
    if weights is None or not is_there or not Path(weights.partition("#")[0]).is_file():
        return None
    module: Any
    if library == "timm":
        import timm

        module = timm.create_model(name) if timm.is_model(name) else None
    else:
        import torchvision

        module = torchvision.models.get_model(name) if name in torchvision.models.list_models() else None
    try:
        return None if module is None else class_count(module, weights)
    except EdgeqError:  # `edgeq build` has the whole message
        return None


def image_side(folder: Path) -> int | None:
    """Return the side of the images in a folder, if the first of them are square and of one size; else None."""
    if importlib.util.find_spec("PIL") is None:
        return None
    from PIL import Image

    sizes = set()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)[:_LOOKED_AT]:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except Exception:  # reading the data says which image, and what is wrong with it
            return None
    (width, height) = next(iter(sizes), (0, 1))
    return width if len(sizes) == 1 and width == height else None


def proposed_preprocessing(source: str) -> Preprocessing | None:
    """Return the preprocessing that the weights of a source were trained with; None where nothing tells.

    torchvision states it with its weights, transformers in preprocessor_config.json, timm in its configurations. A
    Python file is searched for the first model or weights of torchvision or timm that it names; it is not run.
    Where timm: or hf: name the model, loading it finds the same, and needs no proposal.
    """
    if source.startswith(TIMM):
        return None
    if source.startswith(HUGGING_FACE):
        return _of_transformers(Path(source.removeprefix(HUGGING_FACE)))
    if source.startswith("torchvision:"):
        return _of_torchvision(source.removeprefix("torchvision:"))
    path = file_part(source)
    for library, name in _named_in(Path(path)) if path is not None and path.endswith(".py") else ():
        found = _of_timm(name) if library == "timm" else _of_torchvision(name)
        if found is not None:
            return found
    return None


def _named_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield library and name of the architectures and weights that a Python file names, in order."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as err:
        raise UsageError(f"cannot read {path}: {err}", "check the path, and that the file is Python") from err
    text = ast.dump(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if called == "create_model" and isinstance(first, str):
            yield "timm", first
        elif called == "get_model" and isinstance(first, str):
            yield "torchvision", first
        elif "torchvision" in text:
            yield "torchvision", called


def _of_torchvision(name: str) -> Preprocessing | None:
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torchvision

    if name not in torchvision.models.list_models():
        return None
    weights = torchvision.models.get_model_weights(name)
    if not len(weights):
        return None
    steps: Any = weights.DEFAULT.transforms()
    crop, resize = getattr(steps, "crop_size", None), getattr(steps, "resize_size", None)
    if not crop or not resize:  # not a classifier's
        return None
    spec = Preprocess(
        resize=resize[0], crop=(crop[0], crop[0]), mean=tuple(steps.mean), std=tuple(steps.std), color="rgb"
    )
    how = steps.interpolation.value
    return _found(name, spec, f"torchvision, {weights.__name__}.{weights.DEFAULT.name}, which resizes by {how}")


def _of_timm(name: str) -> Preprocessing | None:
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    channels, height, width = config.input_size
    spec = Preprocess(
        color="rgb" if channels == 3 else "gray",
        resize=int(min(height, width) / config.crop_pct),
        crop=(height, width),
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
    return _found(name.partition(".")[0], spec, f"timm, default_cfg of {name}, which resizes by {config.interpolation}")


def _of_transformers(folder: Path) -> Preprocessing | None:
    path = folder / "preprocessor_config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or "image_mean" not in told:
        return None
    size, crop = _sides(told.get("size")), _sides(told.get("crop_size"))
    normalizes = told.get("do_normalize", True)
    spec = Preprocess(
        resize=size if told.get("do_resize", True) else None,
        crop=((crop, crop) if isinstance(crop, int) else crop) if told.get("do_center_crop", False) else None,
        scale=told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0,
        mean=tuple(told["image_mean"]) if normalizes else (0.0,),
        std=tuple(told["image_std"]) if normalizes else (1.0,),
    )
    return _found(folder.resolve().name, spec, str(path))


def _sides(size: Any) -> int | tuple[int, int] | None:
    """Return the sides of a processor's `size`: [height, width], or the shorter side."""
    if isinstance(size, Mapping) and "height" in size:
        return (size["height"], size["width"])
    if isinstance(size, Mapping):
        return size.get("shortest_edge")
    return size if isinstance(size, int) else None


def _found(name: str, spec: Preprocess, origin: str) -> Preprocessing:
    preset = next((key for key, one in PRESETS.items() if one == spec), "")
    return Preprocessing(name=name, spec=spec, origin=origin, preset=preset)
