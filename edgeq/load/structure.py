"""Adapts modules with structured inputs and outputs, so that they take and return tensors by position.

A runtime on a device feeds a list of tensors and gets a list of tensors. If forward takes keywords, dicts or nested
tuples, or returns a `ModelOutput`, a dataclass or None, the module gets a new forward around its own. Its layers keep
their names. A module that takes and returns plain tensors stays unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import keyword
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, calling_line, nearest
from edgeq.core.lazy import NDArray
from edgeq.core.results.model import TensorSpec
from edgeq.core.system import Uncompiled
from edgeq.load.inputs import bounded, random_inputs, tensor_spec

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# arguments other than tensors that forward may have; they become constants
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Placeholder in a call for the input tensor with this index."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a forward is called.

    Attributes:
        specs: the input tensors, in order.
        args, kwargs: the arguments of forward, with a `_Slot` for each tensor.
        is_plain: whether forward takes the tensors by position already.
        read: the inputs that have one value, by their index, where Python reads it in forward: the line that does.
    """

    specs: tuple[TensorSpec, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_plain: bool = True
    read: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return a line for the user on each input whose value is a constant of every artifact."""
        return tuple(
            f"input {self.specs[i].name!r} takes {self.specs[i].only} only, and Python reads it{where}: the artifact is"
            " for that value, and ignores the input"
            for i, where in self.read.items()
        )


def call_with_examples(module: Any, examples: Any, source: str) -> Call:
    """Return how forward is called with inputs like `examples`.

    Args:
        module: a torch.nn.Module.
        examples: the result of `example_inputs()`: a tensor, the arguments in order, a dict of arguments by name, or
            (arguments in order, arguments by name) as torch.export takes them.
        source: origin of the examples, for messages.

    Raises:
        UsageError: forward does not accept them, or they contain other values than tensors, containers and constants.
        UnsupportedError: a tensor has a dtype that edgeq cannot feed.
    """
    signature = inspect.signature(module.forward)
    args, kwargs = _arguments(examples, signature)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as err:
        what = f"{source}: forward{signature} does not take the example inputs: {err}"
        raise UsageError(what, "return its arguments in order as a tuple, or by name as a dict") from err
    leaves: list[tuple[tuple[str, ...], Any]] = []
    filled = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        path = () if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) else (name,)
        before = len(leaves)
        filled[name] = _template(value, path, leaves, source)
        if len(leaves) == before and not isinstance(value, _CONSTANTS) and path:
            raise _no_tensor(source, name, value)
    if not leaves:
        raise UsageError(f"{source}: the example inputs hold no tensor", "give a tensor for each input")
    # those of *args have no name
    paths = [(f"input{i}",) if path[0].isdigit() else path for i, (path, _) in enumerate(leaves)]
    names = _names(paths, [*signature.parameters])
    specs = tuple(tensor_spec(name, value, source) for name, (_, value) in zip(names, leaves, strict=True))
    bound.arguments.update(filled)
    is_plain = not bound.kwargs and list(bound.args) == [_Slot(i) for i in range(len(leaves))]
    return Call(specs=specs, args=bound.args, kwargs=bound.kwargs, is_plain=is_plain)


def _arguments(examples: Any, signature: inspect.Signature) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parameters = signature.parameters.values()
    any_name = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    by_name = {p.name for p in parameters if p.kind not in (inspect.Parameter.POSITIONAL_ONLY, *_VARIABLE)}
    if isinstance(examples, Mapping):
        fits = any_name or by_name.issuperset(examples)
        return ((), dict(examples)) if fits else ((examples,), {})
    if not isinstance(examples, tuple | list):
        return (examples,), {}
    if len(examples) == 2 and isinstance(examples[0], tuple) and isinstance(examples[1], Mapping):
        args, kwargs = examples
        if by_name.issuperset(kwargs) and kwargs:
            return args, dict(kwargs)
    return tuple(examples), {}


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _template(value: Any, path: tuple[str, ...], leaves: list[tuple[tuple[str, ...], Any]], source: str) -> Any:
    """Return `value` with a `_Slot` for each tensor; the tensors are added to `leaves` with their paths."""
    import torch

    if isinstance(value, torch.Tensor):
        leaves.append((path, value))
        return _Slot(len(leaves) - 1)
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, Mapping):
        return {key: _template(inner, (*path, str(key)), leaves, source) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        inner = [_template(one, (*path, str(i)), leaves, source) for i, one in enumerate(value)]
        return _like(value, inner)
    raise _no_tensor(source, ".".join(path), value)


def _like(value: Any, items: list[Any]) -> Any:
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _no_tensor(source: str, name: str, value: Any) -> UsageError:
    what = f"{source}: the example of input {name!r} is {type(value).__name__}, expected a tensor"
    return UsageError(what, "give tensors, or dicts and tuples of tensors")


def _names(paths: Sequence[tuple[str, ...]], taken: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each tensor: the last key of its path if that is unique, else all keys."""
    last = [path[-1] for path in paths]
    names: list[str] = []
    for path in paths:
        alone = not path[-1].isdigit() and last.count(path[-1]) == 1 and (len(path) == 1 or path[-1] not in taken)
        name = re.sub(r"\W", "_", path[-1] if alone else "_".join(path), flags=re.ASCII)
        name = f"_{name}" if name[:1].isdigit() or keyword.iskeyword(name) or name == "self" else name
        names.append(name if name not in names else f"{name}_{len(names)}")
    return tuple(names)


def call_with_specs(module: Any, specs: Sequence[TensorSpec], *, named: bool) -> Call:
    """Return how forward is called with the inputs of `--input`.

    Args:
        module: a torch.nn.Module.
        specs: in the order given; `batch.imu` is in a dict, `state.0` in a tuple.
        named: whether --input gave names.

    Raises:
        UsageError: a name is repeated, unknown to forward, or missing for a required argument.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in _POSITIONAL]
    if not named:
        padded = (*names, *(spec.name for spec in specs[len(names) :]))
        return Call(
            specs=tuple(dataclasses.replace(spec, name=name) for spec, name in zip(specs, padded, strict=False))
        )
    given = [spec.name for spec in specs]
    repeated = next((name for name in given if given.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"--input gives {repeated!r} twice", "give each input once")
    known = [p.name for p in parameters if p.kind not in _VARIABLE]
    heads = [name.partition(".")[0] for name in given]
    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters) and not {*heads} <= {*known}:
        return Call(specs=tuple(specs))
    unknown = next((name for name in heads if name not in known), None)
    if unknown is not None:
        what = f"the model has no input {unknown!r}.{nearest(unknown, known)}"
        fix = f"its forward takes: {', '.join(known)}; write --input NAME.KEY=… for a value in a dict or a tuple"
        raise UsageError(what, fix)
    needed = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in heads]
    if needed:
        what = f"--input gives {given[-1]!r} but not {needed[0]!r}, which forward needs"
        raise UsageError(what, f"give --input {needed[0]}=… too")
    ordered = sorted(specs, key=lambda spec: known.index(spec.name.partition(".")[0]))
    paths = [tuple(spec.name.split(".")) for spec in ordered]
    kwargs: dict[str, Any] = {}
    for index, path in enumerate(paths):
        inner = kwargs
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = _Slot(index)
    renamed = zip(ordered, _names(paths, known), strict=True)
    return Call(
        specs=tuple(dataclasses.replace(spec, name=name) for spec, name in renamed),
        kwargs={name: _tuples(value) for name, value in kwargs.items()},
        is_plain=paths == [(name,) for name in names[: len(paths)]],
    )


def _tuples(value: Any) -> Any:
    """Return dicts with the keys 0, 1, … as tuples."""
    if not isinstance(value, dict):
        return value
    inner = {key: _tuples(one) for key, one in value.items()}
    return tuple(inner[str(i)] for i in range(len(inner))) if {*inner} == {*map(str, range(len(inner)))} else inner


# --- Results: which of them are tensors, and their names.


def _leaves(result: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the values in a result with the keys that lead to them, except None."""
    if result is None:
        return
    if isinstance(result, Mapping):
        parts = [(key, value) for key, value in result.items()]
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        parts = [(_Field(item.name), getattr(result, item.name)) for item in dataclasses.fields(result)]
    elif hasattr(result, "_fields") and isinstance(result, tuple):
        parts = [(_Field(name), getattr(result, name)) for name in getattr(result, "_fields", ())]
    elif isinstance(result, tuple | list):
        parts = [*enumerate(result)]
    else:
        yield path, result
        return
    for key, value in parts:
        yield from _leaves(value, (*path, key))


class _Field(str):
    """A key that is read as an attribute."""

    __slots__ = ()


def _picked(result: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        result = getattr(result, key) if isinstance(key, _Field) else result[key]
    return result


def _output_names(paths: Sequence[tuple[Any, ...]], taken: Sequence[str]) -> tuple[str, ...]:
    """Return names for results with keys; () for results without keys."""
    if not any(isinstance(key, str) for path in paths for key in path):
        return ()
    texts = [tuple(map(str, path)) if path else ("output",) for path in paths]
    names = _names(texts, ())
    return tuple(f"{name}_output" if name in taken else name for name in names)


def with_bounds(module: Any, call: Call) -> Call:
    """Return how a forward is called, with the whole numbers that it takes at each place (`inputs.bounded`)."""
    _set_transformers(module)
    specs = bounded(call.specs, lambda arrays: _run(module, call, arrays))
    single = [index for index, spec in enumerate(specs) if spec.only is not None]
    call = dataclasses.replace(call, specs=specs)
    return dataclasses.replace(call, read=_read_in_python(module, call, single)) if single else call


def _run(module: Any, call: Call, arrays: tuple[NDArray[Any], ...]) -> Any:
    """Call forward with an array for each input tensor."""
    import torch

    return _called(module, call, tuple(torch.from_numpy(array) for array in arrays))


def _called(module: Any, call: Call, given: tuple[Any, ...]) -> Any:
    """Call forward with a tensor for each input."""
    import torch

    with torch.no_grad():
        return module(*given) if call.is_plain else module(*_fill(call.args, given), **_fill(call.kwargs, given))


def _read_in_python(module: Any, call: Call, single: Sequence[int]) -> dict[int, str]:
    """Return which of the inputs `single` decide what Python reads in forward, such as `int(lengths.max())`, with the
    line of the first place that reads one; that of a library where none is the user's own.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils.weak import WeakTensorKeyDictionary

    leaves = torch.utils._pytree.arg_tree_leaves
    given = tuple(map(torch.from_numpy, random_inputs(call.specs, 1, 0, None).read(0).inputs))
    sources = WeakTensorKeyDictionary({given[index]: frozenset([index]) for index in single})
    found: dict[int, str] = {}

    class Watch(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            tensors = [leaf for leaf in leaves(*args, **(kwargs or {})) if torch.is_tensor(leaf)]
            of_inputs = frozenset().union(*(sources.get(one, ()) for one in tensors))
            if getattr(func, "__name__", "") in _READS:
                found.update((index, calling_line(torch.__path__[0])) for index in of_inputs if index not in found)
            result = func(*args, **(kwargs or {}))
            if of_inputs:
                sources.update((leaf, of_inputs) for leaf in leaves(result) if torch.is_tensor(leaf))
            return result

    with contextlib.suppress(Exception), Watch():  # running it on its inputs is a step of its own, with the message
        _called(module, call, given)
    return found


_READS = frozenset({"__bool__", "__int__", "__float__", "__index__", "item", "tolist"})


def adapted(module: Any, call: Call, seed: int) -> tuple[Any, tuple[str, ...]]:
    """Return a module that takes and returns plain tensors, and the names of its outputs, if any.

    Args:
        module: changed in place if forward must be wrapped.
        call: how it is called.
        seed: for the random inputs of one run, which shows the outputs.

    Raises:
        UnsupportedError: it returns values other than tensors in containers.
    """
    import torch

    _set_transformers(module)
    arrays = random_inputs(call.specs, 1, seed, None).read(0).inputs
    try:
        result = _run(module, call, arrays)
    except Exception:  # anything: running it on its inputs is a step of its own, which has the message
        return (module if call.is_plain and not call.read else _with_forward(module, call, None)), ()
    found = [*_leaves(result)]
    other = next((pair for pair in found if not isinstance(pair[1], torch.Tensor)), None)
    if other is not None:
        place = ".".join(map(str, other[0]))
        named = f" as {place!r}" if place else ""
        what = f"the model returns a value of type {type(other[1]).__name__}{named}, expected tensors"
        raise UnsupportedError(what, "drop it from the return value of forward, or make it a tensor")
    parts = next((value for _, value in found if value.is_complex()), None)
    if parts is not None:
        dtype = str(parts.dtype).removeprefix("torch.")
        what = f"the model returns values of {dtype}, expected real ones: runtimes on devices have no such type"
        raise UnsupportedError(what, "return torch.view_as_real(x), whose last dimension is of size 2")
    paths = tuple(path for path, _ in found)
    names = _output_names(paths, [spec.name for spec in call.specs])
    if call.is_plain and not call.read and _kind(result):
        return module, names
    return _with_forward(module, call, paths), names


def _kind(result: Any) -> str:
    """Return what a result is, such as "(T, [T])", or "" unless every runtime accepts it unchanged.

    Those are tensors in tuples, and in lists and dicts whose values are all of one kind: TorchScript has no others.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return "T"
    if type(result) not in (tuple, list, dict):
        return ""
    kinds = [_kind(value) for value in (result.values() if isinstance(result, dict) else result)]
    if isinstance(result, tuple):
        return f"({', '.join(kinds)})" if all(kinds) else ""
    return f"[{kinds[0]}]" if len({*kinds}) == 1 and kinds[0] else ""


def _set_transformers(module: Any) -> None:
    """Turn off the key-value cache of transformers' models, and their checks of mask values in Python.

    The cached keys and values are not inputs of this forward. transformers 5 skips a mask that is all True, unless it
    notices that it is being captured: the graph would then depend on the values of one mask.
    """
    for part in module.modules():
        if getattr(getattr(part, "config", None), "use_cache", None) is True:
            part.config.use_cache = False
    masks = sys.modules.get("transformers.masking_utils")
    for name in ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"):
        if hasattr(masks, name):
            setattr(masks, name, _never)


def _never(*_args: Any, **_options: Any) -> bool:
    return False


def _fill(template: Any, given: Sequence[Any]) -> Any:
    """Return a call's arguments with the tensors in their slots."""
    if isinstance(template, _Slot):
        return given[template.index]
    if isinstance(template, Mapping):
        return {key: _fill(value, given) for key, value in template.items()}
    if isinstance(template, tuple | list):
        return _like(template, [_fill(value, given) for value in template])
    return template


def _with_forward(module: Any, call: Call, paths: tuple[tuple[Any, ...], ...] | None) -> Any:
    """Return the module with a forward that takes tensors by position and returns the tensors at `paths`."""
    import torch

    kind: Any = type(module)
    if isinstance(module, torch.fx.GraphModule):  # it gives its class another forward when it is recompiled
        outer = torch.nn.Module()
        outer.model = module
        module, kind = outer.eval(), type("Adapted", (torch.nn.Module,), {"forward": _inner})

    constants = {index: (call.specs[index].only, getattr(torch, call.specs[index].dtype)) for index in call.read}

    def run(self: Any, given: tuple[Any, ...]) -> Any:
        # made here, and not once before: captures know the value of a tensor of one element that forward makes
        held = {i: torch.tensor([value], dtype=dtype) for i, (value, dtype) in constants.items()}
        given = tuple(held[i].reshape(call.specs[i].shape) if i in held else one for i, one in enumerate(given))
        args, kwargs = (given, {}) if call.is_plain else (_fill(call.args, given), _fill(call.kwargs, given))
        result = kind.forward(self, *args, **kwargs)
        if paths is None:
            return result
        outputs = tuple(_picked(result, path) for path in paths)
        return outputs[0] if len(outputs) == 1 else outputs

    # torch.fx and torch.export read the names of the arguments from the code itself
    space: dict[str, Any] = {"run": run}
    names = ", ".join(spec.name for spec in call.specs)
    exec(f"def forward(self, {names}):\n    return run(self, ({names},))\n", space)  # noqa: S102  # identifiers only
    # a wrapper around it would give every layer another name
    module.__class__ = type(kind.__name__, (kind,), {"forward": space["forward"], "__module__": kind.__module__})
    return module


def _inner(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.model(*args, **kwargs)


# operators whose second and third argument are a weight and a bias
_WITH_WEIGHTS = frozenset({"convolution", "conv1d", "conv2d", "conv3d", "linear", "batch_norm"})


def as_graph(program: Any, names: Sequence[str], parameters: Collection[str]) -> Any:
    """Return an exported program as a torch.fx.GraphModule that takes its tensors by position, under these names.

    Args:
        program: of a converter that makes a buffer, or a plain attribute, of every tensor.
        names: of its inputs.
        parameters: names of those tensors that are parameters. A frozen module has none left: then they are the
            weights that layers read.
    """
    import torch

    module = program.module(check_guards=False)
    graph = module.graph
    held = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
    read = {
        str(arg.target)
        for node in graph.nodes
        if str(node.target).split(".")[:2][-1] in _WITH_WEIGHTS
        for arg in node.args[1:3]
        if isinstance(arg, torch.fx.Node) and arg.op == "get_attr"
    }
    for name in {*parameters} & {*held} or read & {*held}:
        owner, _, own = name.rpartition(".")
        part = module.get_submodule(owner)
        value = getattr(part, own)
        if value.is_floating_point():
            delattr(part, own)
            part.register_parameter(own, torch.nn.Parameter(value.detach(), requires_grad=False))
    for node, name in zip([node for node in graph.nodes if node.op == "placeholder"], names, strict=True):
        node.target = name
    (outputs,) = graph.output_node().args
    graph.output_node().args = (torch.utils._pytree.tree_unflatten(list(outputs), module._out_spec),)
    graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.fx.GraphModule(module, graph)


def sized_by_data(module: Any, specs: Sequence[TensorSpec]) -> str:
    """Return " at file.py:12 in Head.forward" of the first operator whose result has as many values as the data decide.

    Such are boxes above a score, and what non-maximum suppression leaves. The line is the user's own, or else that of
    the library that the model comes from. Returns "" where there is no such operator.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[str] = []

    class Watch(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.index.Tensor:  # its tag speaks of masks, and it is given whole numbers too
                is_sized = any(index is not None and index.dtype == torch.bool for index in args[1])
            else:
                is_sized = torch.Tag.dynamic_output_shape in func.tags or func._opname == "nms"
            if is_sized:
                found.append(calling_line(torch.__path__[0]))
            return func(*args, **(kwargs or {}))

    arrays = random_inputs(specs, 1, 0, None).read(0).inputs
    with torch.no_grad(), contextlib.suppress(Exception), Watch():
        module(*(torch.from_numpy(array) for array in arrays))
    return found[0] if found else ""
