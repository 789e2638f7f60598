"""ExecuTorch's lowering without repeated work; the resulting program is the same, byte for byte."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from edgeq.core.speedups import DECOMPOSITIONS, Patch, deferred_codegen, patched
from edgeq.core.system import replaced

WRITTEN_FOR = {"torch": "2.15.0", "executorch": "1.5.1"}


def speedups(program: Any) -> contextlib.AbstractContextManager[None]:
    """Make ExecuTorch lower a program for XNNPACK faster inside the block.

    Args:
        program: an ExportedProgram.

    Warns:
        UserWarning: another version of torch or ExecuTorch is installed, and nothing is changed.
    """
    return patched((functools.partial(needed_patterns, program), *PATCHES), WRITTEN_FOR)


def vulkan_speedups() -> contextlib.AbstractContextManager[None]:
    """Make ExecuTorch lower for Vulkan faster inside the block; warns as `speedups` does."""
    return patched((deferred_codegen, *DECOMPOSITIONS, vulkan_patterns), WRITTEN_FOR)


@contextlib.contextmanager
def vulkan_patterns() -> Iterator[None]:
    """Make the graphs of Vulkan's patterns once in a process.

    The partitioner and then the delegate's passes export and lower graphs of rotary embeddings and the like for
    any model: 6 s of the 7 s that a small net takes. The matcher only reads them.
    Upstream: `functools.cache` on the functions that make them.
    """
    from executorch.backends.vulkan.patterns import fusable_patterns

    with contextlib.ExitStack() as stack:
        for name, entry in fusable_patterns.items():
            if entry.get_graphs_fn is not None:
                _VULKAN_PATTERNS.setdefault(name, functools.cache(entry.get_graphs_fn))
                stack.enter_context(replaced(entry, "get_graphs_fn", _VULKAN_PATTERNS[name]))
        yield


_VULKAN_PATTERNS: dict[Any, Callable[[], Any]] = {}


@contextlib.contextmanager
def remembered_fake_values() -> Iterator[None]:
    """Compute what an operator gives for the same fake tensors once.

    Every ExportPass interprets the whole graph under FakeTensorMode, to rebuild it: some 22 times, and the verifier ten
    times more. Most passes change a few nodes or none, so the operators receive the same tensor objects as in the
    previous pass. The memory is keyed by identity: a value that a pass changed before an operator is another object,
    and is computed. Tensors with symbolic sizes or a constant behind them are always computed.
    Upstream: the same memory in `ExportPass._fx`, for the length of one PassManager's run.
    """
    import torch
    from executorch.exir.dialects.edge._ops import EdgeOpOverload
    from torch._subclasses.fake_tensor import FakeTensor

    constants = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
    known: dict[Any, Any] = {}
    alive: list[Any] = []  # the tensors that keys name by their address

    def key_of(value: Any) -> Any:
        """Return a hashable stand-in; raises _Unknown where a result may depend on more."""
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value._has_symbolic_sizes_strides:
                raise _Unknown
            alive.append(value)
            return id(value)
        if kind in constants:
            return kind, repr(value)
        if kind is tuple or issubclass(kind, list):
            return kind, *map(key_of, value)
        if issubclass(kind, dict):
            return kind, *((name, key_of(item)) for name, item in value.items())
        raise _Unknown

    def remembered(call: Callable[..., Any], target: Any, args: Any, kwargs: Any) -> Any:
        try:
            key = (target, key_of(args), key_of(kwargs))
        except _Unknown:
            return call(*args, **kwargs)
        if key not in known:
            result = call(*args, **kwargs)
            parts = result if type(result) in (tuple, list) else (result,)
            if target._schema.is_mutable or any(
                type(part) is not FakeTensor or part.constant is not None for part in parts
            ):
                return result
            known[key] = result
        result = known[key]
        return list(result) if type(result) is list else result

    def call_edge(self: Any, *args: Any, **kwargs: Any) -> Any:
        return remembered(self._op, self, args, kwargs)

    with replaced(EdgeOpOverload, "__call__", call_edge):
        yield


class _Unknown(Exception):
    pass


def _state_of(graph: Any) -> tuple[Any, ...]:
    """Return what tells whether a graph is as it was; raises _Unknown where rebuilding it may depend on more."""
    nodes = []
    for node in graph.nodes:
        if node.op == "get_attr":
            raise _Unknown
        value = None if node.op == "output" else _of_value(node.meta.get("val"))
        nodes.append((node.op, node.target, node.name, _of_argument(node.args), _of_argument(node.kwargs), value))
    return tuple(nodes)


def _of_value(value: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    if type(value) in (tuple, list):
        return tuple(map(_of_value, value))
    if type(value) is not FakeTensor or value.constant is not None or value._has_symbolic_sizes_strides:
        raise _Unknown
    return _Same(value)


def _of_argument(value: Any) -> Any:
    from torch.fx import Node

    if isinstance(value, Node):
        return value.name
    if isinstance(value, (tuple, list)):
        return tuple(map(_of_argument, value))
    if isinstance(value, dict):
        return tuple((name, _of_argument(item)) for name, item in value.items())
    return type(value), str(value)


class _Same:
    """A value that only equals itself; it lives as long as what names it."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


@contextlib.contextmanager
def single_decomposition() -> Iterator[None]:
    """Trace a program for its decompositions once.

    `to_edge_transform_and_lower` runs three decompositions, and each traces the whole program again: one with an empty
    table, to make it functional before a partitioner is asked which operators to keep; one with the table less those
    operators; and one with the whole table, for what the partitioner then gave back. A partitioner that is configured
    by operators (XNNPACK's) answers without looking at the program, so that the first can be left to the second; and
    the third finds nothing to do where no operator of the program has a decomposition left.
    Upstream: the library skips a decomposition without targets already, by `contains_any_call_fn_target_op`, for
    partitioners without `check_op_support`; the same check fits the third, and a partitioner could say that its answer
    does not depend on the program.
    """
    import torch
    from torch._export.utils import _is_cia_op
    from torch.export import ExportedProgram

    plain = ExportedProgram.run_decompositions
    traced: weakref.WeakSet[Any] = weakref.WeakSet()

    def is_done(program: Any, table: Any) -> bool:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        return program in traced and all(
            node.target is operator.getitem
            or (
                isinstance(node.target, torch._ops.OpOverload)
                and node.target not in table
                and not _is_cia_op(node.target)
                and not node.target._schema.is_mutable
            )
            for node in calls
        )

    def run_decompositions(self: Any, decomp_table: Any = None, **options: Any) -> Any:
        if (decomp_table is not None and not decomp_table) or is_done(self, decomp_table):
            return self
        program = plain(self, decomp_table, **options)
        traced.add(program)
        return program

    with replaced(ExportedProgram, "run_decompositions", run_decompositions):
        yield


@contextlib.contextmanager
def settled_graphs() -> Iterator[None]:
    """Leave a graph as it is where a pass would rebuild it without a change.

    Most passes of the delegate's 17 look for a pattern, change the nodes that match, and then have ExportPass rebuild
    the whole graph, whether anything matched or not. Rebuilding a graph that a pass has just rebuilt gives the same
    nodes by the same names, and by `remembered_fake_values` the same tensors too. A pass that has its own way to
    rebuild a node always does; so does one whose graph has sizes that vary, constants behind its tensors or submodules.
    Upstream: the passes that changed nothing could return `PassResult(graph_module, False)` before `super().call`.
    """
    from executorch.exir.pass_base import ExportPass, _ExportPassBase
    from torch.fx.passes.infra.pass_base import PassResult

    rebuild = _ExportPassBase.call
    hooks = (vars(_ExportPassBase).keys() | vars(ExportPass).keys()) - {"__module__", "__doc__", "__init__", "call"}
    hooks -= {"__abstractmethods__", "_abc_impl"}
    own_way: dict[type, bool] = {}
    settled: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def call(self: Any, graph_module: Any) -> Any:
        kind = type(self)
        if kind not in own_way:
            own_way[kind] = any(getattr(kind, name) is not getattr(ExportPass, name) for name in hooks)
        with contextlib.suppress(_Unknown):
            if not own_way[kind] and settled.get(graph_module.graph) == _state_of(graph_module.graph):
                return PassResult(graph_module, True)
        result = rebuild(self, graph_module)
        with contextlib.suppress(_Unknown):
            settled[result.graph_module.graph] = _state_of(result.graph_module.graph)
        return result

    with replaced(_ExportPassBase, "call", call):
        yield


@contextlib.contextmanager
def unprinted_graphs() -> Iterator[None]:
    """Write no graph as text for a message that is not logged, as XNNPACK's pass for attention does before and after.

    Upstream: `logger.isEnabledFor(logging.DEBUG)` around the two messages.
    """
    from torch.fx import GraphModule

    if logging.getLogger("executorch.backends.xnnpack._passes.convert_to_sdpa").isEnabledFor(logging.DEBUG):
        yield
        return
    with replaced(GraphModule, "print_readable", lambda *_, **__: ""):
        yield


PATCHES: tuple[Patch, ...] = (
    deferred_codegen,
    remembered_fake_values,
    settled_graphs,
    unprinted_graphs,
    single_decomposition,
    *DECOMPOSITIONS,
)


# --- XNNPACK's pattern graphs, built only for models in which they could match.


# what bilinear resizing and attention are made of, before and after decomposition
_RESIZED = ("upsample", "index", "grid_sampler", "interpolate")
_ATTENTION = ("softmax", "scaled_dot_product")


@contextlib.contextmanager
def needed_patterns(program: Any) -> Iterator[None]:
    """Skip building the pattern graphs of two XNNPACK passes where no pattern can match.

    Building the graphs means six exports. Without an operator of `_RESIZED`, or of `_ATTENTION`, in the program the
    one pass or the other finds nothing, and the artifact is the same.
    """
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    with contextlib.ExitStack() as stack:
        if not any(part in name for name in names for part in _RESIZED):
            stack.enter_context(replaced(bilinear_2d, "get_graphs_dict", dict))
        if not any(part in name for name in names for part in _ATTENTION):
            stack.enter_context(replaced(sdpa, "get_graphs", list))
        yield
