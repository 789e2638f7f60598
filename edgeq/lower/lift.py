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

    torch.export runs such a graph through Autograd, fake tensors and proxies, which records what is there already.
    What is left to do is to name the nodes, to drop what nothing reads, and to compute the shapes: 0.3 s instead of 0.7
    for an int8 mobilenet_v2.
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

    entries = [
        *((f"p_{name.replace('.', '_')}", InputKind.PARAMETER, name, value) for name, value in parameters.items()),
        *((f"b_{name.replace('.', '_')}", InputKind.BUFFER, name, value) for name, value in buffers.items()),
        *((node.name, InputKind.USER_INPUT, None, value) for node, value in zip(placeholders, inputs, strict=True)),
    ]
    graph = torch.fx.Graph()
    fed = [graph.placeholder(name) for name, *_ in entries]
    if [node.name for node in fed] != [name for name, *_ in entries]:
        return None  # two of one name, or a name of Python's own, which a trace resolves in its own way
    mode = FakeTensorMode()
    by_target = {}
    for node, (_, _, target, value) in zip(fed, entries, strict=True):
        node.meta["val"] = mode.from_tensor(value.detach(), static_shapes=True)
        by_target[target] = node
    made = {node: by_target[node.target] for node in module.graph.nodes if node.op == "get_attr"}
    for own, node in zip(placeholders, fed[len(state) :], strict=True):
        node.meta = {**own.meta, **node.meta}
        made[own] = node
    with mode, torch.no_grad():
        for node in calls:
            made[node] = graph.node_copy(node, made.__getitem__)
            args, kwargs = torch.fx.map_arg((made[node].args, made[node].kwargs), lambda one: one.meta["val"])
            made[node].meta["val"] = node.target(*args, **kwargs)
    graph.output(tuple(made[node] for node in results))
    graph.eliminate_dead_code()
    name_as_traced(graph)
    specs_of = [
        InputSpec(kind=kind, arg=TensorArgument(name=name), target=target, persistent=kind == InputKind.BUFFER or None)
        for name, kind, target, _ in entries
    ]
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
        graph_signature=ExportGraphSignature(input_specs=specs_of, output_specs=outputs),
        state_dict=state,
        range_constraints={},
        module_call_graph=[ModuleCallEntry(fqn="", signature=signature)],
        example_inputs=(inputs, {}),
        constants={},
        verifiers=[TrainingIRVerifier],
    )


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


def name_as_traced(graph: Any) -> None:
    """Name calls after their operators, in order, as a trace does."""
    from torch.fx.graph import _Namespace

    names = _Namespace()
    for node in graph.nodes:
        if node.op not in ("call_function", "output"):
            names.create_name(node.name, node)
    for node in graph.nodes:
        if node.op == "call_function":
            is_item = node.target is operator.getitem
            node.name = names.create_name("getitem" if is_item else node.target._schema.name.partition("::")[2], node)
    graph._graph_namespace = names
