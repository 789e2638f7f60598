"""Samples: what calibration and evaluation data are made of, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.core.errors import UsageError, VerificationError
from edgeq.core.lazy import NDArray, np
from edgeq.core.results.model import TensorSpec, VaryingSize

Outputs = tuple["NDArray[Any]", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample, ready for the model.

    Attributes:
        inputs: an array for each model input, in order; shaped like one row of the input, or like all of it.
        raw: the arrays before preprocessing, as an app has them (uint8 [H, W, C] for an image).
        label: a class index, or a value of any type for the user's metric; None if there is none.
        name: where it comes from (a file, or an index), for messages.
        digest: SHA-256 of the raw arrays, to find repeats and samples that two sets share; of a step, that of its
            sequence with the step's number behind.
        sequence: of a step of a model with state, the digest of its sequence; "" for other models.
        step: the step's number in its sequence.
    """

    inputs: tuple[NDArray[Any], ...]
    raw: tuple[NDArray[Any], ...]
    label: Any
    name: str
    digest: str
    sequence: str = ""
    step: int = 0

    @property
    def source(self) -> str:
        """What tells a sample from those that it has nothing to do with: the digest of its sequence, or its own."""
        return self.sequence or self.digest

    def follows(self, other: Sample | None) -> bool:
        """Whether it is the step after another one of the same sequence."""
        if other is None or not self.sequence:
            return False
        return self.sequence == other.sequence and self.step == other.step + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A sequence of samples that are read when asked for, so that large sets need no memory.

    Attributes:
        origin: what the user named, for messages.
        count: how many samples there are.
        read: returns sample i, 0 <= i < count.
        class_names: class folders by output index, or () if there are none.
        labelled: whether samples carry a label.
    """

    origin: str
    count: int
    read: Callable[[int], Sample]
    class_names: tuple[str, ...] = ()
    labelled: bool = False

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(self.count))


def _read_none(i: int) -> Sample:
    raise IndexError(i)


NO_SAMPLES = Dataset(origin="none", count=0, read=_read_none)


def remembered(dataset: Dataset, budget_bytes: int) -> Dataset:
    """Return the samples with a cache of up to `budget_bytes`, since several steps read all of them."""
    kept: dict[int, Sample] = {}
    left = budget_bytes

    def read(i: int) -> Sample:
        nonlocal left
        if i not in kept:
            sample = dataset.read(i)
            size = sum(array.nbytes for array in (*sample.inputs, *sample.raw))
            if size > left:
                return sample
            left -= size
            kept[i] = sample
        return kept[i]

    return replace(dataset, read=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Model inputs of the exported shape; `rows` of them are real, the rest repeat the last sample."""

    inputs: tuple[NDArray[Any], ...]
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        """How many samples the batch holds."""
        return len(self.samples)


def batches(dataset: Dataset, specs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """Yield batches of the exported shape; where sizes vary, samples of equal sizes that follow each other make one.

    Raises:
        UsageError: a sample whose shape or dtype does not fit, with its name.
    """
    size = batch_size(dataset, specs)
    pending: list[Sample] = []
    for sample in dataset:
        if len(sample.inputs) != len(specs):
            came = f"{len(sample.inputs)} arrays"
            raise UsageError(f"sample {sample.name}: the model has {len(specs)} inputs, got {came}", "fix the data")
        for array, spec in zip(sample.inputs, specs, strict=True):
            left_out = 0 if size else None
            if not spec.takes(array.shape, without=left_out) or str(array.dtype) != spec.dtype:
                expected, came = spec.shape_text(without=left_out), f"{array.dtype} {list(array.shape)}"
                what = f"sample {sample.name}: input {spec.name!r} expects {spec.dtype} {expected}, got {came}"
                raise UsageError(what, "fix the data, or match it with --preprocess or --input")
        if pending and [one.shape for one in pending[0].inputs] != [one.shape for one in sample.inputs]:
            yield _stack(pending, size)
            pending = []
        pending.append(sample)
        if len(pending) == (size or 1):
            yield _stack(pending, size)
            pending = []
    if pending:
        yield _stack(pending, size)


def batch_size(dataset: Dataset, specs: Sequence[TensorSpec]) -> int:
    """Return how many samples make a batch; 0 where a sample already has the full shape of the inputs."""
    if dataset.count == 0:
        return 0
    first = dataset.read(0)
    if all(spec.takes(array.shape) for array, spec in zip(first.inputs, specs, strict=False)):
        return 0
    return rows_of([spec.shape for spec in specs]) or 0


def rows_of(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Return the length of the batch axis of inputs; None where the first one has no axes.

    It is the first axis, or the second one of some of them: recurrent states are [layers, batch, features]. Where no
    length suits all inputs, it is that of the first one.
    """
    axes = [shape[:2] for shape in shapes if shape]
    if not shapes or not shapes[0]:
        return None
    return next((first[0] for first in axes if all(first[0] in one for one in axes)), shapes[0][0])


def _stack(samples: list[Sample], size: int) -> Batch:
    if size == 0:
        return Batch(inputs=samples[0].inputs, samples=tuple(samples))
    filled = samples + [samples[-1]] * (size - len(samples))
    columns = zip(*(sample.inputs for sample in filled), strict=True)
    return Batch(inputs=tuple(np.stack(column) for column in columns), samples=tuple(samples))


def evenly(samples: Dataset, most: int) -> Dataset:
    """Return at most `most` samples, from all parts of the set."""
    count = min(most, samples.count)
    rows = [i * samples.count // count for i in range(count)]
    return replace(samples, count=count, read=lambda i: samples.read(rows[i]))


# --- Sizes that vary from call to call, such as a sequence's length: which are tried. `TensorSpec.shape` holds the
# largest: memory, multiply-accumulates and latency are those of it.


Sizes = Mapping[str, int]  # by the names of the sizes


def varying_sizes(specs: Sequence[TensorSpec]) -> dict[str, VaryingSize]:
    """Return the sizes that vary within bounds, by name."""
    return {one.name: one for spec in specs for one in spec.varying if one.most is not None}


def tried_sizes(specs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Return what the sizes are set to in trials: all largest, all smallest, all in the middle; none if none varies.

    Of several sizes, each is also the smallest while the others are the largest.
    """
    found = varying_sizes(specs)
    if not found:
        return ()
    least = {name: one.least for name, one in found.items()}
    most = {name: _most(one) for name, one in found.items()}
    middle = {name: (one.least + _most(one)) // 2 // one.step * one.step for name, one in found.items()}
    mixed = [{**most, name: least[name]} for name in found] if len(found) > 1 else []
    tried = [most, least, {name: max(middle[name], least[name]) for name in found}, *mixed]
    return tuple(one for i, one in enumerate(tried) if one not in tried[:i])


def beyond_sizes(specs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Return sizes just outside of the bounds, one at a time: above, and below where that leaves any element."""
    found = varying_sizes(specs)
    most = {name: _most(one) for name, one in found.items()}
    least = {name: one.least for name, one in found.items()}
    above = [{**most, name: most[name] + one.step} for name, one in found.items()]
    below = [{**least, name: least[name] - one.step} for name, one in found.items() if one.least > one.step]
    return (*above, *below)


def drawn_sizes(specs: Sequence[TensorSpec], index: int, rng: Any) -> dict[str, int]:
    """Return the sizes of random sample `index`: the first ones are `tried_sizes`, the others are drawn evenly."""
    tried = tried_sizes(specs)
    if index < len(tried):
        return tried[index]
    return {
        name: one.step * int(rng.integers(one.least // one.step, _most(one) // one.step, endpoint=True))
        for name, one in varying_sizes(specs).items()
    }


def fixed_at(specs: Sequence[TensorSpec], sizes: Sizes) -> tuple[TensorSpec, ...]:
    """Return inputs of these sizes, which no longer vary."""
    return tuple(
        replace(
            spec,
            shape=tuple(
                next((sizes[one.name] for one in spec.varying if one.axis == axis and one.name in sizes), size)
                for axis, size in enumerate(spec.shape)
            ),
            varying=(),
        )
        if spec.varying
        else spec
        for spec in specs
    )


def sizes_text(sizes: Sizes) -> str:
    """Return "seq=8, time=400"."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def varying_outputs(
    tried: Sequence[Sizes], shapes: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[tuple[VaryingSize, ...], ...]:
    """Return which sizes of each output vary, by its shapes in trials; () for outputs whose ranks differ.

    A size that always equals one of the inputs' has its name, any other one of its own.

    Args:
        tried: the inputs' sizes.
        shapes: by trial, the shape of each output.
    """
    found = []
    for index, column in enumerate(zip(*shapes, strict=True)):
        varying = []
        for axis, sides in enumerate(zip(*column, strict=False)):
            if len(set(sides)) == 1:
                continue
            equal = [name for name in tried[0] if tuple(one[name] for one in tried) == sides]
            name = equal[0] if equal else f"output{index}_{axis}"
            varying.append(VaryingSize(axis=axis, name=name, least=min(sides), most=max(sides)))
        found.append(tuple(varying))
    return tuple(found)


def _most(one: VaryingSize) -> int:
    if one.most is None:
        raise ValueError(f"{one.name} has no bound")
    return one.most


# --- Models with state: inputs that are fed from outputs of the step before. Data are sequences; what the steps of
# edgeq take are the single steps of these, in order, each with the state that the float model had reached.


_SEQUENCES_KEPT = 4  # unrolled, since samples are mostly read in order


def state_specs(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs that are states."""
    return tuple(spec for spec in specs if spec.fed_from is not None)


def data_specs(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the inputs that data are given for at every step: all but the states."""
    return tuple(spec for spec in specs if spec.fed_from is None)


class Feedback:
    """Gives each step the state that the step before has left.

    The first step of a sequence, and any other step that does not follow the last one, keeps its own state.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._sources = [spec.fed_from for spec in specs]
        self._last: Sample | None = None
        self._outputs: Outputs = ()

    def fed(self, batch: Batch) -> Batch:
        """Return the batch as it is to run: the same one where no input is a state, or no step came before."""
        (sample, *_) = batch.samples
        if not sample.follows(self._last):
            return batch
        inputs = self._with_state(batch.inputs)
        pairs = zip(self._sources, sample.raw, inputs, strict=True)
        raw = tuple(given if source is None else array for source, given, array in pairs)
        return replace(batch, inputs=inputs, samples=(replace(sample, inputs=inputs, raw=raw),))

    def took(self, batch: Batch, outputs: Outputs) -> None:
        """Keep the state that a batch has left."""
        self._last, self._outputs = batch.samples[-1], outputs

    def _with_state(self, inputs: Outputs) -> Outputs:
        fed = list(inputs)
        for index, source in enumerate(self._sources):
            if source is None:
                continue
            state = self._outputs[source]
            if (state.dtype, state.shape) != (fed[index].dtype, fed[index].shape):
                came, takes = (f"{array.dtype} {list(array.shape)}" for array in (state, fed[index]))
                what = f"output {source} is {came}, but the input that it is fed to takes {takes}"
                raise VerificationError(what, "use another scheme or target, or omit --state")
            fed[index] = state
        return tuple(fed)


def run_in_order(
    data: Iterable[Batch], specs: Sequence[TensorSpec], run: Callable[[Batch], Outputs]
) -> Iterator[tuple[Batch, Batch, Outputs]]:
    """Yield each batch of the data, the batch that ran in its place, and what it gave.

    The two differ for a model with state: what runs has the state that it has left itself at the step before.
    """
    feedback = Feedback(specs)
    for batch in data:
        fed = feedback.fed(batch)
        outputs = run(fed)
        feedback.took(fed, outputs)
        yield batch, fed, outputs


def unrolled(sequences: Dataset, specs: Sequence[TensorSpec], run: Callable[[Batch], Outputs] | None) -> Dataset:
    """Return the steps of sequences, in order, each a sample of the inputs' full shapes.

    Args:
        sequences: samples of [steps, ...] for each input that is not a state, and of one value for each state; labels
            have one entry for each step.
        specs: the model's inputs.
        run: the float model, which gives the states after the first step; None without one: these steps then
            have the state that the sequence starts from.
    """
    lengths = [len(_first_data(sample, specs)) for sample in sequences]
    ends = np.cumsum(lengths)
    kept: dict[int, list[Sample]] = {}

    def read(i: int) -> Sample:
        if not 0 <= i < int(ends[-1]):
            raise IndexError(i)
        index = int(np.searchsorted(ends, i, side="right"))
        if index not in kept:
            while len(kept) >= _SEQUENCES_KEPT:
                kept.pop(next(iter(kept)))
            kept[index] = _steps(sequences.read(index), specs, run)
        return kept[index][i - int(ends[index]) + lengths[index]]

    return replace(sequences, count=int(ends[-1]) if lengths else 0, read=read)


def _first_data(sample: Sample, specs: Sequence[TensorSpec]) -> NDArray[Any]:
    return next(array for array, spec in zip(sample.inputs, specs, strict=True) if spec.fed_from is None)


def _steps(sequence: Sample, specs: Sequence[TensorSpec], run: Callable[[Batch], Outputs] | None) -> list[Sample]:
    def at(arrays: Outputs, step: int) -> Outputs:
        return tuple(array[step] if spec.fed_from is None else array for array, spec in zip(arrays, specs, strict=True))

    feedback = Feedback(specs)
    found = []
    pairs = list(zip(sequence.raw, sequence.inputs, strict=True))
    for step in range(len(_first_data(sequence, specs))):
        inputs, raw = at(sequence.inputs, step), at(sequence.raw, step)
        sample = Sample(
            inputs=inputs,
            # what was not preprocessed stays the same object, which says so
            raw=tuple(inputs[i] if given is ready else raw[i] for i, (given, ready) in enumerate(pairs)),
            label=None if sequence.label is None else sequence.label[step],
            name=f"{sequence.name} step {step}",
            digest=f"{sequence.digest}{step:08x}",
            sequence=sequence.digest,
            step=step,
        )
        batch = Batch(inputs=sample.inputs, samples=(sample,))
        if run is not None:
            batch = feedback.fed(batch)
            feedback.took(batch, run(batch))
        found.append(batch.samples[0])
    return found
