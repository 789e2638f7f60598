"""Export and lowering without repeated work: what the faster ways of torch.export, ExecuTorch and torch.onnx share.

Each patch is a context manager whose docstring says what the library does, what the patch saves, and how upstream could
do it. It is written for certain versions: with any other `patched` warns and changes nothing. `EDGEQ_PLAIN_LOWERING=1`
turns all of them off. The artifact is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgeq.core.system import replaced

PLAIN = "EDGEQ_PLAIN_LOWERING"

Patch = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def patched(patches: Sequence[Patch], written_for: Mapping[str, str]) -> Iterator[None]:
    """Apply patches inside the block.

    Args:
        patches: applied in this order.
        written_for: the version of each library that they change.

    Warns:
        UserWarning: another version of a library is installed, and nothing is changed.
    """
    if os.environ.get(PLAIN, "") not in ("", "0"):
        yield
        return
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in written_for}
    if installed != dict(written_for):
        words = [
            " and ".join(f"{name} {version}" for name, version in side.items()) for side in (written_for, installed)
        ]
        warnings.warn(
            f"edgeq's faster lowering is off: it is written for {words[0]}, but {words[1]} are installed", stacklevel=2
        )
        yield
        return
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch())
        yield


@contextlib.contextmanager
def deferred_codegen() -> Iterator[None]:
    """Generate the Python code of a GraphModule when it is used, not whenever its graph changes.

    `GraphModule.recompile` writes the graph as Python source and compiles it. A lowering calls it some 190 times on
    graphs of 600 nodes; passes walk over the graph, and fewer than ten of the sources are ever run.
    Upstream: `torch.fx._lazy_graph_module` does so for modules that are made by `_make_graph_module`; what is needed is
    that `GraphModule` itself does it.
    """
    from torch.fx import GraphModule

    compile_now = GraphModule.recompile

    def recompile(self: Any) -> Any:
        codegen = self._graph._codegen
        if hasattr(codegen, "pytree_info"):
            self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
        for name in _GENERATED:
            vars(self).pop(name, None)
            if name != "forward":
                setattr(type(self), name, _Generated(name, self, compile_now))
        type(self).forward = _Generated("forward", self, compile_now)
        self._recompile_submodules()
        return _PendingCode(self)

    def reduce(self: Any) -> Any:
        compile_now(self)  # its own recompile comes after it has copied the attributes
        return plain_reduce(self)

    plain_reduce = GraphModule.__reduce__
    with replaced(GraphModule, "recompile", recompile), replaced(GraphModule, "__reduce__", reduce):
        yield


# what GraphModule.recompile sets
_GENERATED = ("_code", "_lineno_map", "_prologue_start", "forward")


class _Generated:
    """An attribute of a GraphModule's own class that comes to be when it is first read."""

    def __init__(self, name: str, module: Any, compile_now: Callable[[Any], Any]) -> None:
        self._name, self._module, self._compile = name, weakref.ref(module), compile_now

    def __get__(self, module: Any, kind: type) -> Any:
        held = self._module()
        for name in _GENERATED:
            delattr(kind, name)
        self._compile(held)
        return getattr(kind if module is None else module, self._name)


class _PendingCode:
    """The PythonCode that a deferred recompilation would have returned."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module._graph.python_code(root_module="self"), name)


@contextlib.contextmanager
def materialized_once() -> Iterator[None]:
    """List the dispatcher's composite operators once.

    torch asks the dispatcher for them once a namespace for every table of decompositions, some 70 times each.
    Upstream: one call in `_collect_all_valid_cia_ops`, before its loop over the namespaces.
    """
    from torch._export import utils

    with replaced(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops)):
        yield


@contextlib.contextmanager
def overridden_at_once() -> Iterator[None]:
    """Set the kernels of an operator for a decomposition by one update of their table.

    A trace for decompositions overrides the kernels of 526 composite operators, by 11,496 calls that each check their
    kind and clear the operator's cache: 0.06 s.
    Upstream: one `py_kernels.update` for each operator in `_override_composite_implicit_decomp`.
    """
    import torch
    from torch.export import exported_program

    registered = exported_program._is_op_registered_to_fake_rule
    backends, autograds = (
        exported_program._BACKEND_KEYS_TO_OVERRIDE,
        exported_program._AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE,
    )
    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    def first_of(compute: Callable[..., Any]) -> Callable[..., Any]:
        def run(fake_tensor_mode: Any, _op: Any, *args: Any, **kwargs: Any) -> Any:
            with fake_tensor_mode:
                return compute(*args, **kwargs)

        return run

    @contextlib.contextmanager
    def override(callables: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
        before = {op: op.py_kernels.copy() for op in callables}
        for op, decompose in callables.items():
            compute = exported_program._get_decomp_for_cia(op)
            without_gradient = exported_program.autograd_not_implemented(op, deferred_error=True)
            if not registered(op):
                exported_program.register_op_impl(op)(first_of(compute))
            own = {**dict.fromkeys(autograds, without_gradient), **before[op], composite: decompose}
            op.py_kernels.update({**dict.fromkeys(backends, compute), **own})
            op._dispatch_cache.clear()
        try:
            yield
        finally:
            for op, kernels in before.items():
                op.py_kernels.clear()
                op.py_kernels.update(kernels)
                op._dispatch_cache.clear()
                exported_program._deregister_op_impl(op)

    with replaced(exported_program, "_override_composite_implicit_decomp", override):
        yield


DECOMPOSITIONS: tuple[Patch, ...] = (materialized_once, overridden_at_once)


def decomposed(program: Any, table: Mapping[Any, Callable[..., Any]]) -> Any:
    """Return a torch.export.ExportedProgram traced for decompositions: `ExportedProgram.run_decompositions`, faster.

    Args:
        program: it stays as it is.
        table: what becomes of operators; empty to make a program functional alone.
    """
    with patched(DECOMPOSITIONS, {"torch": "2.15.0"}):
        return program.run_decompositions(table)
