"""Models, data and functions of the calling process, under names with the form of a file's or module's.

The pipeline takes text (`torchvision:resnet18`, `file.py:function`), which an edgeq.toml can hold and a cache key can
be made of. An object of the calling program gets a name of the same form: a module is entered in `sys.modules` for
the time of the run, and `load_function` finds the object in it as it would find one in a file. Live objects are not
cached, since edgeq cannot tell whether their dependencies have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeq.core.config import DataConfig
from edgeq.core.errors import UsageError, first_line
from edgeq.core.lazy import NDArray
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, data_specs, state_specs
from edgeq.core.system import available_bytes
from edgeq.core.units import format_bytes
from edgeq.load import dataset
from edgeq.load.dataset import MEMORY_SHARE, Role
from edgeq.load.records import FORMS, LABELS, Record, as_array, by_name, split_item

_PREFIX = "edgeq_live"

# names are looked up in the process's one table of modules, and torch's settings are the process's too
_ONE_AT_A_TIME = threading.RLock()

_DATA: dict[str, LiveData] = {}


class LiveObjects:
    """The objects of one run, by name; they are forgotten when the block ends."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __enter__(self) -> LiveObjects:
        _ONE_AT_A_TIME.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            sys.modules.pop(name, None)
            _DATA.pop(f"{name}:data", None)
        _ONE_AT_A_TIME.release()

    @property
    def count(self) -> int:
        """The number of registered objects."""
        return len(self._names)

    def _enter(self, name: str, origin: Any, **values: Any) -> None:
        module = ModuleType(name)
        # errors that the object raises name the line in its own file
        with contextlib.suppress(TypeError, OSError):
            module.__file__ = inspect.getsourcefile(origin)
        if not hasattr(module, "__file__"):
            module.__file__ = None
        vars(module).update(values)
        sys.modules[name] = module
        self._names.append(name)

    def add_model(self, model: Any, example_inputs: Any) -> str:
        """Return the source that stands for a `torch.nn.Module`; what is packaged is a copy of it in eval mode.

        Two models with the same class and the same tensors (names, dtypes and shapes) have the same source: the later
        one may replace the earlier one's bundles.

        Args:
            model: the module.
            example_inputs: the arguments of `forward` in order, or a dict of them by name, with the batch axis; None
                where the module itself has `example_inputs()`, or the inputs are given as text.
        """
        name = type(model).__name__
        module = f"{_PREFIX}_{architecture_hash(model)}.{name}"
        values: dict[str, Any] = {name: lambda: model}
        if example_inputs is not None:
            values["example_inputs"] = lambda: example_inputs
        self._enter(module, type(model), **values)
        return f"{module}:{name}"

    def add_data(self, role: str, value: Any) -> str:
        """Return the name that stands for data, which `open_dataset` reads."""
        module = f"{_PREFIX}_data.{role}"
        self._enter(module, value)
        _DATA[f"{module}:data"] = LiveData(value, module)
        return f"{module}:data"

    def add_function(self, role: str, function: Callable[..., Any]) -> str:
        """Return the name that stands for a metric or a training loop; it ends in the function's own name."""
        own = getattr(function, "__name__", "")
        name = own if own.isidentifier() else role
        module = f"{_PREFIX}_{role}.{name}"
        self._enter(module, function, **{name: function})
        return f"{module}:{name}"


def architecture_hash(model: Any) -> str:
    """Return eight hexadecimal digits over a module's class and the names, dtypes and shapes of its state.

    Args:
        model: a torch.nn.Module or a torch.export.ExportedProgram.
    """
    state = model.state_dict() if callable(model.state_dict) else model.state_dict
    facts = [type(model).__module__, type(model).__qualname__]
    # lazy parameters have no shape yet, and quantized layers keep pairs: loading has the message for these
    facts += [f"{key}:{getattr(value, 'dtype', '')}:{_shape(value)}" for key, value in state.items()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _shape(value: Any) -> str:
    try:
        return str(tuple(value.shape))
    except (AttributeError, RuntimeError):
        return ""


class LiveData:
    """Data of the calling program, read once: a generator is used up by that, and a shuffled loader differs each time.

    The schemes of a run, and the roles that share one set, so get the same samples.
    """

    def __init__(self, value: Any, module: str) -> None:
        self._value = value
        self._module = module
        self._records: list[Record] = []
        self._rest: Iterator[Record] | None = None
        self._bytes = 0

    def arrange(self, specs: Sequence[TensorSpec]) -> None:
        """Let the name under which the data is known give it in a form that `open_dataset` takes for `specs`."""
        vars(sys.modules[self._module])["data"] = lambda: self._values(specs)

    def _values(self, specs: Sequence[TensorSpec]) -> Any:
        is_streaming = bool(state_specs(specs))
        specs = data_specs(specs)
        if callable(self._value) and not isinstance(self._value, Iterable) and not _is_indexed(self._value):
            self._value = self._value()
        value = self._value
        if isinstance(value, Mapping) or hasattr(value, "dtype"):
            return value
        if (
            isinstance(value, tuple)
            and len(value) == 2
            and _is_set(value[0])
            and not isinstance(value[1], Mapping | tuple)
        ):
            inputs, labels = value
            return (by_name(inputs, specs) if isinstance(inputs, tuple | list) else inputs), labels
        # torch's Datasets have an index and are no sequences
        is_map = _is_indexed(value) and not isinstance(value, Sequence) and len(value)
        if is_map and (is_streaming or not _is_batch(value[0], specs)):
            return _Lazy(value, specs, is_streaming=is_streaming)
        if not isinstance(value, Iterable) and not _is_indexed(value):
            raise UsageError(f"cannot take data from a {type(value).__name__}", FORMS)
        if self._rest is None:
            items = value if isinstance(value, Iterable) else (value[i] for i in range(len(value)))
            self._rest = itertools.chain.from_iterable(
                _records(item, specs, is_streaming=is_streaming) for item in items
            )
        # what may be drawn from is known as a whole; a stream is read as far as it is needed
        return list(self._read()) if isinstance(value, Sequence) else self._read()

    def _read(self) -> Iterator[Record]:
        yield from list(self._records)
        for record in self._rest or ():
            self._keep(record)
            yield record

    def _keep(self, record: Record) -> None:
        self._records.append(record)
        self._bytes += sum(getattr(value, "nbytes", 0) for value in record.values())
        if len(self._records) % 64 == 1 and self._bytes > MEMORY_SHARE * available_bytes():
            what = f"the samples take more than {format_bytes(self._bytes)}, {MEMORY_SHARE:.0%} of the free memory"
            raise UsageError(what, "give the torch Dataset itself (one sample per index), which is read lazily")


class _Lazy:
    """A map-style dataset whose items are samples: read when they are needed."""

    def __init__(self, items: Any, specs: Sequence[TensorSpec], *, is_streaming: bool) -> None:
        self._items = items
        self._specs = specs
        self._is_streaming = is_streaming

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        return next(_records(self._items[index], self._specs, is_streaming=self._is_streaming))


def _is_indexed(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _is_set(inputs: Any) -> bool:
    """Whether the first of two values is all samples' inputs, beside their labels, and not the first of two items."""
    if isinstance(inputs, tuple | list):
        return all(hasattr(array, "dtype") for array in inputs)
    return isinstance(inputs, Mapping) or hasattr(inputs, "dtype")


def _is_batch(item: Any, specs: Sequence[TensorSpec]) -> bool:
    """Whether an item of the data has the batch axis: as many axes as the model's input, which has it too."""
    arrays = {key: as_array(value, f"input {key!r}") for key, value in split_item(item, specs)[0].items()}
    first = arrays.get(specs[0].name, next(iter(arrays.values()), None))
    return first is not None and first.ndim == len(specs[0].shape)


def _records(item: Any, specs: Sequence[TensorSpec], *, is_streaming: bool) -> Iterator[Record]:
    """Yield the samples of an item: one, or each of a batch. Of a model with state, an item is one sequence.

    Raises:
        UsageError: arrays of different lengths in a batch, or an item of another form.
    """
    inputs, labels = split_item(item, specs)
    if labels and any(spec.name == LABELS for spec in specs):
        raise UsageError(
            ("the model has an input named 'y', which is the name of the labels"), "rename that input of forward"
        )
    arrays: dict[str, NDArray[Any]] = {key: as_array(value, f"input {key!r}") for key, value in inputs.items()}
    if is_streaming or not _is_batch(item, specs):
        yield {**arrays, **({LABELS: labels[0]} if labels else {})}
        return
    if labels and not hasattr(labels[0], "__len__"):
        labels = ([labels[0]],)  # the label of a batch of one
    columns: dict[str, Any] = {**arrays, **({LABELS: labels[0]} if labels else {})}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{key}: {length}" for key, length in lengths.items())
        raise UsageError(f"expected the same number of samples in every array of a batch, got {sizes}", FORMS)
    for row in range(len(next(iter(arrays.values())))):
        # a loader may use its arrays again for the next batch
        yield {
            **{key: array[row].copy() for key, array in arrays.items()},
            **({LABELS: labels[0][row]} if labels else {}),
        }


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
    """Open the data of a name, live or not; see `edgeq.load.dataset.open_dataset`."""
    live = _DATA.get(origin)
    if live is not None:
        live.arrange(specs)
    return dataset.open_dataset(
        origin, role=role, specs=specs, preprocess=preprocess, options=options, limit=limit, seed=seed
    )


def save_program(program: Any, folder: Path) -> Path:
    """Write a live `torch.export.ExportedProgram` where the loader of .pt2 files finds it, and return the file.

    Raises:
        UsageError: torch cannot write it.
    """
    import torch

    place = folder / architecture_hash(program)  # stable: the folder tells sources apart
    place.mkdir()
    path = place / "model.pt2"
    try:
        torch.export.save(program, path)
    except Exception as err:  # operators and classes that it cannot serialize raise many types
        raise UsageError(f"the exported program cannot be saved: {first_line(err)}", "export it again") from err
    return path
