"""From a record (an array for each input) to a sample that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.core.errors import UsageError, first_line, nearest
from edgeq.core.lazy import NDArray, np
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Sample, data_specs, state_specs
from edgeq.core.units import counted
from edgeq.load.selection import sample_digest

LABELS = "y"  # the name of the labels among a record's arrays

Record = dict[str, Any]

FORMS = "give (inputs, label) pairs, dicts of arrays by input name with labels as 'y', or arrays, alone or in batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How records are read.

    Attributes:
        specs: the model's inputs; where some are states, a record is a sequence of steps.
        preprocess: applied to uint8 images for inputs of the dtype that it gives; None where arrays are fed as they
            are.
    """

    specs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None

    @property
    def given(self) -> tuple[TensorSpec, ...]:
        """The inputs that data must have arrays for: all but the states."""
        return data_specs(self.specs)

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states, which data may have the first values of."""
        return tuple(spec.name for spec in state_specs(self.specs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a data set is read.

    Attributes:
        reading: how a record becomes a sample.
        limit: how many samples are wanted; None for all.
        seed: picks them.
        class_names: from a labels file, by output index; None if there is none.
    """

    reading: Reading
    limit: int | None
    seed: int
    class_names: tuple[str, ...] | None = None


def as_array(value: Any, where: str) -> NDArray[Any]:
    """Return a tensor, an array or a list of numbers as an array.

    Raises:
        UsageError: it is ragged, or holds objects.
    """
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as err:
        what = f"{where}: expected an array, got {type(value).__name__}: {first_line(err)}"
        raise UsageError(what, "give a NumPy array or a tensor of a NumPy dtype") from err
    if array.dtype.kind not in "biufUS":
        what = f"{where}: expected numbers, got dtype {array.dtype}"
        raise UsageError(what, "give numeric arrays; Python objects are not loaded")
    return array


def split_item(item: Any, specs: Sequence[TensorSpec]) -> tuple[Record, tuple[Any, ...]]:
    """Return the arrays of an item of the data by input name, and its label or labels: none or one value.

    An item is a dict (labels as "y"), (inputs, label), the inputs in order and a label, or the inputs alone.

    Raises:
        UsageError: it has another number of inputs than the model.
    """
    if isinstance(item, Mapping):
        values = dict(item)
        labelled = LABELS in values and all(spec.name != LABELS for spec in specs)
        return values, (values.pop(LABELS),) if labelled else ()
    if not isinstance(item, tuple | list):
        return by_name([item], specs), ()
    parts = list(item)
    if len(parts) == 2 and isinstance(parts[0], Mapping):
        return dict(parts[0]), (parts[1],)
    if len(parts) == 2 and isinstance(parts[0], tuple | list):
        return by_name(parts[0], specs), (parts[1],)
    if len(parts) == len(specs) + 1:
        return by_name(parts[:-1], specs), (parts[-1],)
    return by_name(parts, specs), ()


def by_name(inputs: Sequence[Any], specs: Sequence[TensorSpec]) -> Record:
    """Return inputs in the order of forward's arguments by their names.

    Raises:
        UsageError: there are more or fewer than the model has.
    """
    if len(inputs) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        what = f"expected {counted(len(specs), 'input')} ({names}) in each item of the data, got {len(inputs)}"
        raise UsageError(what, FORMS)
    return {spec.name: value for spec, value in zip(specs, inputs, strict=True)}


def check_names(columns: Mapping[str, NDArray[Any]], reading: Reading, where: str) -> dict[str, NDArray[Any]]:
    """Return the arrays by input name; a model with one input takes one array of any name. States may be missing.

    Raises:
        UsageError: names that are not the model's inputs.
    """
    names = [spec.name for spec in reading.given]
    states = {name: array for name, array in columns.items() if name in reading.states}
    columns = {name: array for name, array in columns.items() if name not in states}
    if len(names) == 1 and len(columns) == 1:
        return {names[0]: next(iter(columns.values())), **states}
    if set(columns) != set(names):
        came = ", ".join(name or "one without a name" for name in columns) or "none"
        unknown = [name for name in columns if name not in names]
        hint = nearest(unknown[0], names) if unknown else ""
        what = f"{where}: expected arrays for the model's inputs {', '.join(names)}; got {came}.{hint}"
        raise UsageError(what, "name the arrays like the inputs, and the labels y")
    return {name: columns[name] for name in names} | states


def label_of(value: Any) -> Any:
    """Return a label: a Python number or text for a single value, else an array or what the user gave."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        return value.item()
    return value


def to_sample(record: Mapping[str, NDArray[Any]], label: Any, name: str, reading: Reading) -> Sample:
    """Return a sample from an array for each input, each without the batch axis or of the input's whole shape.

    Where some inputs are states, it is a sequence, as `unrolled` takes it. uint8 images [H, W] or [H, W, C] for an
    input that takes images are preprocessed; float64 for a float32 input is rounded. No other dtype is converted.

    Raises:
        UsageError: a dtype or shape that does not fit.
    """
    if reading.states:
        return _to_sequence(record, label, name, reading)
    raw, inputs = [], []
    for spec in reading.specs:
        given, ready = _fit(record[spec.name], spec, name, reading.preprocess)
        if _whole_shape(ready.shape, spec) is None and not spec.takes(ready.shape, without=0):
            expected = spec.shape_text(without=0)
            what = f"{name}: input {spec.name!r} expects {expected} per sample, got {list(ready.shape)}"
            raise UsageError(what, "fix the data, or match it with --preprocess or --input")
        raw.append(given)
        inputs.append(ready)
    pairs = list(zip(inputs, reading.specs, strict=True))
    is_row = all(spec.takes(array.shape, without=0) for array, spec in pairs)
    is_whole = all(spec.takes(array.shape) for array, spec in pairs)
    shapes = [_whole_shape(array.shape, spec) for array, spec in pairs]
    # a sample is a row of each input, or all of each; where it is some of both and one sample is all, it becomes whole
    if not is_row and not is_whole and None not in shapes:
        whole = [array.reshape(shape) for array, shape in zip(inputs, shapes, strict=True) if shape is not None]
        raw = [ready if given is old else given for given, old, ready in zip(raw, inputs, whole, strict=True)]
        inputs = whole
    _check_equal_sizes(inputs, reading.specs, name)
    return Sample(inputs=tuple(inputs), raw=tuple(raw), label=label, name=name, digest=sample_digest(raw))


def _to_sequence(record: Mapping[str, NDArray[Any]], label: Any, name: str, reading: Reading) -> Sample:
    """Return the steps of a record as one sample: [steps, ...] of each input, and the first value of each state."""
    lengths: dict[str, int] = {}
    for spec in reading.given:
        array = record[spec.name]
        is_image = reading.preprocess is not None and array.dtype == np.uint8
        if array.ndim not in (len(spec.shape), len(spec.shape) + 1) and not is_image:
            step = spec.shape_text(without=0).removeprefix("[")
            what = f"{name}: input {spec.name!r} expects a sequence of steps, [steps, {step}, got {list(array.shape)}"
            raise UsageError(what, "give a sequence as each sample: the model has --state")
        lengths[spec.name] = len(array)
    count = next(iter(lengths.values()))
    if count == 0 or len(set(lengths.values())) > 1:
        came = ", ".join(f"{key}: {length}" for key, length in lengths.items())
        raise UsageError(f"{name}: expected as many steps of every input, at least one, got {came}", "fix the data")
    if label is not None:
        labels = [label_of(one) for one in label] if np.ndim(label) else []
        if len(labels) != count:
            what = f"{name}: expected a label for each of {counted(count, 'step')}, got {len(labels) or 'one for all'}"
            raise UsageError(what, "give labels as y, [steps] for each sequence")
        label = tuple(labels)
    alone = replace(reading, specs=reading.given)
    columns = [
        to_sample({spec.name: record[spec.name][step] for spec in reading.given}, None, f"{name} step {step}", alone)
        for step in range(count)
    ]
    raw, inputs = [], []
    for spec in reading.specs:
        if spec.fed_from is not None:
            start = record.get(spec.name)
            _, ready = (None, np.zeros(spec.shape, spec.dtype)) if start is None else _fit(start, spec, name, None)
            ready = _whole(ready, spec, name)
            inputs.append(ready)
            raw.append(ready)
            continue
        place = reading.given.index(spec)
        ready = np.stack([_whole(one.inputs[place], spec, one.name) for one in columns])
        is_fed = all(one.raw[place] is one.inputs[place] for one in columns)
        inputs.append(ready)
        raw.append(ready if is_fed else np.stack([one.raw[place] for one in columns]))
    return Sample(inputs=tuple(inputs), raw=tuple(raw), label=label, name=name, digest=sample_digest(raw))


def _whole(array: NDArray[Any], spec: TensorSpec, name: str) -> NDArray[Any]:
    shape = _whole_shape(array.shape, spec)
    if shape is None:
        what = f"{name}: input {spec.name!r} expects {spec.shape_text()}, got {list(array.shape)}"
        raise UsageError(what, "give each step the whole shape of the model's input")
    return array.reshape(shape)


def _whole_shape(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...] | None:
    """Return a shape with the axis of length 1 that it lacks, if any; None where it lacks another, or does not fit.

    A state's batch axis may be its second: [layers, 1, features].
    """
    if spec.takes(shape):
        return shape
    places = [i for i, size in enumerate(spec.shape) if size == 1 and (i == 0 or spec.shape[0] != 1)]
    return next(((*shape[:i], 1, *shape[i:]) for i in places if spec.takes(shape, without=i)), None)


def _check_equal_sizes(inputs: Sequence[NDArray[Any]], specs: Sequence[TensorSpec], name: str) -> None:
    """Refuse a sample whose inputs differ in a size that they share."""
    found: dict[str, tuple[str, int]] = {}
    for array, spec in zip(inputs, specs, strict=True):
        for one in spec.varying:
            axis = one.axis - (len(spec.shape) - array.ndim)
            if axis < 0:
                continue
            other, size = found.setdefault(one.name, (spec.name, array.shape[axis]))
            if size != array.shape[axis]:
                what = f"{name}: {one.name} is {size} in input {other!r}, but {array.shape[axis]} in {spec.name!r}"
                raise UsageError(what, "give the inputs of a sample equal sizes, or two names to sizes that differ")


def _fit(
    array: NDArray[Any], spec: TensorSpec, name: str, preprocess: Preprocess | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the array as an app would have it, and as the model takes it."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if preprocess is not None and native.dtype == np.uint8 and preprocess.takes(spec.dtype):
        return _preprocessed(native, spec, name, preprocess)
    if native.dtype.name == spec.dtype:
        return native, native
    if native.dtype == np.float64 and spec.dtype == "float32":
        with np.errstate(over="ignore"):  # the data lint reports the Inf
            rounded = native.astype(np.float32)
        return rounded, rounded
    if native.dtype != np.uint8 or not spec.dtype.startswith("float"):
        what = f"{name}: input {spec.name!r} expects {spec.dtype}, got {native.dtype}"
        raise UsageError(what, f"convert the array with .astype({spec.dtype!r})")
    what = f"{name}: input {spec.name!r} expects {spec.dtype}, got uint8 pixels"
    raise UsageError(what, "give the preprocessing: --preprocess imagenet, unit, or a .toml file")


def _preprocessed(
    pixels: NDArray[np.uint8], spec: TensorSpec, name: str, preprocess: Preprocess
) -> tuple[NDArray[Any], NDArray[Any]]:
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        what = f"{name}: expected a uint8 image [H, W] or [H, W, C] with 1 or 3 channels, got {list(pixels.shape)}"
        raise UsageError(what, "put the channels last, or give float32 arrays that are already preprocessed")
    ready = apply(preprocess, image)
    if spec.dtype != preprocess.dtype:
        what = f"{name}: input {spec.name!r} expects {spec.dtype}, but preprocessing gives {preprocess.dtype}"
        raise UsageError(what, f"give {spec.dtype} arrays that are already preprocessed")
    return image, ready
