"""In-place operators in a traced graph: what reads the changed tensor later must read the operator's result.

In `x.clamp_(0, 1)` as a statement nothing reads the result, so that FX takes the call for dead code once it converts
the graph; and a clamp of what was dequantized would not change the quantized tensor that later layers read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.ao.quantization import quantize_fx

from edgeq._replace import replaced
from edgeq.blame import traced_line
from edgeq.errors import UnsupportedError
from edgeq.quantize.fx_graph import use_int8_forms


@contextlib.contextmanager
def without_mutations(inputs: tuple[Any, ...]) -> Iterator[None]:
    """Let `prepare_fx` trace graphs in which no node reads a tensor that was changed in place since it was made.

    Args:
        inputs: tensors that the model takes; the traced graph runs on copies of them, once.

    Raises:
        UnsupportedError: a tensor is changed through a view, by out= or inside an untraced module, and read again.
    """

    class Tracer(quantize_fx.QuantizationTracer):  # type: ignore[misc]  # torch is not followed by mypy
        """Rewrites what it traced."""

        def trace(self, root: Any, *args: Any, **kwargs: Any) -> Any:
            graph = super().trace(root, *args, **kwargs)
            with torch.no_grad():
                _Rewriter(torch.fx.GraphModule(root, graph), graph).run(*(value.clone() for value in inputs))
            return graph

    with replaced(quantize_fx, "QuantizationTracer", Tracer):
        yield


class _Rewriter(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """Runs a graph, lets later readers of what a node changed read that node instead, and gives nodes int8 forms."""

    def __init__(self, module: Any, graph: Any) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False

    def run_node(self, n: Any) -> Any:
        """Run a node, and see which of the values that are read later it has changed."""
        for node in [node for node in self.env if not any(user >= n for user in node.users)]:
            del self.env[node]  # its readers may have become others', which the base class would not know
        # views share their base's version, which every write in place counts up
        before = {node: _versions(value) for node, value in self.env.items()}
        values, keywords = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        for node, versions in before.items():
            later = [user for user in node.users if user > n]
            if not later or _versions(self.env[node]) == versions:
                continue
            if self.env[node] is not result or "out" in n.kwargs:  # quantized kernels have no out=
                raise _refused(n, node)
            for user in later:
                user.replace_input_with(node, n)
        use_int8_forms(n, values, keywords)
        return result


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _refused(writer: Any, node: Any) -> UnsupportedError:
    name = getattr(writer.target, "__name__", str(writer.target))
    what = f"{name} changes the tensor {node.name} in place{traced_line(writer.stack_trace)}, through a view of it, by"
    what += " out= or inside a module that is not traced, and it is read again: FX would read what it was before"
    return UnsupportedError(what, "write it out of place (x = x.clamp(0, 1)), or use an ExecuTorch target")
