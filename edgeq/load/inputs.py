"""Model inputs as people write them (`--input`), and seeded inputs where there is no data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, first_line, nearest
from edgeq.core.lazy import NDArray, np
from edgeq.core.operators import exported
from edgeq.core.preprocess import Preprocess
from edgeq.core.results.model import FILE_KINDS, LoadedModel, TensorSpec, VaryingSize
from edgeq.core.samples import Dataset, Sample, drawn_sizes, fixed_at
from edgeq.load.selection import generator, sample_digest

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")

MAX_ELEMENTS = 2**31

MOST_PLACES = 64  # whose bounds are looked for: each takes a run of the model, and some 15 if its bound is its own

_EXACT = 2**53  # TensorSpec keeps the range as floats, which hold whole numbers exactly up to here

_EXAMPLE = "write [NAME=][DTYPE:]SHAPE[:LOW..HIGH], such as 1x3x224x224 or tokens=int64:1x128:0..30521"

_VARYING = "write {NAME=LEAST..MOST}, such as tokens=int64:1x{seq=8..128}:0..30521, or {seq=16..128/16} for multiples"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}", re.ASCII)

# a fixed size, or a range in braces
_SIZE = re.compile(
    r"(?P<size>\d{1,10})|\{(?:(?P<name>[A-Za-z][A-Za-z0-9_]{0,63})=)?(?P<least>\d{1,10})\.\.(?P<most>\d{1,10})"
    r"(?:/(?P<step>\d{1,10}))?\}",
    re.ASCII,
)

# an `x` inside of braces belongs to a name
_BETWEEN_SIZES = re.compile(r"x(?![^{]*\})")

_MOST_AXES = 16

_NUMBER = r"-?\d{1,25}(?:\.\d{1,25})?(?:[eE][+-]?\d{1,3})?"

_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})", re.ASCII)

_WHOLE = re.compile(r"-?\d{1,25}", re.ASCII)


def parse_inputs(texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the inputs that texts of `--input` describe, in order.

    Raises:
        UsageError: as `parse_input`, or a name that stands for two ranges of sizes.
    """
    specs = tuple(parse_input(text, index) for index, text in enumerate(texts))
    first: dict[str, tuple[str, str]] = {}
    for text, spec in zip(texts, specs, strict=True):
        for one in spec.varying:
            other, span = first.setdefault(one.name, (text, one.text))
            if span != one.text:
                what = f"--input {text!r}: {one.name!r} is {one.text}, but {span} in {other!r}"
                raise UsageError(what, "give sizes of one name the same range, or give them two names")
    return specs


def parse_input(text: str, index: int) -> TensorSpec:
    """Return the input that `[NAME=][DTYPE:]SHAPE[:LOW..HIGH]` describes.

    Without a name it is called `input<index>`, without a dtype it is float32, without a range a float input is
    drawn from 0 to 1. Integer inputs must say their range, since an index out of range crashes many models; HIGH is
    one of their values and is kept so in `TensorSpec.high`, while floats are drawn below HIGH.

    A size `{NAME=LEAST..MOST}` varies. Sizes of one name are equal in each call; one without a name is its own.

    Args:
        text: such as `1x3x224x224`, `int64:1x{seq=8..128}:0..30521` or `mask=bool:1x128`.
        index: the input's position, from 0.

    Raises:
        UsageError: the text does not follow the grammar, or a value is out of bounds.
    """
    head, equals, rest = text.partition("=")
    if "{" in head or ":" in head:  # the `=` belongs to a size
        head, equals, rest = "", "", text
    name = head if equals else f"input{index}"
    if _NAME.fullmatch(name) is None:
        raise _bad(text, f"{name[:40]!r} is not a valid name")
    parts = (rest if equals else text).split(":")
    span = parts.pop() if ".." in parts[-1] and "{" not in parts[-1] else None
    if not 1 <= len(parts) <= 2:
        raise _bad(text, "the shape is missing" if not parts else "it has too many parts")
    dtype = parts[0] if len(parts) == 2 else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"--input {text!r}: unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}", _known_dtypes())
    shape, varying = _parse_shape(text, parts[-1], index)
    low, high = _parse_range(text, dtype, span)
    return TensorSpec(name=name, dtype=dtype, shape=shape, low=low, high=high, varying=varying)


def _parse_shape(text: str, shape_text: str, index: int) -> tuple[tuple[int, ...], tuple[VaryingSize, ...]]:
    """Return the largest shape, and the sizes that vary."""
    sides = _BETWEEN_SIZES.split(shape_text)
    found = [_SIZE.fullmatch(side) for side in sides]
    if len(sides) > _MOST_AXES or not all(found):
        wrong = next((side for side, match in zip(sides, found, strict=True) if match is None), "")
        if "{" in wrong or "}" in wrong:
            raise UsageError(f"--input {text!r}: {wrong[:40]!r} is not a range of sizes", _VARYING)
        raise _bad(text, f"{shape_text[:40]!r} is not a shape")
    shape: list[int] = []
    varying: list[VaryingSize] = []
    for axis, match in enumerate(one for one in found if one is not None):
        if match["size"] is not None:
            shape.append(int(match["size"]))
            continue
        least, most, step = int(match["least"]), int(match["most"]), int(match["step"] or 1)
        if not 1 <= least < most or not step or least % step or most % step:
            what = f"--input {text!r}: {match[0]} is not a range of sizes: expected 1 <= LEAST < MOST"
            raise UsageError(what + (f", both multiples of {step}" if match["step"] else ""), _VARYING)
        shape.append(most)
        name = match["name"] or f"size{index}_{axis}"
        varying.append(VaryingSize(axis=axis, name=name, least=least, most=most, step=step))
    if 0 in shape:
        raise _bad(text, "every size must be at least 1")
    if math.prod(shape) > MAX_ELEMENTS:
        raise _bad(text, f"{math.prod(shape)} elements exceed the maximum of {MAX_ELEMENTS}")
    return tuple(shape), tuple(varying)


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"--input {text!r}: {why}", _EXAMPLE)


def _known_dtypes() -> str:
    return f"known dtypes: {', '.join(DTYPES)}"


def _parse_range(text: str, dtype: str, span: str | None) -> tuple[float, float]:
    whole = not dtype.startswith("float")
    if span is None:
        if whole and dtype != "bool":
            what = f"--input {text!r}: an integer input needs its range of values"
            raise UsageError(what, f"add it with the highest value included, such as {text}:0..30521")
        return 0.0, 1.0
    match = _RANGE.fullmatch(span)
    if match is None:
        raise _bad(text, f"{span[:40]!r} is not a range LOW..HIGH")
    if whole and not all(_WHOLE.fullmatch(part) for part in match.groups()):
        raise _bad(text, f"the range of {dtype} must consist of whole numbers, got {span}")
    low, high = (float(part) for part in match.groups())
    least, most = _bounds(dtype)
    if not (least <= low and high <= most):
        raise _bad(text, f"the range {span} exceeds that of {dtype}, {least:g}..{most:g}")
    if low > high or (low == high and not whole):
        raise _bad(text, f"the range {span} is empty")
    return low, high


def _bounds(dtype: str) -> tuple[float, float]:
    """The least and the greatest value that a range may name."""
    if dtype == "bool":
        return 0.0, 1.0
    if dtype.startswith("float"):
        # half of float64's own, so that high - low stays finite
        most = float(np.finfo(dtype).max) / (2 if dtype == "float64" else 1)
        return -most, most
    info = np.iinfo(dtype)
    return float(max(info.min, -_EXACT)), float(min(info.max, _EXACT))


def tensor_spec(name: str, tensor: Any, source: str) -> TensorSpec:
    """Describe an example tensor; integers without a stated range are drawn from the values that it spans.

    Args:
        name: the input's name.
        tensor: a torch.Tensor, or a fake one without values.
        source: where it comes from, for messages.

    Raises:
        UsageError: it is not a tensor.
        UnsupportedError: NumPy does not have its dtype, such as bfloat16.
    """
    import torch
    from torch._subclasses import FakeTensor

    if not isinstance(tensor, torch.Tensor):
        came = type(tensor).__name__
        raise UsageError(f"{source}: the example of input {name!r} is {came}, expected a tensor", "give tensors only")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedError(
            (f"{source}: input {name!r} is {dtype}, which edgeq does not support as an input"), _known_dtypes()
        )
    low, high = 0.0, 1.0
    if not dtype.startswith(("float", "bool")) and tensor.numel() and not isinstance(tensor, FakeTensor):
        low, high = min(0.0, float(tensor.min())), float(tensor.max())
    sizes = tuple(side if isinstance(side, int) else 0 for side in tensor.shape)  # of a fake tensor, some may be open
    return TensorSpec(name=name, dtype=dtype, shape=sizes, low=low, high=high)


def takes_preprocessed(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Whether the preprocessing's range applies to this input: the only float input, or one of rank 4 or more."""
    return spec.dtype.startswith("float") and (len(specs) == 1 or len(spec.shape) >= 4)


def random_inputs(
    specs: Sequence[TensorSpec], count: int, seed: int, value_range: tuple[float, float] | None
) -> Dataset:
    """Return seeded inputs of the full input shapes, uniform within their ranges.

    Where sizes vary, the first samples have the largest, the smallest and the middle ones, and the others are drawn.

    Args:
        specs: the model's inputs; integers are drawn from low to high, both included.
        count: how many samples.
        seed: sample i depends on the seed and i alone.
        value_range: the preprocessing's range, for the inputs that take images; None for each input's own.

    Raises:
        UsageError: the seed is negative.
    """
    generator(seed)

    def read(i: int) -> Sample:
        rng = generator(seed, i)
        sized = fixed_at(specs, drawn_sizes(specs, i, rng))
        arrays = tuple(_draw(rng, spec, _range_of(spec, specs, value_range)) for spec in sized)
        return Sample(inputs=arrays, raw=arrays, label=None, name=f"random[{i}]", digest=sample_digest(arrays))

    return Dataset(origin=f"random inputs (seed {seed})", count=count, read=read)


def random_sequences(
    specs: Sequence[TensorSpec], count: int, steps: int, seed: int, value_range: tuple[float, float] | None
) -> Dataset:
    """Return seeded sequences for a model with state, as `unrolled` takes them, from states of zeros.

    Args:
        specs: the model's inputs.
        count: how many sequences.
        steps: of each.
        seed: step j of sequence i depends on the seed, i and j alone.
        value_range: as for `random_inputs`.

    Raises:
        UsageError: the seed is negative.
    """
    drawn = random_inputs(specs, count * steps, seed, value_range)

    def read(i: int) -> Sample:
        rows = [drawn.read(i * steps + step).inputs for step in range(steps)]
        arrays = tuple(
            np.stack([row[index] for row in rows]) if spec.fed_from is None else np.zeros(spec.shape, spec.dtype)
            for index, spec in enumerate(specs)
        )
        return Sample(inputs=arrays, raw=arrays, label=None, name=f"random[{i}]", digest=sample_digest(arrays))

    return Dataset(origin=drawn.origin, count=count, read=read)


def parse_states(texts: Sequence[str]) -> dict[str, str]:
    """Return the outputs that texts of `--state` name, by name or index, by the name of the input that each is fed to.

    Raises:
        UsageError: a text without both names, or an input that is named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, output = (part.strip() for part in text.partition("="))
        if not name or not output:
            what = f"--state {text!r}: expected the name of an input, =, and the name or index of an output"
            raise UsageError(what, "write --state h=h_out, or --state h=1 for the second output")
        if name in found:
            what = f"--state {text!r}: input {name!r} is fed from {found[name]} already"
            raise UsageError(what, "give each state once")
        found[name] = output
    return found


def with_states(model: LoadedModel, texts: Sequence[str], outputs: Sequence[TensorSpec]) -> LoadedModel:
    """Return the model with its states marked, as texts of `--state` say.

    Args:
        model: the model with its inputs.
        texts: of `--state`.
        outputs: those of the float model.

    Raises:
        UsageError: an input or output that the model does not have, two of unlike shapes or dtypes, sizes that vary, or
            nothing but states.
    """
    if not texts:
        return model
    if varying := [one.name for spec in model.inputs for one in spec.varying if one.most is not None]:
        what = f"--state needs inputs of one size, but {', '.join(dict.fromkeys(varying))} varies"
        raise UsageError(what, "give fixed sizes in --input: those of one step")
    by_name = {spec.name: spec for spec in model.inputs}
    names = model.output_names or tuple(spec.name for spec in outputs)
    marked = dict(by_name)
    for name, wanted in parse_states(texts).items():
        if name not in by_name:
            what = f"--state {name}={wanted}: the model has no input {name!r}.{nearest(name, by_name)}"
            raise UsageError(what, f"its inputs are {', '.join(by_name)}")
        known = {text: i for i in range(len(names)) for text in (str(i), f"output{i}")}
        known |= {one: i for i, one in enumerate(names)}
        if wanted not in known:
            what = f"--state {name}={wanted}: the model has no output {wanted!r}.{nearest(wanted, names)}"
            raise UsageError(what, f"its outputs are {', '.join(names)}; an index counts from 0")
        spec, output = by_name[name], outputs[known[wanted]]
        if (spec.dtype, spec.shape) != (output.dtype, output.shape):
            what = f"--state {name}={wanted}: the input takes {spec.dtype} {list(spec.shape)}, but the output is"
            fix = "name the output that is the next value of this input; a cache that grows must drop its oldest values"
            raise UsageError(f"{what} {output.dtype} {list(output.shape)}", fix)
        marked[name] = replace(spec, fed_from=known[wanted])
    if all(spec.fed_from is not None for spec in marked.values()):
        raise UsageError("--state names every input, so that data have nothing to give", "leave out what data give")
    return replace(model, inputs=tuple(marked.values()))


def _range_of(
    spec: TensorSpec, specs: Sequence[TensorSpec], value_range: tuple[float, float] | None
) -> tuple[float, float]:
    if value_range is not None and takes_preprocessed(spec, specs):
        return value_range
    return spec.low, spec.high


def _draw(rng: np.random.Generator, spec: TensorSpec, span: tuple[float, float]) -> NDArray[Any]:
    low, high = span
    if spec.dtype.startswith("float"):
        return rng.uniform(low, high, spec.shape).astype(spec.dtype)
    most = np.array(spec.highs, np.int64).reshape(spec.shape[1:]) if spec.highs else int(high)
    return rng.integers(int(low), most, spec.shape, np.int64, endpoint=True).astype(spec.dtype)


def bounded(specs: Sequence[TensorSpec], run: Callable[[tuple[NDArray[Any], ...]], Any]) -> tuple[TensorSpec, ...]:
    """Return the inputs with what each place of whole numbers may hold, where not every place takes every value.

    The columns of a table's ids are rows of embedding tables of unlike sizes: the range of the largest one is out of
    range for the others. Each place is tried alone, with all others at their lowest value, and halved down to the
    highest value that the model takes. A range that no place takes stays as it is: whoever wrote it shall know.

    An example has the highest value at most, and its range begins at 0: a length may have to be 1 or more, or all of
    what there is. Where the model takes the highest values and not the lowest, the lowest of an input is raised.

    Args:
        specs: the model's inputs.
        run: runs the model on an array for each input; raises what the model raises.
    """

    specs = _raised(specs, run)

    def takes(filled: Mapping[int, NDArray[Any]]) -> bool:
        lowest = [np.full(spec.shape, spec.low).astype(spec.dtype) for spec in specs]
        try:
            run(tuple(filled.get(index, array) for index, array in enumerate(lowest)))
        except Exception:  # the user's forward may raise anything
            return False
        return True

    tried = [
        index
        for index, spec in enumerate(specs)
        if not spec.dtype.startswith(("float", "bool"))
        and not spec.varying
        and spec.low < spec.high
        and 1 < math.prod(spec.shape[1:]) <= MOST_PLACES
    ]
    highest = {index: np.full(specs[index].shape, int(specs[index].high), specs[index].dtype) for index in tried}
    if not tried or takes(highest) or not takes({}):
        return tuple(specs)
    found = list(specs)
    for index in tried:
        spec = specs[index]
        places = range(math.prod(spec.shape[1:]))
        narrower = [place for place in places if not takes({index: _at(spec, place, int(spec.high))})]
        if not narrower or len(narrower) == len(places):
            continue
        highs = [spec.high] * len(places)
        for place in narrower:
            least, most = int(spec.low), int(spec.high) - 1
            while least < most:
                value = (least + most + 1) // 2
                if takes({index: _at(spec, place, value)}):
                    least = value
                else:
                    most = value - 1
            highs[place] = float(least)
        found[index] = replace(spec, highs=tuple(highs))
    return tuple(found)


def _raised(specs: Sequence[TensorSpec], run: Callable[[tuple[NDArray[Any], ...]], Any]) -> tuple[TensorSpec, ...]:
    """Return the inputs with the lowest whole numbers that a model takes, where it takes their highest ones."""
    whole = [i for i, spec in enumerate(specs) if not spec.dtype.startswith(("float", "bool")) and not spec.varying]
    found = list(specs)

    def takes(values: Mapping[int, float]) -> bool:
        at = (values.get(i, spec.high if i in whole else spec.low) for i, spec in enumerate(found))
        try:
            run(tuple(np.full(spec.shape, value).astype(spec.dtype) for spec, value in zip(found, at, strict=True)))
        except Exception:  # the user's forward may raise anything
            return False
        return True

    if not whole or takes({i: found[i].low for i in whole}) or not takes({}):
        return tuple(found)
    for i in whole:
        refused, taken = int(found[i].low), int(found[i].high)
        if takes({i: refused}):
            continue
        while taken - refused > 1:
            value = (refused + taken) // 2
            refused, taken = (refused, value) if takes({i: value}) else (value, taken)
        found[i] = replace(found[i], low=float(taken))
        if found[i].only is not None and takes({i: taken + 1}):  # the example's was the least, and not the only one
            found[i] = replace(found[i], high=float(taken + 1))
    return tuple(found)


def _at(spec: TensorSpec, place: int, value: int) -> NDArray[Any]:
    """Return an array of the lowest value, with `value` at one place of shape[1:] in each row."""
    rows = np.full((spec.shape[0], math.prod(spec.shape[1:])), int(spec.low), spec.dtype)
    rows[:, place] = value
    return rows.reshape(spec.shape)


# --- A model that takes pixels as bytes: the preprocessing's arithmetic becomes the first thing that it computes.


MEAN, STD = "edgeq_pixel_mean", "edgeq_pixel_std"


def takes_pixels(model: LoadedModel, preprocess: Preprocess) -> LoadedModel:
    """Return the model with a uint8 input, normalised inside: (pixels - mean / scale) / (std / scale), in float32.

    The normalisation is not folded into the first layer: a convolution that pads with zeros would pad with the mean,
    which no weight can express. No quantizer here treats subtraction and division as layers, so they stay in float.

    Args:
        model: takes one image, float32 [N, C, H, W], or [N, H, W, C] as `preprocess.layout` says.
        preprocess: what the float route does; must not give bytes already.

    Raises:
        UsageError: the preprocessing gives bytes already, or its channels are not the input's.
        UnsupportedError: a ready-made artifact, several inputs, another dtype, or a model without a class.
    """
    spec = _image(model)
    if preprocess.dtype == "uint8":
        what = "the preprocessing already gives uint8, so --input-dtype uint8 has nothing to normalise"
        raise UsageError(what, "omit --input-dtype")
    mean, std = _constants(preprocess, spec)
    pixels = replace(spec, dtype="uint8", low=0.0, high=255.0)
    if model.kind == "exported":
        return replace(model, model=_program(model.model, mean, std, pixels), inputs=(pixels,))
    return replace(model, model=_module(model.model, mean, std), inputs=(pixels,))


def _image(model: LoadedModel) -> TensorSpec:
    """Return the one input that takes an image."""
    if model.kind in FILE_KINDS:
        what = f"{model.model} is already lowered, so --input-dtype cannot add normalisation to it"
        raise UnsupportedError(what, "give the PyTorch model, or omit --input-dtype")
    if len(model.inputs) != 1 or model.inputs[0].dtype != "float32" or len(model.inputs[0].shape) != 4:
        takes = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in model.inputs)
        what = f"--input-dtype uint8 is for a model that takes one image, float32 of rank 4; this model takes {takes}"
        raise UnsupportedError(what, "omit --input-dtype, or normalise in the model's forward")
    return model.inputs[0]


def _constants(preprocess: Preprocess, spec: TensorSpec) -> tuple[Any, Any]:
    """Return mean and standard deviation of the pixels themselves, 0 to 255, shaped to meet the input's channels."""
    import torch

    first = preprocess.layout == "NCHW"
    channels = spec.shape[1] if first else spec.shape[3]
    given = 1 if preprocess.color == "gray" else 3
    if channels != given:
        what = f"the preprocessing gives {given} channels ({preprocess.layout}), input {spec.name!r} has {channels}"
        raise UsageError(what, "give the --preprocess with which the model was trained")
    shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
    pairs = (preprocess.mean, preprocess.std)
    mean, std = ((torch.tensor(values, dtype=torch.float64) / preprocess.scale).float() for values in pairs)
    return mean.reshape(shape), std.reshape(shape)


def _module(module: Any, mean: Any, std: Any) -> Any:
    """Return the same module with another forward: of a wrapper, every layer would have another name."""
    import torch

    kind = type(module)
    if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
        what = (
            f"--input-dtype uint8 replaces the forward of the model's class, but {kind.__name__} has no "
            "forward of its own"
        )
        raise UnsupportedError(what, "return the nn.Module from the factory, not a traced version of it")

    def forward(self: Any, pixels: Any) -> Any:
        mean, std = self.edgeq_pixel_mean, self.edgeq_pixel_std
        return kind.forward(self, (pixels.to(mean.dtype) - mean) / std)

    # by name: nn.Sequential would run a part that is added to it
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    module.register_buffer(MEAN, mean)
    module.register_buffer(STD, std)
    return module


def _program(program: Any, mean: Any, std: Any, pixels: TensorSpec) -> Any:
    """Return an exported program captured again behind the arithmetic."""
    import torch

    class Pixels(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        """Runs a program on normalised pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.program = program.module()
            self.register_buffer(MEAN, mean)
            self.register_buffer(STD, std)

        def forward(self, pixels: Any) -> Any:
            return self.program((pixels.to(torch.float32) - self.edgeq_pixel_mean) / self.edgeq_pixel_std)

    try:
        captured = exported(Pixels(), (torch.zeros(pixels.shape, dtype=torch.uint8),), (pixels,))
    except Exception as err:  # export raises many types
        what = f"the exported program cannot be captured again behind the normalisation: {first_line(err)}"
        raise UnsupportedError(what, "give the model's factory, or omit --input-dtype") from err
    # let each operator know its module again, which capturing a program forgets; the new ones come first
    before, after = ([node for node in one.graph.nodes if node.op == "call_function"] for one in (program, captured))
    after = after[len(after) - len(before) :]
    if [node.target for node in before] == [node.target for node in after]:
        for old, new in zip(before, after, strict=True):
            new.meta |= {key: old.meta[key] for key in ("nn_module_stack", "stack_trace") if key in old.meta}
    return captured
