"""Calibration and evaluation data from an image folder, an array file or a function."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from edgeq.core.config import DataConfig
from edgeq.core.errors import UsageError, first_line
from edgeq.core.lazy import NDArray, np
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, Sample
from edgeq.core.system import available_bytes
from edgeq.core.units import format_bytes
from edgeq.load.images import open_images, read_labels
from edgeq.load.records import LABELS, Reading, Record, Wanted, as_array, check_names, label_of, split_item, to_sample
from edgeq.load.selection import choose
from edgeq.load.user_code import UserFunction, check_arguments, load_function

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
    options: DataConfig,
    limit: int | None,
    seed: int,
) -> tuple[Dataset, tuple[str, ...]]:
    """Return the samples that `origin` names, and the names of images that were skipped as bad.

    For a model with state they are sequences, as `unrolled` of core/samples.py takes them. The first sample is read, so
    that data that does not fit the model fails at once.

    Args:
        origin: an image folder, an .npz or .npy file, file.py:function or pkg.mod:function.
        role: which option it came from, for messages.
        specs: the model's inputs.
        preprocess: how images become inputs; None where arrays are fed as they are.
        options: the labels file, and whether bad images are skipped.
        limit: maximum number of samples, drawn evenly from all classes; None for all.
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
        if reading.states:
            what = f"{_OPTION[role]}: a model with --state takes sequences, but {origin} is a folder of images"
            raise UsageError(what, "give an .npz or .npy file of [samples, steps, …] arrays, or file.py:function")
        data, skipped = open_images(path, wanted, skip_bad=options.skip_bad_images)
    else:
        data = _open_arrays(path, origin, wanted, role)
    first = data.read(0)
    if reading.states:  # whose steps were checked one by one
        return data, skipped
    for array, spec in zip(first.inputs, specs, strict=True):
        fits = spec.takes(array.shape) or spec.takes(array.shape, without=0)
        if str(array.dtype) != spec.dtype or not fits:
            wants, came = f"{spec.dtype} {spec.shape_text(without=0)}", f"{array.dtype} {list(array.shape)}"
            what = f"{data.origin}: {first.name}: input {spec.name!r} expects {wants} per sample, got {came}"
            raise UsageError(what, "resize or crop in --preprocess, or match the data's shape with --input")
    return data, skipped


def _open_arrays(path: Path, origin: str, wanted: Wanted, role: Role) -> Dataset:
    if path.suffix.lower() in (".npz", ".npy"):
        return open_array_file(path, wanted)
    if _is(path, Path.is_file, role):
        fix = f"name the function in it: {origin}:function" if path.suffix == ".py" else _KINDS
        if path.suffix == ".txt":
            fix = "texts are for language models: hf:FOLDER with --context-length N"
        raise UsageError(f"{_OPTION[role]}: cannot take data from {origin}", fix)
    if ":" in origin:
        return open_function(origin, wanted)
    raise UsageError(f"{_OPTION[role]}: no such file or folder: {origin}", _KINDS)


def _is(path: Path, kind: Callable[[Path], bool], role: Role) -> bool:
    try:
        return kind(path)
    except OSError as err:  # a parent that may not be entered, a name that is too long
        raise UsageError(f"{_OPTION[role]}: cannot read {path}: {err.strerror}", "check the path") from err


def makes_data(origin: str) -> bool:
    """Whether `origin` names a function that makes data, and not a file or folder."""
    return ":" in origin and not Path(origin).exists()


def has_no_labels(path: Path) -> bool:
    """Whether the names in a folder or array file tell that its samples have no labels; no sample is read.

    False where only reading them can tell.
    """
    try:
        if path.is_dir():
            return not any(child.is_dir() for child in path.iterdir() if not child.name.startswith("."))
        if path.suffix.lower() == ".npz" and path.is_file():
            with zipfile.ZipFile(path) as archive:
                return f"{LABELS}.npy" not in archive.namelist()
        return path.suffix.lower() == ".npy" and path.is_file()
    except (OSError, zipfile.BadZipFile):
        return False


# --- Arrays as a data set: `.npz`, `.npy`, and what a function of the user's returns.


MEMORY_SHARE = 0.5  # the rest is for the model, its copies and the samples that are made from the arrays

_RETURNS = "return a dict of arrays, (inputs, labels), one array, or an iterable of dicts or of (inputs, label) pairs"


def open_array_file(path: Path, wanted: Wanted) -> Dataset:
    """Return the samples of an `.npz` (arrays by input name) or `.npy` (one input).

    An `.npy` is mapped, so that it need not fit into memory; an `.npz` must.

    Raises:
        UsageError: not readable, larger than `MEMORY_SHARE` of the free memory, pickled, or arrays that do not fit
            the model's inputs.
    """
    origin = str(path)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _from_arrays({"": loaded}, origin, wanted)
        with loaded:
            _check_size(path)
            arrays = {name: loaded[name] for name in loaded.files}
    except UsageError:
        raise
    except Exception as err:  # zip, zlib and NumPy's header raise a dozen types on bad bytes
        raise _unreadable(origin, err) from err
    return _from_arrays(arrays, origin, wanted)


def _check_size(path: Path) -> None:
    """Refuse an `.npz` before it is unpacked: its arrays' headers say what they take."""
    with zipfile.ZipFile(path) as archive:
        needed = sum(_array_bytes(archive, name) for name in archive.namelist())
    free = available_bytes()
    if needed > MEMORY_SHARE * free:
        what = (
            f"{path} unpacks to {format_bytes(needed)} of arrays, more than {MEMORY_SHARE:.0%} of the free memory"
            f" ({format_bytes(free)}), and an .npz is read into memory as a whole"
        )
        raise UsageError(what, "write fewer samples, or save a single input as .npy, which is memory-mapped")


def _array_bytes(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        # of later versions, which NumPy writes for names of fields that are not Latin-1, the size of the header differs
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return math.prod(shape) * dtype.itemsize


def _unreadable(origin: str, err: Exception) -> UsageError:
    if isinstance(err, OSError) and err.strerror:
        return UsageError(f"cannot read {origin}: {err.strerror}", "check the path and its permissions")
    if any(sign in str(err) for sign in ("pickle", "Object arrays", "Python objects")):
        what = f"{origin}: expected plain arrays, got pickled Python objects or another format, which are not loaded"
        return UsageError(what, "save numeric arrays with np.save or np.savez")
    return UsageError(f"{origin} is damaged or not a NumPy file: {first_line(err)}", "write it again with np.savez")


def open_function(spec: str, wanted: Wanted) -> Dataset:
    """Return the samples that `file.py:function` makes. It is called once, without arguments, and returns

    - a dict of arrays by input name, with labels as `y`, like an `.npz`;
    - a tuple of such a dict (or the array of the only input) and an array of labels;
    - the array of the only input;
    - or an iterable of samples without the batch axis: dicts (an array for each input, the label as `y`), (inputs,
      label) pairs, or inputs alone.
      What has a length and an index is read lazily; an iterator is read up to the wanted count.

    Arrays are NumPy's, PyTorch's, or what NumPy makes arrays of.

    Raises:
        UsageError: the function cannot be imported, raises, or returns something else.
    """
    function = load_function(spec, "data function")
    check_arguments(function, 0, "")
    returned = function()
    if isinstance(returned, tuple) and len(returned) == 2 and not isinstance(returned[1], Mapping):
        inputs, labels = returned
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        return _from_arrays(_arrays({**given, LABELS: labels}, spec), spec, wanted)
    if isinstance(returned, Mapping):
        return _from_arrays(_arrays(dict(returned), spec), spec, wanted)
    if hasattr(returned, "dtype"):
        return _from_arrays(_arrays({"": returned}, spec), spec, wanted)
    if (isinstance(returned, Iterable) or _is_indexed(returned)) and not isinstance(returned, str | bytes):
        return _from_items(returned, function, wanted)
    raise UsageError(f"data function {spec}: cannot use the {type(returned).__name__} that it returned", _RETURNS)


def _arrays(values: dict[Any, Any], origin: str) -> dict[str, NDArray[Any]]:
    return {str(name): as_array(value, f"{origin}: {name!r}") for name, value in values.items()}


def _from_arrays(arrays: dict[str, NDArray[Any]], origin: str, wanted: Wanted) -> Dataset:
    columns = dict(arrays)
    labels = None if any(spec.name == LABELS for spec in wanted.reading.specs) else columns.pop(LABELS, None)
    columns = check_names(columns, wanted.reading, origin)
    count = _length({**columns, **({} if labels is None else {LABELS: labels})}, origin)
    classes = labels.tolist() if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" else None
    chosen = choose(count, limit=wanted.limit, seed=wanted.seed, classes=classes)
    short = Path(origin).name

    def read(i: int) -> Sample:
        row = chosen[i]
        arrays_of_row = {name: np.array(column[row]) for name, column in columns.items()}
        label = None if labels is None else label_of(labels[row])
        return to_sample(arrays_of_row, label, f"{short}[{row}]", wanted.reading)

    return _dataset(origin, len(chosen), read, wanted, labelled=labels is not None)


def _length(columns: Mapping[str, NDArray[Any]], origin: str) -> int:
    scalars = [name for name, column in columns.items() if column.ndim == 0]
    if scalars:
        what = f"{origin}: expected the first axis of {scalars[0]!r} to index samples, got a scalar"
        raise UsageError(what, "give [N, …] arrays")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        came = ", ".join(f"{name or 'input'}: {length}" for name, length in lengths.items())
        raise UsageError(
            f"{origin}: expected the same number of samples in every array, got {came}",
            "make the first axes equally long",
        )
    count = next(iter(lengths.values()))
    if count == 0:
        raise UsageError(f"{origin}: expected at least 1 sample, got none", "give [N, …] arrays with N of 1 or more")
    return count


def _is_indexed(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _from_items(returned: Any, function: UserFunction, wanted: Wanted) -> Dataset:
    """Read an iterable of samples: dicts, (inputs, label) pairs, or inputs alone."""
    spec, specs = function.spec, wanted.reading.given
    with function.guard():
        items = returned if _is_indexed(returned) else list(islice(returned, wanted.limit))
        count = len(items)
        first = items[0] if count else None
    if count == 0:
        raise UsageError(f"data function {spec}: expected at least 1 sample, got none", _RETURNS)
    if isinstance(first, str | bytes):
        raise UsageError(f"{spec}[0]: expected the arrays of a sample, got {type(first).__name__}", _RETURNS)
    chosen = choose(count, limit=wanted.limit, seed=wanted.seed, classes=None)

    def split(item: Any, name: str) -> tuple[Record, tuple[Any, ...]]:
        try:
            return split_item(item, specs)
        except UsageError as err:
            raise UsageError(f"{name}: {err.what}", _RETURNS) from err  # each item is one sample, never a batch

    labelled = bool(split(first, f"{spec}[0]")[1])

    def read(i: int) -> Sample:
        row = chosen[i]
        name = f"{spec}[{row}]"
        with function.guard():
            item = items[row]
        values, label = split(item, name)
        if labelled != bool(label):
            raise UsageError(f"{name}: expected a label for every sample or for none", "give each sample its 'y'")
        arrays = {str(key): as_array(value, name) for key, value in values.items()}
        columns = check_names(arrays, wanted.reading, name)
        return to_sample(columns, label_of(label[0]) if label else None, name, wanted.reading)

    return _dataset(spec, len(chosen), read, wanted, labelled=labelled)


def _dataset(origin: str, count: int, read: Callable[[int], Sample], wanted: Wanted, *, labelled: bool) -> Dataset:
    names = wanted.class_names or () if labelled else ()
    return Dataset(origin=origin, count=count, read=read, class_names=names, labelled=labelled)
