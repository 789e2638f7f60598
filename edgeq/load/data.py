"""Calibration and evaluation data, from whatever the user named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from edgeq.artifacts import TensorSpec
from edgeq.errors import UsageError
from edgeq.job import DataOptions
from edgeq.load.arrays import open_array_file, open_function
from edgeq.load.images import open_images
from edgeq.load.labels import read_labels
from edgeq.load.records import Reading, Wanted
from edgeq.preprocess import Preprocess
from edgeq.samples import Dataset

Role = Literal["calibration", "evaluation", "qat", "search"]
_OPTION: dict[Role, str] = {
    "calibration": "--calibration-data",
    "evaluation": "--eval-data",
    "qat": "--qat-data",
    "search": "--search-data",
}
_KINDS = "give an image folder, an .npz or .npy file, or file.py:function"


def open_dataset(
    origin: str,
    *,
    role: Role,
    specs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    options: DataOptions,
    limit: int | None,
    seed: int,
) -> tuple[Dataset, tuple[str, ...]]:
    """Return the samples that `origin` names, and the names of images that were skipped as bad.

    The first sample is read, so that data that does not fit the model fails at once.

    Args:
        origin: an image folder, an .npz or .npy file, file.py:function or pkg.mod:function.
        role: which option it came from, for messages.
        specs: the model's inputs.
        preprocess: how images become inputs; None where arrays are fed as they are.
        options: the labels file, and whether bad images are skipped.
        limit: how many samples are wanted, evenly from all classes; None for all.
        seed: picks them.

    Raises:
        UsageError: no such data, or it cannot be read or fed to the model.
    """
    labels = read_labels(options.labels) if options.labels is not None else None
    reading = Reading(specs=tuple(specs), preprocess=preprocess)
    wanted = Wanted(reading=reading, limit=limit, seed=seed, class_names=labels)
    path = Path(origin)
    skipped: tuple[str, ...] = ()
    if _is(path, Path.is_dir, role):
        data, skipped = open_images(path, wanted, skip_bad=options.skip_bad_images)
    else:
        data = _open_arrays(path, origin, wanted, role)
    _check_first(data, specs)
    return data, skipped


def _open_arrays(path: Path, origin: str, wanted: Wanted, role: Role) -> Dataset:
    if path.suffix.lower() in (".npz", ".npy"):
        return open_array_file(path, wanted)
    if _is(path, Path.is_file, role):
        fix = f"name the function in it: {origin}:function" if path.suffix == ".py" else _KINDS
        raise UsageError(f"{_OPTION[role]}: cannot take data from {origin}", fix)
    if ":" in origin:
        return open_function(origin, wanted)
    raise UsageError(f"{_OPTION[role]}: no such file or folder: {origin}", _KINDS)


def _is(path: Path, kind: Callable[[Path], bool], role: Role) -> bool:
    try:
        return kind(path)
    except OSError as err:  # a parent that may not be entered, a name that is too long
        raise UsageError(f"{_OPTION[role]}: cannot read {path}: {err.strerror}", "check the path") from err


def _check_first(data: Dataset, specs: Sequence[TensorSpec]) -> None:
    first = data.read(0)
    for array, spec in zip(first.inputs, specs, strict=True):
        if str(array.dtype) != spec.dtype or array.shape not in (spec.shape, spec.shape[1:]):
            wants, came = f"{spec.dtype} {list(spec.shape[1:])}", f"{array.dtype} {list(array.shape)}"
            what = f"{data.origin}: {first.name}: input {spec.name!r} wants {wants} a sample, got {came}"
            raise UsageError(what, "resize or crop in --preprocess, or give --input to match")
