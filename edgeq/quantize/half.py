"""True half precision, for runtimes with half kernels (XNNPACK)."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from edgeq.core.errors import AccuracyError, UnsupportedError, first_line
from edgeq.core.half import emulated
from edgeq.core.results.model import QuantizedModel
from edgeq.core.samples import Dataset, Sample
from edgeq.quantize import half_graph
from edgeq.quantize.capture import capture, example_tensors
from edgeq.quantize.half_graph import NodeRange, scan
from edgeq.quantize.pt2e_workarounds import coordinates, samplers
from edgeq.quantize.result import float_model, quantized_model, type_names
from edgeq.quantize.spec import NARROWING, QuantizeSpec, inside, matched_names
from edgeq.quantize.weight_only import check_half_range


def true_half(spec: QuantizeSpec) -> QuantizedModel:
    """Convert weights and arithmetic to half; inputs and outputs stay float32.

    Core ML narrows a program in float32 itself: coremltools 9.0 refuses one in half with a layer norm, whose epsilon it
    writes in float32. With modules that stay in float the program has casts, and its layer norms stay in float too.

    Raises:
        UnsupportedError: a weight beyond what half holds, no float weight at all, or a model that fixes float32 inside.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    exported = spec.model.kind == "exported"
    module = spec.model.model.module() if exported else copy.deepcopy(spec.model.model)
    kept = matched_names(spec.keep_fp32, type_names(module))
    names = [
        name
        for name, part in module.named_modules()
        if any(value.is_floating_point() for value in part.parameters(recurse=False))
    ]
    halved = [name for name in names if not inside(name, kept)]
    for name in halved:
        check_half_range(name, module.get_submodule(name))
    # of 256 pixels, half holds positions to a sixteenth; and torch's half kernel gives NaN for some outside the image
    is_sampled = spec.captured is not None and bool(samplers(spec.captured.graph))
    # of a graph, as of an exported program or an archive of torch.jit, torch.export leaves out the hooks that cast
    is_graph = isinstance(module, torch.fx.GraphModule) and spec.captured is not None
    if is_sampled or is_graph or (spec.backend in NARROWING and kept):
        return _true_half_by_node(spec, kept)
    module.half()
    _cast(module, torch.float16, torch.float32)
    for name in kept:
        if not inside(name.rpartition(".")[0], kept):  # the outermost bring their parts along
            _cast(module.get_submodule(name).float(), torch.float32, torch.float16)
    try:
        with torch.no_grad():
            module(*example_tensors(spec.inputs))
    except Exception as err:  # mixed dtypes and operators without half kernels raise many types
        try:
            return _true_half_by_node(spec, kept)
        except UnsupportedError:
            what = f"the model cannot compute in half precision: {first_line(err)}"
            raise UnsupportedError(what, "keep the module that mixes dtypes in float (--keep-fp32)") from err
    program = capture(dataclasses.replace(spec.model, kind="module", model=module))
    left = [name for name in names if name not in halved]
    made = quantized_model("fp16", program.module(), (halved, left), covers="float")
    return dataclasses.replace(made, exported=spec.captured if spec.backend in NARROWING else program)


def _true_half_by_node(spec: QuantizeSpec, kept: frozenset[str]) -> QuantizedModel:
    """Convert the captured program, in which constants are computed already, such as a resized position embedding.

    Norms and exponentials stay in float32, as torch.autocast has it.

    Raises:
        UnsupportedError: an operator of the program takes no half tensors either.
    """
    import torch

    module = half_graph.functional_graph(spec.captured)
    largest = float(torch.finfo(torch.float16).max)
    sampled = coordinates(module.graph) | set(samplers(module.graph))

    def is_exact(node: Any) -> bool:
        return node in sampled or half_graph.float_op(node, largest)

    def wanted(node: Any) -> Any:
        if half_graph.takes_what_comes(node):
            return None
        is_wide = inside(half_graph.module_of(node), kept) or is_exact(node)
        return torch.float32 if is_wide else torch.float16

    owners = _owners(module)
    halved = [name for name, nodes in owners.items() if any(wanted(node) == torch.float16 for node in nodes)]

    inputs = example_tensors(spec.inputs)
    program = half_graph.with_precisions(module, wanted, spec.inputs)
    try:
        with torch.no_grad():
            program.module()(*inputs)
    except Exception as err:  # kernels raise many types
        raise UnsupportedError(first_line(err), "keep the module in float (--keep-fp32)") from err
    made = quantized_model("fp16", program.module(), (halved, _others(owners, halved)), covers="float")
    if spec.backend in NARROWING and not kept:
        return dataclasses.replace(made, exported=spec.captured)
    wide = sorted({name for node in module.graph.nodes if is_exact(node) and (name := half_graph.op_name(node))})
    remarks = (f"computed in float32: {', '.join(wide)}",) if wide else ()
    return dataclasses.replace(made, exported=program, remarks=remarks)


def _cast(part: Any, own: Any, outside: Any) -> None:
    """Let a module that computes in dtype `own` take tensors of dtype `outside`, and return such."""
    import torch

    def to(value: Any, dtype: Any) -> Any:
        def converted(leaf: Any) -> Any:
            return leaf.to(dtype) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf

        return torch.utils._pytree.tree_map(converted, value)

    part.register_forward_pre_hook(lambda _part, args: to(args, own))
    part.register_forward_hook(lambda _part, _args, result: to(result, outside))


# --- Precisions for GPUs: half arithmetic with float32 where half would lose too much, and half storage alone.


HalfScheme = Literal["fp16", "bf16"]

# samples to come may reach further than those that were scanned
HEADROOM = 2.0

# One rounding to 11 bits leaves 70 dB and more, to 8 bits 50 dB: below this a node cancels, underflows or overflows
_LEAST_SQNR_DB: dict[HalfScheme, float] = {"fp16": 40.0, "bf16": 25.0}

_SHOWN = 5

_MOVES = frozenset(
    {"view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "flatten"}
    | {"slice", "select", "narrow", "split", "chunk", "unbind", "cat", "stack", "clone", "contiguous", "dropout"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which nodes are computed in float32.

    Attributes:
        wide: all of them.
        reached: those that go beyond half's range, with their largest magnitude.
        erring: those that lose too much in half, with their SQNR in dB.
    """

    wide: frozenset[Any]
    reached: dict[Any, float]
    erring: dict[Any, float]


def fp16(spec: QuantizeSpec) -> QuantizedModel:
    """Compute in float16, and in float32 what overflows or loses too much there; raises the errors of `_half`."""
    return _half(spec, "fp16")


def bf16(spec: QuantizeSpec) -> QuantizedModel:
    """Compute in bfloat16, whose range is float32's and which has 8 bits; raises the errors of `_half`."""
    return _half(spec, "bf16")


def fp32(spec: QuantizeSpec) -> QuantizedModel:
    """Keep float32, batch norms folded."""
    module = half_graph.functional_graph(spec.captured)
    program = half_graph.with_precisions(module, lambda _node: None, spec.inputs)
    return float_model(program.module(), program)


def storage_fp16(spec: QuantizeSpec) -> QuantizedModel:
    """Store weights in float16 and compute in float32: each is widened where it is read.

    A loader may widen them once for all with `module.float()`, after which the casts do nothing. A weight beyond half's
    range keeps its layer in float32, and so do vectors (biases, scales), which weigh nothing.

    Raises:
        UnsupportedError: there is no weight to store.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    module = half_graph.functional_graph(spec.captured)
    kept = matched_names(spec.keep_fp32, module_types(spec))
    limit = torch.finfo(torch.float16).max
    reached: dict[str, float] = {}
    stored: set[str] = set()
    owners = _owners(module)
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        tensor = half_graph.tensor_at(module, node.target)
        reader = next((user for user in node.users if user.op == "call_function"), node)
        owner = _name(reader)
        if not torch.is_tensor(tensor) or tensor.dtype != torch.float32 or tensor.ndim < 2 or inside(owner, kept):
            continue
        largest = float(tensor.detach().abs().max())
        if largest > limit:
            reached[owner] = largest
            continue
        stored.add(owner)
        with module.graph.inserting_after(node):
            widened = module.graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
        node.replace_all_uses_with(widened, delete_user_cb=lambda user, widened=widened: user is not widened)
        half_graph.put_tensor(module, node.target, tensor.detach().half())
    layers = ([name for name in owners if name in stored], _others(owners, stored))
    program = half_graph.with_precisions(module, lambda _node: None, spec.inputs)
    made = quantized_model("storage-fp16", program.module(), layers, covers="weight matrix or kernel")
    remarks = _remarks("stored in float32, since half holds at most 65504", reached, "{:.3g}")
    return dataclasses.replace(made, exported=program, remarks=remarks)


def _half(spec: QuantizeSpec, scheme: HalfScheme) -> QuantizedModel:
    """Give each node a precision, by what the calibration samples show.

    Raises:
        AccuracyError: every layer overflows: no assignment of layers cures that.
        UnsupportedError: an operator takes no half tensors, or the model has no float weight.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[scheme]
    module = half_graph.functional_graph(spec.captured)
    kept = matched_names(spec.keep_fp32, module_types(spec))
    samples, scanned = _samples(spec)
    with spec.progress.task(f"scan ranges {spec.label}", samples.count) as task:
        ranges = scan(module, dtype, samples, spec.inputs, task)
    plan = _plan(module, ranges, kept, scheme, float(torch.finfo(dtype).max))
    owners = _owners(module)
    halved = [name for name, nodes in owners.items() if any(node not in plan.wide for node in nodes)]
    if owners and not halved and plan.reached:
        what = f"no layer of the model can compute in half precision: {_named(plan.reached, '{:.3g}')}"
        raise AccuracyError(what, "use bf16, which has the range of float32, or normalise between the layers")
    others = dict.fromkeys(module_name for node in (*plan.reached, *plan.erring) if (module_name := _name(node)))
    layers = (halved, [*_others(owners, halved), *(name for name in others if name not in owners)])

    def wanted(node: Any) -> Any:
        if half_graph.takes_what_comes(node):
            return None
        return torch.float32 if node in plan.wide else dtype

    program = half_graph.with_precisions(module, wanted, spec.inputs)
    made = quantized_model(scheme, emulated(program.module()), layers, covers="float")
    largest = {"fp16": "65504", "bf16": "3.39e38"}[scheme]
    reached = {_name(node): value for node, value in plan.reached.items()}
    erring = {_name(node): value for node, value in plan.erring.items() if math.isfinite(value)}
    erring |= {_name(node): value for node, value in plan.erring.items() if not math.isfinite(value)}
    return dataclasses.replace(
        made,
        exported=program,
        remarks=(
            *scanned,
            *_remarks(f"kept in float32, since half holds at most {largest}", reached, "{:.3g}"),
            *_remarks("kept in float32, since half loses too much accuracy there", erring, "{:.1f} dB"),
        ),
    )


def _samples(spec: QuantizeSpec) -> tuple[Dataset, tuple[str, ...]]:
    """Return the calibration samples; without any a random input, and a remark that says so."""
    if spec.calibration.count:
        return spec.calibration, ()
    arrays = tuple(tensor.numpy() for tensor in example_tensors(spec.inputs))
    sample = Sample(inputs=arrays, raw=arrays, label=None, name="a random input", digest="random")
    said = (
        "the range of half precision was only checked with a random input: give --calibration-data to find "
        "layers that overflow"
    )
    return Dataset(origin="random", count=1, read=(sample,).__getitem__), (said,)


def _plan(module: Any, ranges: dict[Any, NodeRange], kept: frozenset[str], scheme: HalfScheme, largest: float) -> _Plan:
    wide: set[Any] = set()
    reached: dict[Any, float] = {}
    erring: dict[Any, float] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        own = ranges.get(node, NodeRange())
        most = max(_reach(seen, ranges) for seen in (node, *node.all_input_nodes))
        if (
            half_graph.op_name(node) == ""
            or half_graph.float_op(node, largest)
            or inside(half_graph.module_of(node), kept)
        ):
            wide.add(node)
        elif most > largest:
            wide.add(node)
            reached[node] = max(ranges[seen].largest for seen in (node, *node.all_input_nodes) if seen in ranges)
        elif own.sqnr_db < _LEAST_SQNR_DB[scheme]:
            # the nodes whose results a node reads, through what only moves them: their rounding is its error
            found: set[Any] = set()
            left = list(node.all_input_nodes)
            while left:
                source = left.pop()
                if source.op != "call_function" or source in found:
                    continue
                found.add(source)
                if half_graph.op_name(source) in _MOVES or half_graph.takes_what_comes(source):
                    left += source.all_input_nodes
            wide |= {node, *found}
            erring[node] = own.sqnr_db
    return _Plan(wide=frozenset(wide), reached=reached, erring=erring)


def _reach(node: Any, ranges: dict[Any, NodeRange]) -> float:
    """Return how far samples to come may take a node; parameters stay where they are."""
    seen = ranges[node].largest if node in ranges else 0.0
    return seen if node.op == "get_attr" else seen * HEADROOM


def module_types(spec: QuantizeSpec) -> dict[str, str]:
    """Return the type's name of every module, by its name; of an exported program those that its nodes tell of."""
    if spec.model.kind != "exported":
        return type_names(spec.model.model)
    found: dict[str, str] = {}
    for node in spec.captured.graph.nodes:
        for name, kind in (node.meta.get("nn_module_stack") or {}).values():
            found[str(name)] = str(kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return found


def _owners(module: Any) -> dict[str, list[Any]]:
    """Return the nodes that read float parameters, by their modules' names."""
    found: dict[str, list[Any]] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and any(_is_float(module, arg) for arg in node.all_input_nodes):
            found.setdefault(_name(node), []).append(node)
    return found


def _is_float(module: Any, node: Any) -> bool:
    import torch

    if node.op != "get_attr":
        return False
    tensor = half_graph.tensor_at(module, node.target)
    return bool(torch.is_tensor(tensor) and tensor.is_floating_point())


def _name(node: Any) -> str:
    return half_graph.module_of(node) or str(node.name)


def _others(names: Iterable[str], chosen: Iterable[str]) -> list[str]:
    taken = set(chosen)
    return [name for name in names if name not in taken]


def _remarks(what: str, values: dict[str, float], form: str) -> tuple[str, ...]:
    return (f"{what}: {_named(values, form)}",) if values else ()


def _named(values: dict[Any, float], form: str) -> str:
    named = {key if isinstance(key, str) else _name(key): value for key, value in values.items()}
    shown = [f"{name} ({form.format(value)})" for name, value in list(named.items())[:_SHOWN]]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return ", ".join(shown) + more
