"""Weights rounded to what int8, int4, half or a palette holds, in a float graph, which OpenVINO and others store so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import NO_INT4_GROUP, NO_INT4_KERNEL, GroupedWeight, QuantizedModel
from edgeq.core.schemes import COMPRESSED_ELEMENTS, INT4_SCHEME, INT8_STEPS, PALETTE_SCHEME, int4_groups
from edgeq.core.system import check_extras
from edgeq.quantize import half_graph
from edgeq.quantize.half import module_types, true_half
from edgeq.quantize.result import quantized_model
from edgeq.quantize.spec import QuantizeSpec, inside, is_pruned, matched_names
from edgeq.quantize.weight_only import weight_only_linear_int8


def fp16(spec: QuantizeSpec) -> QuantizedModel:
    """Round weights to half.

    Raises:
        UnsupportedError: a weight beyond what half holds, or a model without weights.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    most = torch.finfo(torch.float16).max

    def rounded(name: str, weight: Any, _readers: Any) -> Any:
        largest = float(weight.abs().max())
        if largest > most:
            what = f"{name} holds {largest:.3g}, but half precision holds at most {most:.0f}"
            raise UnsupportedError(what, f"give --keep-fp32 {name}, or use another scheme")
        return weight.half().float()

    return _rounded(spec, "fp16", rounded)


def weight_only_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Round weights to int8, with a scale for each row: an output of a linear layer, a word of an embedding.

    What is looked up at places that no input changes, such as a bias for each two positions, is rounded as it is used,
    with a scale for each head: the exporter writes it out in place of the table, and it may be most of the artifact.

    Raises:
        UnsupportedError: a model without weights.
        UsageError: a --keep-fp32 name that the model does not have.
    """

    return _rounded(spec, "weight-only-int8", _in_int8, write_out=True)


def _in_int8(_name: str, weight: Any, _readers: Sequence[Any]) -> Any:
    import torch

    rows = tuple(range(1, weight.ndim))
    scale = weight.abs().amax(dim=rows, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_STEPS
    return torch.round(weight / scale) * scale


def weight_only_int4(spec: QuantizeSpec) -> QuantizedModel:
    """Round the weights of linear layers to int4, with a scale for each group of inputs; zeros stay zeros.

    OpenVINO stores the other weights in int8, as weight-only-int8 does; ONNX Runtime computes with them in float32.

    Raises:
        UnsupportedError: a model without a linear layer whose rows a group divides.
        UsageError: a --keep-fp32 name that the model does not have, or an --int4-group that is too small.
    """
    import torch

    sizes = int4_groups(INT4_SCHEME, spec.int4_group)
    grouped: list[GroupedWeight] = []
    others: dict[str, list[str]] = {}

    def rounded(name: str, weight: Any, readers: Sequence[Any]) -> Any:
        owners = tuple(dict.fromkeys(half_graph.module_of(reader) or str(reader.name) for reader in readers)) or (name,)
        matrix = _rows(weight, readers)
        found = None if matrix is None else in_groups(matrix, sizes)
        if found is None:
            others.setdefault(NO_INT4_KERNEL if matrix is None else NO_INT4_GROUP, []).append(name)
            return _in_int8(name, weight, readers) if spec.backend == "openvino" else None
        grouped.append(GroupedWeight(layers=owners, codes=found[0].numpy(), scales=found[1].numpy()))
        values = torch.from_numpy(grouped[-1].values)
        return values if _is_row_major(readers) else values.T.contiguous()

    made = _rounded(spec, INT4_SCHEME, rounded, write_out=spec.backend == "openvino")
    if not grouped:
        what = f"{INT4_SCHEME} quantized nothing: no group of {sizes[-1]} or more divides the rows of a linear layer"
        instead = "weight-only-int8" if spec.backend == "openvino" else "static-int8 or dynamic-int8"
        raise UnsupportedError(what, f"use --scheme {instead}, or omit --keep-fp32")
    in_float = {why: tuple(dict.fromkeys(names)) for why, names in others.items()}
    return dataclasses.replace(made, in_float=in_float, grouped=tuple(grouped))


def weight_only_executorch(spec: QuantizeSpec) -> QuantizedModel:
    """Store weights in int8: those of linear layers and embeddings for XNNPACK, all larger ones for Core ML.

    Core ML computes in half, and has a scale in half for each output channel.

    Raises:
        UnsupportedError: an exported program for XNNPACK, or a model without such weights.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch

    if spec.backend != "coreml":
        return weight_only_linear_int8(spec)
    smallest = 2.0**-24  # that half precision holds

    def rounded(_name: str, weight: Any, readers: Sequence[Any]) -> Any:
        if weight.numel() <= COMPRESSED_ELEMENTS:
            return None
        axis = int(any(map(_is_transposed, readers)))
        others = tuple(i for i in range(weight.ndim) if i != axis)
        half = weight.half().float()
        scale = (half.abs().amax(dim=others, keepdim=True) / INT8_STEPS).half().float().clamp(min=smallest)
        return (torch.round(half / scale).clamp(-INT8_STEPS, INT8_STEPS) * scale).half().float()

    return _in_half(spec, "weight-only-int8", rounded)


def palette4(spec: QuantizeSpec) -> QuantizedModel:
    """Give each larger weight 16 values, by k-means: Core ML stores indices of 4 bits, and computes in half.

    Raises:
        UnsupportedError: another backend, or a model without such weights.
        UsageError: a --keep-fp32 name that the model does not have.
        EnvironmentProblem: scikit-learn is missing.
    """
    import torch

    if spec.backend != "coreml":
        what = f"{PALETTE_SCHEME} is for Core ML, whose packages hold palettes; {spec.backend} has no kernels for them"
        raise UnsupportedError(what, "use --scheme weight-only-int8, or --target ios-arm64-coreml")
    check_extras((PALETTE_SCHEME,))
    from sklearn.cluster import KMeans

    def rounded(_name: str, weight: Any, _readers: Any) -> Any:
        if weight.numel() <= COMPRESSED_ELEMENTS:
            return None
        values, places, counts = torch.unique(weight.half().float(), return_inverse=True, return_counts=True)
        if len(values) <= _PALETTE:
            return values[places]
        others = values != 0 if is_pruned(weight) else torch.ones_like(values, dtype=torch.bool)  # zero gets a place
        means = KMeans(_PALETTE - int(not others.all()), n_init=4, random_state=0)
        found = means.fit(values[others].numpy()[:, None], sample_weight=counts[others].numpy())
        centres = torch.from_numpy(found.cluster_centers_.ravel()).half().float()
        nearest = torch.zeros_like(values)
        nearest[others] = centres[torch.from_numpy(found.labels_).long()]
        return nearest[places]

    return _in_half(spec, PALETTE_SCHEME, rounded)


_PALETTE = 16  # values of 4 bits


def _in_half(spec: QuantizeSpec, scheme: str, rounded: Rounding) -> QuantizedModel:
    """Round weights, and return a graph that computes with them in half, as Core ML does with the float32 program."""
    made = _rounded(spec, scheme, rounded)
    model = dataclasses.replace(spec.model, kind="exported", model=made.exported)
    # what --keep-fp32 names keeps its weights, and computes in half as all else does there
    half = true_half(dataclasses.replace(spec, model=model, captured=made.exported, keep_fp32=()))
    return dataclasses.replace(made, graph=half.graph)


# from a layer's name, its weight and the nodes that read it; None where the weight stays as it is
Rounding = Callable[[str, Any, Sequence[Any]], Any]


def _rounded(spec: QuantizeSpec, scheme: str, rounded: Rounding, *, write_out: bool = False) -> QuantizedModel:
    """Round matrices and kernels, of layers that --keep-fp32 does not name; batch norms are folded before.

    Args:
        spec: the model.
        scheme: its name.
        rounded: rounds a weight.
        write_out: whether lookups at constant places are computed first.
    """
    import torch

    module = half_graph.functional_graph(spec.captured)
    kept = matched_names(spec.keep_fp32, module_types(spec))
    written_out = _write_out_lookups(module, kept) if write_out else {}
    chosen: dict[str, None] = {}
    left: dict[str, None] = {}
    for target in dict.fromkeys(node.target for node in module.graph.nodes if node.op == "get_attr"):
        tensor = half_graph.tensor_at(module, target)
        if not torch.is_tensor(tensor) or tensor.dtype != torch.float32 or tensor.ndim < 2:
            continue
        if not tensor.isfinite().all():  # a mask of attention, whose infinities have no step
            continue
        readers = [user for node in module.graph.nodes if node.target == target for user in node.users]
        owners = [half_graph.module_of(reader) or str(reader.name) for reader in readers]
        owners = [written_out[target]] if target in written_out else owners
        if any(inside(owner, kept) for owner in owners):
            left.update(dict.fromkeys(owners))
            continue
        value = tensor.detach()
        if target in written_out and value.shape[0] == 1:  # the batch, before the heads
            value = value.squeeze(0)
        value = rounded(owners[0], value, readers)
        if value is None:
            left.update(dict.fromkeys(owners))
            continue
        half_graph.put_tensor(module, target, value.reshape(tensor.shape))
        chosen.update(dict.fromkeys(owners))
    layers = (list(chosen), [name for name in left if name not in chosen])
    program = half_graph.with_precisions(module, lambda _node: None, spec.inputs)
    made = quantized_model(scheme, program.module(), layers, covers="weight matrix or kernel")
    return dataclasses.replace(made, exported=program)


# elements: the ONNX exporter's optimizer leaves larger results to each run (onnxscript 0.7)
_MOST_WRITTEN_OUT = 512 * 512


def _write_out_lookups(module: Any, kept: Collection[str]) -> dict[str, str]:
    """Put what is looked up at constant places, and is larger than its table, in place of the lookup and what follows.

    Returns:
        The names of the new constants, and of each the layer that it was looked up in.
    """
    import torch

    values: dict[Any, Any] = {}  # of nodes that depend on no input
    looked_up: dict[Any, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = half_graph.tensor_at(module, node.target)
        elif isinstance(node.target, torch._ops.OpOverload) and values.keys() >= {*node.all_input_nodes}:
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
            layer = next((looked_up[arg] for arg in node.all_input_nodes if arg in looked_up), None)
            if half_graph.op_name(node) == "embedding" and args[0].numel() < values[node].numel() <= _MOST_WRITTEN_OUT:
                layer = half_graph.module_of(node) or str(node.name)
            if layer is not None and not inside(layer, kept):
                looked_up[node] = layer
    found = {}
    for node, layer in looked_up.items():
        readers = [reader for reader in node.users if reader not in values]
        if not readers or not torch.is_tensor(values[node]):
            continue
        name = f"{node.name}_written_out"
        module.register_parameter(name, torch.nn.Parameter(values[node].contiguous(), requires_grad=False))
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta.update(node.meta)
        for reader in readers:
            reader.replace_input_with(node, constant)
        found[name] = layer
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return found


def _is_transposed(node: Any) -> bool:
    """Whether a node is a transposed convolution, whose output channels are its weight's second axis."""
    name = str(node.target)
    return "conv_transpose" in name or ("convolution" in name and len(node.args) > 6 and node.args[6] is True)


# --- Int4 by groups.


def in_groups(
    matrix: Any, sizes: Sequence[int], *, scale_type: Any = None, is_signed: bool = True
) -> tuple[Any, Any] | None:
    """Round a matrix to int4, with the scale for each group that leaves the least squared error.

    Scales are tried from the one that spends all 16 steps on the group's range down to three quarters of it: what is
    clipped then costs less than the coarser steps of the rest. A negative scale gives the side with the larger end the
    eighth step.

    Args:
        matrix: float32 [out, in].
        sizes: of groups; the first that divides the rows is taken.
        scale_type: the torch.dtype that a runtime keeps scales in; None for float16.
        is_signed: whether it takes negative ones.

    Returns:
        The codes, int8 [out, groups, size], and the scales, float32 [out, groups] of values that `scale_type` holds;
        None where no size divides the rows, or `scale_type` does not hold a scale.
    """
    import torch

    scale_type = scale_type or torch.float16
    size = next((size for size in sizes if matrix.shape[1] % size == 0), None)
    if size is None:
        return None
    groups = matrix.detach().reshape(len(matrix), -1, size)
    end = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    least = torch.full_like(end, float("inf"))
    scales, tried = torch.ones_like(end), torch.empty_like(groups)
    for steps in (-8, 7):
        for share in torch.linspace(1, 0.75, 11):
            scale = (end * share / steps).to(scale_type).float()
            scale = scale if is_signed else scale.abs()
            scale = torch.where(scale == 0, 1, scale)  # of zeros, and of what is rounded to zero
            if not scale.isfinite().all():
                return None
            # in place: a language model's weights are most of the memory
            torch.div(groups, scale, out=tried).round_().clamp_(-8, 7).mul_(scale).sub_(groups).square_()
            error = tried.sum(-1, keepdim=True)
            better = error < least
            least, scales = torch.where(better, error, least), torch.where(better, scale, scales)
    codes = torch.div(groups, scales, out=tried).round_().clamp_(-8, 7).to(torch.int8)
    return codes, scales.squeeze(-1)


def _rows(weight: Any, readers: Sequence[Any]) -> Any | None:
    """Return a weight as [out, in] where matrix products alone read it, all in the same way; else None."""
    if weight.ndim != 2 or not readers:
        return None
    if _is_row_major(readers):
        return weight
    return weight.T if all(_multiplies_by(one, ("mm", "matmul", "addmm")) for one in readers) else None


def _is_row_major(readers: Sequence[Any]) -> bool:
    """Whether all readers take the weight as nn.Linear has it, [out, in]."""
    return all(_multiplies_by(one, ("linear",)) for one in readers)


def _multiplies_by(node: Any, names: Collection[str]) -> bool:
    """Whether a node is one of these products, of a value by a constant."""
    name = half_graph.op_name(node)
    factors = node.args[1:3] if name == "addmm" else node.args[:2]
    return name in names and [factor.op == "get_attr" for factor in factors] == [False, True]
