"""Loads checkpoints of training scripts, trainers and hubs into a module.

A checkpoint is a tree of dicts. Each dict with tensors in it may be a state dict, under the module's own names or under
a wrapper's prefix. Each such reading is compared with the module, and the one that fits is loaded.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeq.core.errors import EdgeqError, UsageError, first_line
from edgeq.core.marks import INDEX_SUFFIX, shards_of, weights_file
from edgeq.core.safe_load import Inert, load_checkpoint, whole_module

IGNORE_OPTION = "--ignore-extra-weights"

# what torch puts into the names of a module that it wraps, at any depth
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# counters of wrappers, which are no weights: torch.optim.swa_utils.AveragedModel
_COUNTERS = frozenset({"n_averaged"})

# averages of the weights, which many trainers keep beside the weights themselves
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|average|averaged|shadow)(?:[._]|$)")

_SHARD = re.compile(r"-\d{5}-of-\d{5}(\.\w+)$")

_DEEPEST = 4  # dicts within dicts: trainers nest two at most

_SHOWN = 3

_TRIED = 3

_QUOTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One way to read a checkpoint.

    Attributes:
        name: the dict and the prefix that the weights lie under, as `--weights FILE#name` takes them; "" for neither.
        values: by the module's names.
        missing: names of the module that have no value.
        extra: keys of the dict under the prefix that the module has not.
        outside: keys of the dict that do not have the prefix.
        wrong: what does not fit, a message for each.
        renamed: all values under the prefix, without it.
        is_older: whether `values` are `renamed`, whose names the module's own code translates.
    """

    name: str
    values: dict[str, Any]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    outside: tuple[str, ...]
    wrong: tuple[str, ...]
    renamed: dict[str, Any]
    is_older: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the module gets a value that fits."""
        return not self.missing and not self.wrong

    @property
    def found(self) -> int:
        """How many tensors of the module get a value that fits."""
        return len(self.values) - len(self.wrong)


def load_weights(module: Any, text: str, *, trusted: bool = False, ignore_extra: bool = False) -> tuple[str, ...]:
    """Fill `module` with the weights that `text` names, and return remarks for the user.

    Accepted: .safetensors, an index of shards, or what torch.save wrote, at any depth of dicts, in any float dtype.
    Prefixes of wrappers (`module.`, `_orig_mod.`, `model.`, a Lightning attribute's name) are removed where the
    names fit without them and do not fit as they are. A tensor that the module shares may be stored once.

    Args:
        module: a torch.nn.Module, changed in place, or not at all where an error is raised.
        text: `FILE`, or `FILE#KEY` for the dict or prefix KEY of it.
        trusted: whether pickled objects in the file may run (`--trust-source`).
        ignore_extra: whether keys that the module does not have are left out.

    Raises:
        UsageError: the file is missing, broken or more than weights, no reading of it fits, or several do.
    """
    path, key = weights_file(text)
    tree = _read(path, trusted=trusted)
    own = module.state_dict()
    tied = _tied(own)
    readings = [reading for place, found in _dicts(tree) for reading in _readings(place, found, own, tied)]
    named = readings if key is None else [reading for reading in readings if _is_under(reading.name, key)]
    if key is not None and readings and not named:
        raise UsageError(f"{path} has no weights under {key!r}", f"it has {_choices(path, readings)}")
    if not named:
        raise _without_weights(tree, path)
    complete = [reading for reading in named if reading.is_complete]
    # the likeliest readings only: each is tried on a copy
    likeliest = sorted(named, key=lambda reading: (-reading.found, len(reading.extra)))
    if not complete:
        complete = [reading for one in likeliest[:_TRIED] if (reading := _older(module, one)) is not None]
    if not complete:
        raise _misfit(path, likeliest[0])
    chosen, remarks = _chosen(path, complete)
    # a prefix was named: keys without it are expected
    extra = chosen.extra if key is not None else (*chosen.extra, *chosen.outside)
    if extra and not ignore_extra:
        what = f"{path} does not fit the model: {len(extra)} unknown keys ({_some(extra)})"
        raise UsageError(what, f"give the model that it was saved from, or skip them with {IGNORE_OPTION}")
    if extra:
        remarks += (f"{len(extra)} keys of {path} that the model does not have were skipped: {_some(extra)}",)
    own.update(chosen.values)  # and not a new dict: quantized layers read their version from what this one carries
    module.load_state_dict(chosen.values if chosen.is_older else own)
    return remarks


def class_count(module: Any, text: str, *, trusted: bool = False) -> int | None:
    """Return the number of classes that a checkpoint has, where that alone sets it apart from a module; else None.

    A fine-tuned model differs from the published one in the first axis of its head's tensors, and in no name.

    Args:
        module: as it is built for the published number of classes.
        text: `FILE` or `FILE#KEY`, as in `load_weights`.
        trusted: whether pickled objects in the file may run.
    """
    path, key = weights_file(text)
    own = module.state_dict()
    tied = _tied(own)
    readings = [
        one for place, found in _dicts(_read(path, trusted=trusted)) for one in _readings(place, found, own, tied)
    ]
    named = [one for one in readings if key is None or _is_under(one.name, key)]
    if not named or any(one.is_complete for one in named):
        return None
    likeliest = min(named, key=lambda one: (len(one.missing), -one.found, len(one.extra)))
    shapes = [
        (tuple(value.shape), tuple(own[name].shape))
        for name, value in likeliest.values.items()
        if hasattr(value, "shape") and hasattr(own[name], "shape") and value.shape != own[name].shape
    ]
    counts = {theirs[:1] for theirs, _ in shapes}
    published = {ours[:1] for _, ours in shapes}
    is_head = all(theirs and len(theirs) == len(ours) and theirs[1:] == ours[1:] for theirs, ours in shapes)
    if likeliest.missing or not is_head or len(counts) != 1 or len(published) != 1:
        return None
    return int(next(iter(counts))[0])


def input_axes(text: str) -> tuple[int, ...] | None:
    """Return the axes behind the batch that a checkpoint's first layer takes, 0 for an unknown length; None if unclear.

    (3, 0, 0) is an image of three channels, (16,) a vector. The order of the weights says which layer is the first;
    .safetensors files have none, so there only three channels are recognized.
    """
    path, key = weights_file(text)
    for place, found in _dicts(_read(path, trusted=False)):
        if key is not None and not _is_under(".".join(place), key):
            continue
        weights = {name: tuple(one.shape) for name, one in found.items() if getattr(one, "ndim", 0) >= _LEAST_AXES}
        images = [shape for shape in weights.values() if len(shape) == _CONV_AXES]
        if any(shape[1] == _RGB for shape in images):
            return (_RGB, 0, 0)
        if path.suffix == ".safetensors" or not weights:
            continue
        name, first = next(iter(weights.items()))
        if len(first) == _CONV_AXES:
            return (first[1], 0, 0)
        return (first[1],) if len(first) == _LEAST_AXES and not images and "emb" not in name else None
    return None


_LEAST_AXES, _CONV_AXES, _RGB = 2, 4, 3


# --- Read a file so that nothing in it runs.


def _read(path: Path, *, trusted: bool) -> Any:
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}", "check --weights")
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return _read_shards(path, trusted=trusted)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return load_checkpoint(path, trusted=trusted)
    except EdgeqError:
        raise
    except pickle.UnpicklingError as err:
        what = f"{path} is not a plain state dict: it is damaged, or holds pickled objects, which could run code"
        raise UsageError(what, "save model.state_dict() with torch.save, or use .safetensors") from err
    except Exception as err:  # torch and safetensors raise many types for a truncated file
        what = f"{path} cannot be read as a checkpoint: {_why(err)}"
        raise UsageError(what, "check that the file is complete, or save it again") from err


def _why(err: Exception) -> str:
    """Return a short reason; torch's message for a truncated file does not name it."""
    if isinstance(err, EOFError) or "PytorchStreamReader" in str(err):
        return "it is truncated or damaged"
    return first_line(err, _QUOTED)


def _read_shards(path: Path, *, trusted: bool) -> dict[str, Any]:
    """Return the tensors of all files that an index names."""
    try:
        listed = json.loads(path.read_bytes())["weight_map"]
        wanted = {str(key): str(name) for key, name in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        what = f"{path} is not an index of weights: expected JSON with a weight_map from names to files"
        raise UsageError(what, "give the .safetensors or .pt file itself") from err
    state: dict[str, Any] = {}
    for shard in shards_of(path):
        if not shard.is_file():
            raise UsageError(f"{path} names {shard.name}, which does not exist", "put all its files into its folder")
        state |= _read(shard, trusted=trusted)
    lost = [key for key in wanted if key not in state]
    if lost:
        what = f"{path} names {len(lost)} tensors that its files do not hold ({_some(lost)})"
        raise UsageError(what, "download all files again: they belong to different models")
    return state


# --- How a checkpoint can be read.


def _dicts(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield each dict of weights in a tree, with the keys that lead to it."""
    import torch

    if not isinstance(tree, Mapping):
        return
    # quantized layers keep weight and bias as a pair, and their dtype beside it
    kinds = (torch.Tensor, tuple, torch.dtype)
    found = {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, kinds)}
    if any(isinstance(value, torch.Tensor) for value in found.values()):
        yield place, found
    if len(place) < _DEEPEST:
        for key, value in tree.items():
            if isinstance(key, str):
                yield from _dicts(value, (*place, key))


def _readings(
    place: tuple[str, ...], state: dict[str, Any], own: Mapping[str, Any], tied: Mapping[str, tuple[str, ...]]
) -> list[_Reading]:
    """Return the readings of one dict: unchanged if that fits, else also without prefixes and names of wrappers."""
    name = ".".join(place)
    plain = _reading(name, {key: key for key in state}, state, own, tied)
    if plain.is_complete:
        return [plain]
    found = [plain]
    for theirs, ours in (
        ({key: key for key in state}, {key: key for key in own}),
        (_unwrapped(state), _unwrapped(own)),
    ):
        for prefix, added in _prefixes(theirs, ours):
            names = {}
            for short, key in theirs.items():
                if short.startswith(prefix):
                    wanted = added + short.removeprefix(prefix)
                    names[ours.get(wanted, wanted)] = key
            part = prefix.rstrip(".")
            found.append(_reading(f"{name}.{part}".strip("."), names, state, own, tied))
    return found


def _unwrapped(keys: Mapping[str, Any]) -> dict[str, str]:
    """Return names without the names of wrappers, each with its original name; {} if two names collide."""
    short = {".".join(part for part in key.split(".") if part not in _WRAPPERS): key for key in keys}
    return short if len(short) == len(keys) else {}


def _prefixes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return pairs of prefixes (of the file, of the module) whose removal makes names equal."""
    shared: list[str] = [""]
    first = next(iter(ours), "").split(".")
    for depth in range(1, len(first)):
        prefix = ".".join(first[:depth]) + "."
        if all(key.startswith(prefix) for key in ours):
            shared.append(prefix)
    found: dict[tuple[str, str], None] = {}
    for key in theirs:
        parts = key.split(".")
        for depth in range(len(parts)):
            rest = ".".join(parts[depth:])
            for prefix in shared:
                if prefix + rest in ours:
                    found[key[: len(key) - len(rest)], prefix] = None
    return list(found)


def _reading(
    name: str,
    names: Mapping[str, str],
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    tied: Mapping[str, tuple[str, ...]],
) -> _Reading:
    """Compare a state dict with the module's.

    Args:
        name: of the reading.
        names: the file's key by the module's name.
        state: the file's values.
        own: the module's.
        tied: of each name of the module that shares its memory, the others.
    """
    values = {ours: state[key] for ours, key in names.items() if ours in own}
    for ours in own:
        stored = next((other for other in tied.get(ours, ()) if other in values), None)
        if ours not in values and stored is not None:
            values[ours] = values[stored]
    # checkpoints from before PyTorch 0.4.1 have no such counter, torchvision's own resnet18 among them
    missing = tuple(key for key in own if key not in values and not key.endswith(".num_batches_tracked"))
    under = {*names.values()}
    return _Reading(
        name=name,
        values=values,
        missing=missing,
        extra=tuple(key for ours, key in names.items() if ours not in own and key not in _COUNTERS),
        outside=tuple(key for key in state if key not in under and key not in _COUNTERS),
        wrong=_wrong(values, own, tied),
        renamed={ours: state[key] for ours, key in names.items()},
    )


def _wrong(values: Mapping[str, Any], own: Mapping[str, Any], tied: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a message for each value that does not fit."""
    import torch

    found = []
    for key, value in values.items():
        if not hasattr(value, "shape") or not hasattr(own[key], "shape"):
            continue  # a quantized layer's packed weight and bias, or its dtype
        if tuple(value.shape) != tuple(own[key].shape):
            found.append(f"{key} has shape {list(value.shape)}, the model expects {list(own[key].shape)}")
        elif value.dtype.is_floating_point != own[key].dtype.is_floating_point:
            found.append(f"{key} is {_dtype(value)}, the model expects {_dtype(own[key])}")
        stored = [other for other in tied.get(key, ()) if other < key and other in values]
        twice = [other for other in stored if values[other] is not value and not torch.equal(values[other], value)]
        found += [f"{other} and {key} differ, and the model has one tensor for both" for other in twice]
    return tuple(found)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tied(own: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the other names of each tensor that has several names."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key, value in own.items():
        if hasattr(value, "untyped_storage") and value.numel():
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            groups.setdefault(place, []).append(key)
    return {key: tuple(other for other in group if other != key) for group in groups.values() for key in group}


# --- Which reading is meant.


def _older(module: Any, reading: _Reading) -> _Reading | None:
    """Return a reading whose names the module's own hooks translate, as for weight_norm and vision transformers.

    torch calls the hooks, so a copy of the module loads the values; None if that fails.
    """
    if not reading.missing or reading.wrong:
        return None
    try:
        copied(module).load_state_dict(reading.renamed)
    except Exception:  # hooks are anyone's, and the message comes from the reading itself
        return None
    return replace(reading, values=reading.renamed, missing=(), extra=(), is_older=True)


def _is_under(name: str, key: str) -> bool:
    """Whether `key` is a complete part of a reading's name."""
    return f".{key}." in f".{name}."


def _chosen(path: Path, complete: Sequence[_Reading]) -> tuple[_Reading, tuple[str, ...]]:
    """Return the reading to load, and remarks about the others."""
    whole = [reading for reading in complete if not reading.extra and not reading.outside] or list(complete)
    different: list[_Reading] = []
    for reading in whole:
        if not any(_same(reading.values, other.values) for other in different):
            different.append(reading)
    raw = [reading for reading in different if not _AVERAGED.search(reading.name)]
    if len(different) == 1:
        return different[0], ()
    if len(raw) == 1:
        others = [reading for reading in different if reading is not raw[0]]
        held = raw[0].name or "its own keys"
        return raw[0], (f"{path}: the weights under {held} were taken; it also has {_choices(path, others)}",)
    what = f"{path} has {len(different)} sets of weights that fit the model"
    raise UsageError(what, f"choose one: {_choices(path, different)}")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(
        value is other[key]
        or (isinstance(value, torch.Tensor) and value.dtype == other[key].dtype and torch.equal(value, other[key]))
        for key, value in one.items()
    )


def _choices(path: Path, readings: Sequence[_Reading]) -> str:
    names = dict.fromkeys(reading.name for reading in readings if reading.name)
    return ", ".join(f"--weights {path}#{name}" for name in [*names][: 2 * _SHOWN]) or "its own keys only"


def _misfit(path: Path, nearest: _Reading) -> UsageError:
    fix = "give the model that it was saved from"
    if _SHARD.search(path.name) and nearest.found and not nearest.extra:
        index = _SHARD.sub(rf"\g<1>{INDEX_SUFFIX}", path.name)
        fix = f"it is one of several files: give their index, --weights {path.with_name(index)}"
    if nearest.missing or not nearest.wrong:
        lists = (("missing keys", nearest.missing), ("unknown keys", nearest.extra))
        parts = [f"{len(keys)} {word} ({_some(keys)})" for word, keys in lists if keys]
        return UsageError(f"{path} does not fit the model: {'; '.join(parts)}", fix)
    more = f" (and {len(nearest.wrong) - 1} more do not fit)" if len(nearest.wrong) > 1 else ""
    if " is int" in nearest.wrong[0] or " is uint" in nearest.wrong[0]:
        fix = "give the float weights, from before any quantization"
    elif " the model expects int" in nearest.wrong[0]:
        fix = "give the weights of the quantized model"
    return UsageError(f"{path}: {nearest.wrong[0]}{more}", fix)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def _without_weights(tree: Any, path: Path) -> UsageError:
    """Return the error for a checkpoint without a state dict, such as a whole module."""
    place = _module_in(tree)
    if place is None:
        what = f"{path} holds {type(tree).__name__}, expected a state dict of tensors"
        return UsageError(what, "save model.state_dict() with torch.save, or use .safetensors")
    return whole_module(path, *place)


def _module_in(tree: Any, place: tuple[str, ...] = ()) -> tuple[tuple[str, ...], str] | None:
    """Return the place of a pickled module in a tree, and the name of its class."""
    if isinstance(tree, Inert):
        state = getattr(tree, "state", None)
        return (place, tree.origin) if isinstance(state, Mapping) and "_modules" in state else None
    if isinstance(tree, Mapping) and len(place) < _DEEPEST:
        for key, value in tree.items():
            found = _module_in(value, (*place, str(key)))
            if found is not None:
                return found
    return None


def copied(module: Any) -> Any:
    """Return a deep copy of a module, also where it holds a computed weight, as torch.nn.utils.spectral_norm leaves it.

    Raises:
        Exception: what the module's own __deepcopy__ raises.
    """
    import torch

    held = (value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor))
    computed = {id(value): value.detach().clone() for value in held if not value.is_leaf}  # PyTorch copies leaves alone
    with torch.no_grad():  # else the copies of a part that is compiled by torch.jit are computed values too
        return copy.deepcopy(module, computed)
