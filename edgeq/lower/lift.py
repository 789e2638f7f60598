"""A converted graph as an exported program, without tracing it a second time."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

from edgeq.core.operators import exported, traced_at
from edgeq.core.speedups import patched
from edgeq.core.system import replaced
from edgeq.lower.spec import LowerSpec

WRITTEN_FOR = {"torch": "2.15.0"}


def exported_again(graph: Any, spec: LowerSpec) -> Any:
    """Return a graph that came from torch.export, and was changed since, as a torch.export.ExportedProgram.

    Args:
        graph: a torch.fx.GraphModule of ATen operators.
        spec: its inputs, whose sizes may vary.

    Raises:
        Exception: torch.export's own.
    """
    import torch

    inputs = tuple(torch.zeros(item.shape, dtype=getattr(torch, item.dtype)) for item in traced_at(spec.inputs))
    with patched((lifted_exports,), WRITTEN_FOR):
        return exported(graph, inputs, spec.inputs)


@contextlib.contextmanager
def lifted_exports() -> Iterator[None]:
    """Export a graph that came from torch.export without a trace.

    torch.export runs such a graph through Autograd, fake tensors and proxies, which records what is there already:
    1.2 s for an int8 mobilenet_v2. What is left to do is to name the nodes, to drop what nothing reads, and to compute
    the shapes.
    Upstream: the same in `torch.export.export`, for what `ExportedProgram.module()` made.
    """
    import torch

    plain = torch.export.export

    def export(module: Any, inputs: tuple[Any, ...], *, dynamic_shapes: Any = None) -> Any:
        program = lifted(module, inputs) if dynamic_shapes is None else None
        return plain(module, inputs, dynamic_shapes=dynamic_shapes) if program is None else program

    with replaced(torch.export, "export", export):
        yield


def lifted(module: Any, inputs: tuple[Any, ...]) -> Any | None:
    """Return what torch.export makes of a graph that came from it: the same operators, with its tensors as inputs.

    Args:
        module: what `torch.export.ExportedProgram.module()` gave, quantized by PT2E.
        inputs: example tensors.

    Returns:
        The program, or None where a trace might record something else.
    """
    import torch
    from torch._export.verifier import TrainingIRVerifier
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import ExportedProgram
    from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
    from torch.export.graph_signature import (
        ExportGraphSignature,
        InputKind,
        InputSpec,
        OutputKind,
        OutputSpec,
        TensorArgument,
    )
    from torch.fx.graph import _Namespace

    specs = getattr(module.graph._codegen, "pytree_info", None) if isinstance(module, torch.fx.GraphModule) else None
    if specs is None:
        return None
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    (results,) = module.graph.output_node().args
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    state = {**parameters, **{name: held for name, held in buffers.items() if name in module.state_dict()}}
    held = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    known = (
        len(placeholders) == len(inputs)
        and len(state) == len(module.state_dict()) == len(parameters) + len(buffers)
        and held <= state.keys()
        and all(isinstance(node, torch.fx.Node) and node.op == "call_function" for node in results)
        and len({*results}) == len(results)
        and all(_is_recorded_as_it_is(node) for node in calls)
        and all(node.op != "call_module" or not node.users for node in module.graph.nodes)
    )
    if not known:
        return None

    graph = torch.fx.Graph()
    names = _Namespace()
    made: dict[Any, Any] = {}
    inputs_of: list[InputSpec] = []
    mode = FakeTensorMode()

    def add_input(name: str, value: Any, kind: InputKind, target: str | None, **options: Any) -> Any:
        node = graph.placeholder(name)
        if node.name != name:
            raise _Renamed
        names.create_name(name, node)
        node.meta["val"] = mode.from_tensor(value.detach(), static_shapes=True)
        inputs_of.append(InputSpec(kind=kind, arg=TensorArgument(name=name), target=target, **options))
        return node

    try:
        by_target = {}
        for target, value in state.items():
            is_buffer = target in buffers
            name = f"{'b' if is_buffer else 'p'}_{target.replace('.', '_')}"
            kind = InputKind.BUFFER if is_buffer else InputKind.PARAMETER
            by_target[target] = add_input(name, value, kind, target, **({"persistent": True} if is_buffer else {}))
        for node, value in zip(placeholders, inputs, strict=True):
            made[node] = add_input(node.name, value, InputKind.USER_INPUT, None)
            made[node].meta = {**node.meta, **made[node].meta}
    except _Renamed:
        return None
    made |= {node: by_target[node.target] for node in module.graph.nodes if node.op == "get_attr"}
    needed = _needed(results)
    with mode, torch.no_grad():
        for node in calls:
            if node not in needed:
                continue
            is_item = node.target is operator.getitem
            copied = graph.node_copy(node, made.__getitem__)
            copied.name = names.create_name(
                "getitem" if is_item else node.target._schema.name.partition("::")[2], copied
            )
            values = torch.fx.map_arg((copied.args, copied.kwargs), lambda one: one.meta["val"])
            copied.meta["val"] = node.target(*values[0], **values[1])
            made[node] = copied
    graph.output(tuple(made[node] for node in results))
    graph._graph_namespace = names
    outputs = [
        OutputSpec(kind=OutputKind.USER_OUTPUT, arg=TensorArgument(name=made[n].name), target=None) for n in results
    ]
    signature = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=specs.in_spec,
        out_spec=specs.out_spec,
        forward_arg_names=[node.name for node in placeholders],
    )
    root = torch.fx.GraphModule(torch.nn.Module(), graph)
    root.meta.update(module.meta)
    return ExportedProgram(
        root=root,
        graph=graph,
        graph_signature=ExportGraphSignature(input_specs=inputs_of, output_specs=outputs),
        state_dict=state,
        range_constraints={},
        module_call_graph=[ModuleCallEntry(fqn="", signature=signature)],
        example_inputs=(inputs, {}),
        constants={},
        verifiers=[TrainingIRVerifier],
    )


class _Renamed(Exception):
    """Two inputs would have one name, which a trace resolves in its own way."""


def _is_recorded_as_it_is(node: Any) -> bool:
    """Whether a trace records a call as the very call: no operator that it adds checks to or runs at once."""
    import torch

    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.overloadpacket in (
        torch.ops.aten.to,  # a trace adds a check of the dtype
        torch.ops.aten._assert_tensor_metadata,
    ):
        return False
    schema = node.target._schema
    value = node.meta.get("val")
    results = len(schema.returns) if len(schema.returns) > 1 else len(value) if isinstance(value, list | tuple) else 0
    # a trace takes every result out at once, whether it is read or not
    items = [user.args[1] for user in node.users if user.target is operator.getitem]
    if results and items != [*range(results)]:
        return False
    # what is written to must be an activation that nothing else reads: a trace notes inputs and tensors that change
    written = [
        value
        for value, argument in zip(node.args, schema.arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return not written or (bool(node.users) and all(is_fresh(one) for one in written))


def is_fresh(node: Any) -> bool:
    """Whether one node alone reads the memory of a call's result."""
    import torch

    return (
        node.op == "call_function"
        and len(node.users) == 1
        and isinstance(node.target, torch._ops.OpOverload)
        and all(value.alias_info is None for value in node.target._schema.returns)
    )


def _needed(results: Any) -> set[Any]:
    """Return the nodes that outputs come from."""
    found: set[Any] = set()
    front = [*results]
    while front:
        node = front.pop()
        if node not in found:
            found.add(node)
            front += node.all_input_nodes
    return found
