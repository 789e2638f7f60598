"""torch.onnx's export without repeated work; the resulting model is the same, byte for byte."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from edgeq.core.speedups import DECOMPOSITIONS, Patch, deferred_codegen, patched
from edgeq.core.system import replaced
from edgeq.lower.lift import is_fresh, name_as_traced

WRITTEN_FOR = {"torch": "2.15.0", "onnxscript": "0.7.2"}


def speedups() -> contextlib.AbstractContextManager[None]:
    """Make torch.onnx export a program faster inside the block.

    Warns:
        UserWarning: another version of torch or onnxscript is installed, and nothing is changed.
    """
    return patched(PATCHES, WRITTEN_FOR)


@contextlib.contextmanager
def one_registry() -> Iterator[None]:
    """Make the table of ONNX's functions once in a process, and parse no function's source for it.

    An export makes a table of 557 functions. It parses the source of 497 of them to read one name, their domain, which
    the function has as well: 0.3 of 0.45 s.
    Upstream: `function.opset.domain` in `onnxscript`'s `get_torchlib_ops`, and a cache of `ONNXRegistry.from_torchlib`.
    """
    from onnxscript import TracedOnnxFunction
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    plain = ONNXRegistry.from_torchlib

    def from_torchlib(opset_version: int = ONNXRegistry().opset_version) -> Any:
        if opset_version not in _REGISTRIES:
            named = property(lambda function: SimpleNamespace(domain=function.opset.domain))
            with replaced(TracedOnnxFunction, "function_ir", named):
                _REGISTRIES[opset_version] = plain(opset_version)
        made = ONNXRegistry()
        made._opset_version = opset_version
        # an export may register functions of its own
        made.functions = {name: [*known] for name, known in _REGISTRIES[opset_version].functions.items()}
        return made

    with replaced(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib)):
        yield


_REGISTRIES: dict[int, Any] = {}


@contextlib.contextmanager
def operators_first() -> Iterator[None]:
    """Compare a rewrite rule's last operator with a node's before anything else.

    onnxscript's optimizer tries each of its rules on each node of the model: 49,266 tries for an int8 mobilenet_v2. A
    try makes the objects of a match, and for a rule with several outputs lists all nodes by operator, before the names
    of the two operators are compared.
    Upstream: the same comparison at the head of `SimplePatternMatcher.match`, or rules indexed by operator.
    """
    from onnxscript.rewriter import _basics
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    plain = SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not self.pattern.output_nodes[0].op.matches(node.op_type):
            return _basics.MatchResult().fail("another operator", node)
        return plain(self, model, graph, node, **options)

    with replaced(SimplePatternMatcher, "match", match):
        yield


@contextlib.contextmanager
def needed_decompositions() -> Iterator[None]:
    """Do by hand what a trace for decompositions would do to a program, where that is little.

    The exporter traces the whole program again to decompose what ONNX lacks, to make functional what works in place,
    and to drop what nothing reads. A quantized network of convolutions holds activations in place, a mean over each
    channel, a flatten and a dropout that does nothing; for all else there are operators of ONNX.
    Upstream: the check before `run_decompositions` in `decompose_with_registry`.
    """
    import torch
    from torch.export import ExportedProgram

    plain = ExportedProgram.run_decompositions

    def run_decompositions(self: Any, decomp_table: Any = None, **options: Any) -> Any:
        if decomp_table is None:
            return plain(self, decomp_table, **options)
        # what comes next changes the graph in place, and another target may get the program too
        copied = torch.fx.GraphModule(self.graph_module, copy.deepcopy(self.graph))
        copied.meta.update(self.graph_module.meta)
        for node, own in zip(copied.graph.nodes, self.graph.nodes, strict=True):
            node.name = own.name  # a copy renames what Python has a name for, such as `input`
        if not _decomposed(copied.graph, decomp_table):
            return plain(self, decomp_table, **options)
        name_as_traced(copied.graph)
        signature = copy.deepcopy(self.graph_signature)
        outputs = (graph.output_node().all_input_nodes for graph in (self.graph, copied.graph))
        for old, new in zip(*outputs, strict=True):
            signature.replace_all_uses(old.name, new.name)
        return self._update(copied, signature)

    with replaced(ExportedProgram, "run_decompositions", run_decompositions):
        yield


def _decomposed(graph: Any, table: Any) -> bool:
    """Decompose the operators of a graph in place; return whether none is left that needs a trace."""
    import torch
    from torch._export.utils import _is_cia_op, _is_preservable_cia_op

    aten = torch.ops.aten
    in_place = {
        aten.relu_.default: aten.relu.default,
        aten.hardtanh_.default: aten.hardtanh.default,
        aten.hardswish_.default: aten.hardswish.default,
        aten.hardsigmoid_.default: aten.hardsigmoid.default,
        aten.silu_.default: aten.silu.default,
        aten.leaky_relu_.default: aten.leaky_relu.default,
        aten.add_.Tensor: aten.add.Tensor,
        aten.mul_.Tensor: aten.mul.Tensor,
    }

    def is_taken_apart(target: Any) -> bool:
        """Whether a trace runs what a composite operator is made of; some it keeps, unless the table has them."""
        return _is_cia_op(target) and not _is_preservable_cia_op(target)

    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or not node.users:
            return False
        if node.target in (aten.dropout.default, aten.dropout_.default) and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.flatten.using_ints and node.args[0].meta["val"].is_contiguous():
            sizes = node.meta["val"].shape
            if not all(isinstance(size, int) for size in sizes):
                return False
            node.target, node.args, node.kwargs = aten.view.default, (node.args[0], [*sizes]), {}
        elif node.target is aten.adaptive_avg_pool2d.default and [*node.args[1]] == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
        elif node.target in in_place and _is_fresh(node):
            node.target = in_place[node.target]
        elif node.target in table or node.target._schema.is_mutable or is_taken_apart(node.target):
            return False
    return True


def _is_fresh(node: Any) -> bool:
    """Whether nothing else reads the memory that a node writes to, and its functional form gives the same dtype."""
    written = node.args[0]
    return is_fresh(written) and all(item.meta["val"].dtype == node.meta["val"].dtype for item in node.all_input_nodes)


PATCHES: tuple[Patch, ...] = (
    deferred_codegen,
    *DECOMPOSITIONS,
    one_registry,
    operators_first,
    needed_decompositions,
)
