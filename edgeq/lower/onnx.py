"""ONNX lowering: torch.onnx's exporter with checks, names and stripping; ready-made and quantized ONNX files."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.core.errors import UnsupportedError, UsageError, first_line
from edgeq.core.lazy import np
from edgeq.core.ort_format import required_operators, settled
from edgeq.core.results.model import Layer, LoweredModel, ModelWork, Operator, QuantizedModel, TensorSpec
from edgeq.core.samples import varying_sizes
from edgeq.core.system import quiet
from edgeq.lower.int4 import INT4_OP, file_int4, int4_codes, put_int4
from edgeq.lower.layers import MODULE_KEY, conv_macs, matmul_macs, zero_share
from edgeq.lower.lift import exported_again
from edgeq.lower.onnx_speedups import speedups
from edgeq.lower.spec import LowerSpec

# what the exporter's operators are written in; ONNX Runtime loads it from 1.14 on
OPSET = 18

_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>")
# of the exporter's error about one operator: the name of its node, and the operator
_TRANSLATING = re.compile(r"Error when translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]")

_LINE = re.compile(r'File "([^"]+)", line (\d+), in forward')


def lower(quantized: QuantizedModel, spec: LowerSpec) -> LoweredModel:
    """Write `model.onnx`, with the inputs' names and `output0` and so on; quantized layers as QDQ.

    Raises:
        UnsupportedError: ONNX lacks an operator of the model (named), or the graph is larger than 2 GB.
    """
    with spec.progress.task(f"lower {spec.label}"):
        proto = export(quantized, spec)
        layers = traced_layers(proto, spec)
        # runtimes infer the shapes between layers; ONNX Runtime's quantizer stumbles over stated ones
        del proto.graph.value_info[:]
        if quantized.grouped:
            # ONNX Runtime (1.31) writes each attribute that it knows into its own format, and older ones (1.20) refuse
            # MatMulNBits with those that came later: "Unrecognized attribute: weight_prepacked"
            spec = dataclasses.replace(spec, file_format="onnx")
            put_int4(proto, quantized.grouped)
            stored = {node.name for node in proto.graph.node if node.op_type == INT4_OP}
            layers = tuple(
                dataclasses.replace(layer, weight_bytes=layer.weight_bytes // 8) if layer.name in stored else layer
                for layer in layers
            )
        made = _written(proto, spec, layers, ("torch.onnx.export", "optimize", "check_model", "infer_shapes"))
        return dataclasses.replace(made, int4_db=file_int4(made.path, quantized.grouped))


def export(quantized: QuantizedModel, spec: LowerSpec) -> Any:
    """Return the onnx.ModelProto of a graph, with the names of its layers and the shapes of all values.

    Raises:
        UnsupportedError: ONNX lacks an operator of the model (named), or the graph is larger than 2 GB.
    """
    program, proto = _exported(quantized, spec)
    _drop_saturated_clamps(proto)
    _pool_in_int8(proto)
    # give layers their modules' names, which runtimes keep through their fusions, and the others numbers
    outputs = output_names(program, spec)
    modules = {node.name: _module_of(node) for node in program.graph.nodes}
    modules |= {
        output: modules[name] for output, name in zip(outputs, program.graph_signature.user_outputs, strict=True)
    }
    readers = {name: node for node in reversed(proto.graph.node) for name in node.input}
    taken: Counter[str] = Counter()
    for index, node in enumerate(proto.graph.node):
        name = f"{node.op_type}_{index}"
        if node.op_type in LAYER_OPS:
            value = node.output[0]
            # of a matrix product with a bias, the sum has the name of PyTorch's linear
            summed = readers[value].output[0] if value in readers else value
            name = modules.get(value) or modules.get(summed) or modules.get(_origin(node)) or value
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}#{taken[name]}"
    _strip(proto)
    return _checked(proto)


def traced_layers(proto: Any, spec: LowerSpec) -> tuple[Layer, ...]:
    """Return the layers of an exported model; none where onnx cannot infer the shape of a value."""
    try:
        varies = any(item.varying for item in spec.inputs)
        return onnx_layers(fixed(proto, spec.inputs) if varies else proto)
    except (KeyError, ValueError):
        return ()


def lower_file(source: Path, proto: Any | None, spec: LowerSpec) -> LoweredModel:
    """Write an ONNX file as the artifact: unchanged, merged into one file, or quantized.

    Args:
        source: the ready-made file, or the float file that `proto` was quantized from, with equal layer names.
        proto: an onnx.ModelProto; None to use `source` unchanged.
        spec: where to write it.

    Raises:
        UnsupportedError: the model fails ONNX's validation, or is larger than 2 GB.
    """
    import onnx

    before = onnx.load(str(source))
    with spec.progress.task(f"lower {spec.label}"):
        try:
            macs: dict[str, int] | None = layer_macs(fixed(before, spec.inputs))
        except (KeyError, ValueError):  # a value whose shape onnx cannot infer: the layers are not known
            macs = None
        after = before if proto is None else proto
        layers = () if macs is None else onnx_layers(after, macs)
        if proto is None:
            whole = source.read_bytes() if not _is_split(source) else None
            return _written(after, spec, layers, (), whole)
        _strip(after)
        onnx.checker.check_model(after)
        return _written(after, spec, layers, ("onnxruntime.quantization", "check_model"))


def _is_split(source: Path) -> bool:
    """Whether a file keeps tensors in others."""
    import onnx

    held = onnx.load(str(source), load_external_data=False).graph.initializer
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in held)


def _written(
    proto: Any, spec: LowerSpec, layers: tuple[Layer, ...], passes: tuple[str, ...], whole: bytes | None = None
) -> LoweredModel:
    """Write the model, as `whole` where its bytes are to stay, in the format that the target reads.

    Raises:
        UnsupportedError: it is larger than 2 GB.
    """
    import onnxruntime

    path = spec.folder / "model.onnx"
    try:
        path.write_bytes(proto.SerializeToString(deterministic=True) if whole is None else whole)
    except ValueError as err:  # protobuf's own limit
        raise UnsupportedError(f"the ONNX file would be larger than 2 GB: {first_line(err)}", "quantize it") from err
    operators = tuple(sorted({f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in proto.graph.node}))
    if spec.file_format == "ort":
        path = write_ort(path)
        operators, passes = required_operators(path), (*passes, "ort format")
    return LoweredModel(
        path=path,
        runtime="onnx",
        runtime_version=str(onnxruntime.__version__),
        bytecode_version=max(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")),
        passes=passes,
        operators=operators,
        undelegated=(),
        layers=layers,
        delegated_macs=None,
        dynamic_batch=any_batch(proto) and not varying_sizes(spec.inputs),
        stored=elements(proto),
        zeros=zero_share(_weights(proto)),
    )


def any_batch(proto: Any) -> bool:
    """Whether the first size of every input is left open, and no other."""
    held = {tensor.name for tensor in proto.graph.initializer}
    sizes = [value.type.tensor_type.shape.dim for value in proto.graph.input if value.name not in held]
    is_open = [[not dim.HasField("dim_value") for dim in dims] for dims in sizes]
    return all(dims and dims[0] and not any(dims[1:]) for dims in is_open)


def output_names(program: Any, spec: LowerSpec) -> list[str]:
    """Return the names of a program's outputs, `output0` and so on where the model has none for them."""
    return [*spec.output_names] or [f"output{i}" for i, _ in enumerate(program.graph_signature.user_outputs)]


def _exported(quantized: QuantizedModel, spec: LowerSpec) -> tuple[Any, Any]:
    """Return the exported program as ONNX's decompositions left it, and the ONNX model."""
    import torch

    program = quantized.exported
    try:
        with quiet(), speedups():  # the exporter prints its steps and logs what its optimizer could not fold
            if program is None:
                program = exported_again(quantized.graph, spec)
            program = _exact(program, spec)
            outputs = output_names(program, spec)
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[item.name for item in spec.inputs],
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
            _fold_recurrent(made.model)
            return made.exported_program, made.model_proto
    except Exception as err:  # torch.export and the exporter raise many types
        raise _refused(err, program) from err


def _exact(program: Any, spec: LowerSpec) -> Any:
    """Return the program with what the exporter or ONNX Runtime would compute otherwise written out; most have none."""
    import torch

    module = program.module()
    changes = (
        _write_out_cut_pools(module),
        _write_out_distances(module),
        _write_out_circular_pads(module),
        _write_out_adaptive_pools(module),
        _leave_out_unseen_rows(module),
        _give_attention_four_axes(module),
    )
    if not any(changes):
        return program
    for node in module.graph.nodes:
        # a result that was written out may lie in memory otherwise, where a view of it cannot be taken
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    module.recompile()
    return exported_again(module, spec)


def _leave_out_unseen_rows(module: Any) -> bool:
    """Make the rows of masked attention that may see nothing zero, as PyTorch does; return whether there were any.

    Such rows are those of padding before the first word. The exporter's operator (onnxscript 0.7.2) gives them the mean
    of all values instead, or NaN where the mask is of floats.
    """
    import torch

    aten = torch.ops.aten
    seen_by: dict[Any, Any] = {}
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if mask is None:
            continue
        if mask not in seen_by:
            allowed = mask
            if mask.meta["val"].dtype.is_floating_point:
                with module.graph.inserting_after(mask):
                    allowed = module.graph.call_function(aten.ne.Scalar, (mask, -math.inf))
            with module.graph.inserting_after(allowed):
                seen_by[mask] = module.graph.call_function(aten.any.dim, (allowed, -1, True))
        with module.graph.inserting_after(node):
            kept = module.graph.call_function(aten.where.ScalarOther, (seen_by[mask], node, 0.0))
        kept.meta.update({key: value for key, value in node.meta.items() if key != "val"})
        node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)
    return bool(seen_by)


def _give_attention_four_axes(module: Any) -> bool:
    """Give attention over fewer or more axes than four exactly four; return whether any was changed.

    The exporter takes (batch, heads, length, size) alone (onnxscript 0.7.2: "only 4D query, key, and value"). Axes that
    lack are added in front, where masks broadcast as before; several axes of batches become one.
    """
    import torch

    aten = torch.ops.aten
    changed = False
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or node.meta["val"].dim() == 4:
            continue
        shape = tuple(node.meta["val"].shape)
        batches = shape[:-3]
        made: list[Any] = []

        def call(target: Any, *args: Any, made: list[Any] = made) -> Any:
            made.append(module.graph.call_function(target, args))
            return made[-1]

        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        with module.graph.inserting_before(node):
            for item in dict.fromkeys((*node.args[:3], *([] if mask is None else [mask]))):
                at, sizes = item, tuple(item.meta["val"].shape)
                if batches:
                    if item is mask and len(sizes) <= 3:
                        continue
                    if len(sizes) < len(shape) or sizes[:-3] != batches:
                        at = call(aten.expand.default, at, [*batches, *sizes[-3:]])
                    at = call(aten.flatten.using_ints, at, 0, -4)
                elif item is not mask:
                    for _ in range(4 - len(shape)):
                        at = call(aten.unsqueeze.default, at, 0)
                node.replace_input_with(item, at)
        with module.graph.inserting_after(node):
            result = call(aten.reshape.default, node, [-1, *shape[1:]])
        for one in made:
            one.meta.update({key: value for key, value in node.meta.items() if key != "val"})
        node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)
        changed = True
    return changed


def _write_out_adaptive_pools(module: Any) -> bool:
    """Write adaptive average pools over three axes as plain ones where all windows are alike; return whether any are.

    The exporter writes them over one and two axes only (torch 2.15).
    """
    import torch

    aten = torch.ops.aten
    changed = False
    for node in list(module.graph.nodes):
        if node.target not in (aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default):
            continue
        sizes = zip(node.args[0].meta["val"].shape[-3:], node.meta["val"].shape[-3:], strict=True)
        pairs = [pair for pair in sizes if all(isinstance(size, int) for size in pair) and pair[0] % pair[1] == 0]
        if len(pairs) == 3:
            kernel = [size // count for size, count in pairs]
            node.target, node.args = aten.avg_pool3d.default, (node.args[0], kernel, kernel)
            changed = True
    return changed


def _write_out_distances(module: Any) -> bool:
    """Write distances of all pairs of rows as what they are defined by; return whether there were any.

    ONNX has no operator for torch.cdist. Here every pair's differences are kept until they are summed: PyTorch's other
    way, by a matrix product, loses digits of near rows.
    """
    import torch

    aten = torch.ops.aten
    changed = False
    for node in list(module.graph.nodes):
        if node.target not in (aten.cdist.default, aten._cdist_forward.default):
            continue
        # (left [..., rows, size], right [..., others, size], p, mode)
        left, right, *rest = node.args
        power = float(rest[0] if rest else node.kwargs.get("p", 2.0))
        if power == 0:  # how many values differ
            continue
        made: list[Any] = []

        def add(target: Any, *args: Any, made: list[Any] = made) -> Any:
            made.append(module.graph.call_function(target, args))
            return made[-1]

        with module.graph.inserting_before(node):
            apart = add(aten.sub.Tensor, add(aten.unsqueeze.default, left, -2), add(aten.unsqueeze.default, right, -3))
            if power == 2:
                found = add(aten.sqrt.default, add(aten.sum.dim_IntList, add(aten.mul.Tensor, apart, apart), [-1]))
            elif power == math.inf:
                found = add(aten.amax.default, add(aten.abs.default, apart), [-1])
            else:
                size = add(aten.abs.default, apart)
                raised = size if power == 1 else add(aten.pow.Tensor_Scalar, size, power)
                found = add(aten.sum.dim_IntList, raised, [-1])
                found = found if power == 1 else add(aten.pow.Tensor_Scalar, found, 1 / power)
        _exchange(node, made, found)
        changed = True
    return changed


def _write_out_circular_pads(module: Any) -> bool:
    """Write circular pads as slices side by side; return whether there were any.

    The exporter writes Pad in its mode `wrap`, which came with opset 19; OpenVINO does not read it in opset 18.
    """
    import torch

    aten = torch.ops.aten
    changed = False
    for node in list(module.graph.nodes):
        # (input, sizes from the last axis on: before it and behind it, mode, value)
        if node.target is not aten.pad.default or "circular" not in node.args[2:3]:
            continue
        padded, sizes = node.args[0], node.args[1]
        made = []
        with module.graph.inserting_before(node):
            for index in range(0, len(sizes), 2):
                axis = node.meta["val"].dim() - 1 - index // 2
                parts = [padded]
                before, behind = sizes[index : index + 2]
                if before:
                    end = torch.iinfo(torch.int64).max
                    parts.insert(0, module.graph.call_function(aten.slice.Tensor, (padded, axis, -before, end)))
                if behind:
                    parts.append(module.graph.call_function(aten.slice.Tensor, (padded, axis, 0, behind)))
                if len(parts) > 1:
                    padded = module.graph.call_function(aten.cat.default, (parts, axis))
                    made += [part for part in (*parts, padded) if part is not node.args[0]]
        _exchange(node, made, padded)
        changed = True
    return changed


def _write_out_cut_pools(module: Any) -> bool:
    """Write average pools whose last windows are cut as what ONNX Runtime computes rightly; return whether any are.

    With ceil_mode it divides such a window's sum by the size of a whole one (seen in 1.31.1), PyTorch by that of what
    lies in the padded input. Here the input is padded on, pooled, and corrected by a constant.
    """
    import torch

    aten = torch.ops.aten
    axes_of = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
    changed = False
    for node in list(module.graph.nodes):
        # (input, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
        args = (*node.args, *(None,) * 7)
        if node.target not in axes_of or not args[4] or args[5] is False or args[6] is not None:
            continue
        if not all(isinstance(size, int) for size in node.args[0].meta["val"].shape):
            what = f"an average pool with ceil_mode over a size that varies cannot be written as ONNX{_where(node)}"
            raise UnsupportedError(what, "use ceil_mode=False, or give a fixed size in --input")
        axes = axes_of[node.target]
        kernel, stride, padding = (
            tuple(value) * axes if len(value) == 1 else tuple(value)
            for value in (args[1], args[2] or args[1], args[3] or (0,))
        )
        around: list[int] = []
        factor = torch.ones((), dtype=node.meta["val"].dtype)
        sizes = node.args[0].meta["val"].shape[-axes:]
        for size, width, step, pad in zip(sizes, kernel, stride, padding, strict=True):
            count = node.meta["val"].shape[len(node.meta["val"].shape) - axes + len(around) // 2]
            starts = [index * step - pad for index in range(count)]
            inside = torch.tensor([width / (min(start + width, size + pad) - start) for start in starts])
            factor = factor.unsqueeze(-1) * inside.to(factor.dtype)
            around += [pad, max(0, starts[-1] + width - size)]
        pairs = [around[i : i + 2] for i in range(0, len(around), 2)]
        name = f"cut_windows_{node.name}"
        module.register_buffer(name, factor)
        with module.graph.inserting_before(node):
            padded = module.graph.call_function(
                aten.constant_pad_nd.default, (node.args[0], [item for pair in reversed(pairs) for item in pair])
            )
            pooled = module.graph.call_function(node.target, (padded, list(kernel), list(stride)))
            corrected = module.graph.call_function(aten.mul.Tensor, (pooled, module.graph.get_attr(name)))
        _exchange(node, (padded, pooled, corrected), corrected)
        changed = True
    return changed


def _exchange(node: Any, made: Iterable[Any], result: Any) -> None:
    """Put nodes that were made in a node's place, with its module and line; `result` is what its readers get."""
    for one in made:
        one.meta.update({key: value for key, value in node.meta.items() if key != "val"})
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _fold_recurrent(model: Any) -> None:
    """Make the weights of float recurrent layers constants: the exporter leaves larger ones as slices to be joined.

    Only there: of a quantized file the weights would become floats.
    """
    from onnxscript import optimizer

    operators = {node.op_type for node in model.graph}
    if operators & RECURRENT and "DequantizeLinear" not in operators:
        optimizer.fold_constants(model, input_size_limit=2**31, output_size_limit=2**31)
        optimizer.remove_unused_nodes(model)


def _drop_saturated_clamps(proto: Any) -> None:  # noqa: C901  # one pattern, read in order
    """Take out each Relu and Clip before a QuantizeLinear whose own saturation gives the very same integers.

    They do where both bounds become the ends of the integers' range: quantizing is monotone. Left in, they keep ONNX
    Runtime from running what comes before as one int8 kernel.
    """
    import onnx

    graph = proto.graph
    held = _constants(graph)
    values = {item.name for item in graph.output}
    readers = _readers(graph)

    def number(name: str) -> Any:
        return onnx.numpy_helper.to_array(held[name])

    def saturates(quantize: Any, least: float, most: float) -> bool:
        if len(quantize.input) < 3 or not {*quantize.input[1:3]} <= held.keys():
            return False
        scale, zero_point = number(quantize.input[1]), number(quantize.input[2])
        if scale.size != 1:
            return False
        ends = np.iinfo(zero_point.dtype)
        steps = np.rint(np.array([least, most]) / float(scale.item())) + float(zero_point.item())
        return bool(steps[0] <= ends.min and steps[1] >= ends.max)

    dropped = []
    for node in graph.node:
        if node.op_type not in ("Relu", "Clip") or node.output[0] in values:
            continue
        bounds = [0.0, float("inf")] if node.op_type == "Relu" else [float("-inf"), float("inf")]
        named = list(node.input[1:3]) if node.op_type == "Clip" else []
        if any(name and name not in held for name in named):
            continue
        for place, name in enumerate(named):
            if name:
                bounds[place] = float(number(name).item())
        users = readers.get(node.output[0], [])
        if users and all(user.op_type == "QuantizeLinear" and saturates(user, *bounds) for user in users):
            for user in users:
                user.input[0] = node.input[0]
            dropped.append(node)
    for node in dropped:
        graph.node.remove(node)


def _pool_in_int8(proto: Any) -> None:
    """Write means over all pixels in int8 as global pools: ONNX Runtime (1.31) has an int8 kernel of these alone.

    A seventh of efficientnet_b0's time went into the means of its 16 gates.
    """
    import onnx

    graph = proto.graph
    shapes, held, readers = _shapes(graph), _constants(graph), _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in held:
            continue
        source, users = makers.get(node.input[0]), readers.get(node.output[0], [])
        if source is None or [one.op_type for one in (source, *users)] != ["DequantizeLinear", "QuantizeLinear"]:
            continue
        rank = len(shapes.get(node.input[0], ()))
        axes = sorted(axis % rank for axis in onnx.numpy_helper.to_array(held[node.input[1]]).tolist()) if rank else []
        if rank > 2 and axes == list(range(2, rank)) and len(shapes.get(node.output[0], ())) == rank:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    read = _readers(graph)
    for item in [item for item in graph.initializer if item.name not in read]:
        graph.initializer.remove(item)


def _refused(err: BaseException, program: Any) -> UnsupportedError:
    """Name the operator that ONNX lacks, with the module and the line that call it."""
    causes = [err]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = "\n".join(map(str, causes))
    missing = _MISSING.search(text)
    nodes = program.graph.nodes if program is not None else ()
    if missing is None:
        # the outermost message is advice for the exporter's own developers, the innermost one says what is wrong
        why = first_line(causes[-1])
        named = _TRANSLATING.search(text)
        node = next((node for node in nodes if named and node.name == named[1]), None)
        if named is None:
            return UnsupportedError(f"torch.onnx cannot export this model: {why}", "use an ExecuTorch target")
        what = f"torch.onnx cannot export {named[2]}{_where(node) if node else ''}: {why}"
        return UnsupportedError(what, "use other operators, or an ExecuTorch target")
    # a decomposition may have changed the front of its name: prims.bessel_j0 is aten.special_bessel_j0, and
    # aten._linalg_svd is aten.linalg_svd
    short = re.split(r"[.:]+", missing[1])[-1].strip("_")
    callers = [node for node in nodes if node.op == "call_function" and short in str(node.target)]
    name = str(callers[0].target) if callers else f"{missing[1]}.{missing[2]}"
    what = f"ONNX has no operator for {name}{_where(callers[0]) if callers else ''}"
    return UnsupportedError(what, "use other operators, or an ExecuTorch target")


def _where(node: Any) -> str:
    """Return the module and the line that a node came from, in brackets."""
    module = _module_of(node)
    lines = _LINE.findall(node.meta.get("stack_trace") or "")
    parts = [f"module {module}" if module else "", f"{lines[-1][0]}:{lines[-1][1]}" if lines else ""]
    told = ", ".join(part for part in parts if part)
    return f" ({told})" if told else ""


def _module_of(node: Any) -> str | None:
    """Return the module that a value comes from; of a normalization that is folded, that of the layer before it."""
    while node.op == "call_function" and ("batch_norm" in str(node.target) or "getitem" in str(node.target)):
        node = node.all_input_nodes[0]
    name: str | None = node.meta.get("custom", {}).get(MODULE_KEY)
    return name


def _origin(node: Any) -> str:
    """Return the name of the exported program's node that an ONNX node was made of; "" where the exporter notes none.

    What it makes of a recurrent layer has the layer's name nowhere else.
    """
    noted = {item.key: item.value for item in node.metadata_props}
    names = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(names[-1]) if names else ""


def _strip(proto: Any) -> None:
    """Take out stack traces, which hold paths of this machine, and all other notes of the exporter."""
    import onnx

    graph = proto.graph
    parts = (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version = "edgeq", ""
    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)


def _checked(proto: Any) -> Any:
    """Return the model with all shapes inferred.

    Raises:
        UnsupportedError: the model is no valid ONNX, or its shapes contradict each other.
    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as err:  # the checker, shape inference and protobuf raise types of their own
        what = f"the exported ONNX model fails validation: {first_line(err)}"
        raise UnsupportedError(what, "report the model's architecture to edgeq's developers") from err


# --- Layers of an ONNX graph: multiply-accumulates from inferred shapes, bytes and elements from its constants.


_MATRIX = frozenset({"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm"})

_CONV = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})

RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})

# operators whose inputs have a scale and a zero point each
_WITH_SCALES = frozenset({"QLinearMatMul", "QGemm", "QLinearConv"})

LAYER_OPS = _MATRIX | _CONV | RECURRENT

# they hand on a constant's values, in another type or order
_PASSING = frozenset({"DequantizeLinear", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"})


def onnx_layers(proto: Any, macs: Mapping[str, int] | None = None) -> tuple[Layer, ...]:
    """Return the layers in the graph's order, by their nodes' names, without those that runtimes compute as they load.

    Args:
        proto: a model, with the shapes of all its values where `macs` is None.
        macs: multiply-accumulates by node, for a model whose operators onnx cannot infer shapes of.
    """
    graph = proto.graph
    known = layer_macs(proto) if macs is None else macs
    held = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    fed = frozenset(item.name for item in graph.input) - held.keys()
    return tuple(
        Layer(
            name=node.name,
            op=node.op_type,
            macs=known.get(node.name, 0),
            weight_bytes=sum(_nbytes(held, makers, name) for name in node.input),
            delegated=False,
            of_activations=node.op_type == "MatMul" and all(_is_of_input(fed, makers, name) for name in node.input),
        )
        for node in graph.node
        if node.op_type in LAYER_OPS and any(_is_of_input(fed, makers, name) for name in node.input)
    )


def graph_operators(path: Path) -> tuple[Operator, ...]:
    """Return all operators of a file with what feeds them; its inputs and outputs are operators of these names.

    Raises:
        UsageError: the file is not ONNX.
    """
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as err:  # protobuf's own types, by what the bytes happen to say
        raise UsageError(f"{path} is not an ONNX file: {first_line(err)}", "give an .onnx file") from err
    names = [node.name or f"{node.op_type}_{i}" for i, node in enumerate(graph.node)]
    held = {item.name for item in graph.initializer}
    fed = [item.name for item in graph.input if item.name not in held]
    makers = {value: value for value in fed}
    makers |= {value: name for name, node in zip(names, graph.node, strict=True) for value in node.output}
    return (
        *(Operator(name=name, op="input", inputs=()) for name in fed),
        *(
            Operator(name=name, op=node.op_type, inputs=tuple(makers[value] for value in node.input if value in makers))
            for name, node in zip(names, graph.node, strict=True)
        ),
        *(Operator(name=f"{item.name}:0", op="output", inputs=(makers[item.name],)) for item in graph.output),
    )


def layer_macs(proto: Any) -> dict[str, int]:
    """Return the multiply-accumulates of one inference, by node; of a model with the shapes of all its values.

    Raises:
        KeyError: a value without a shape.
    """
    shapes = _shapes(proto.graph)
    return {node.name: int(_macs(node, shapes)) for node in proto.graph.node if node.op_type in LAYER_OPS}


def file_work(path: Path, inputs: Sequence[TensorSpec]) -> ModelWork:
    """Return what a float file computes and looks up.

    Where onnx cannot infer the shapes, each layer counts as one, and those beside convolutions as none.
    """
    import onnx

    proto = fixed(onnx.load(str(path)), inputs)
    try:
        layers = onnx_layers(proto)
    except (KeyError, ValueError):
        names = {node.name: 1 for node in proto.graph.node if node.op_type in LAYER_OPS}
        layers = onnx_layers(proto, names)
        if convolutions := [layer for layer in layers if "Conv" in layer.op]:
            layers = tuple(convolutions)
    macs: Counter[str] = Counter()
    for layer in layers:
        kind = "convolution" if "Conv" in layer.op else layer.op if layer.op in RECURRENT else "linear"
        macs["attention" if layer.of_activations else kind] += layer.macs
    return ModelWork(
        convolution_macs=macs["convolution"],
        linear_macs=macs["linear"],
        lstm_macs=macs["LSTM"] + macs["DynamicQuantizeLSTM"],
        gru_macs=macs["GRU"],
        rnn_macs=macs["RNN"],
        attention_macs=macs["attention"],
        attention_products=sum(layer.of_activations for layer in layers),
        table_share=_table_share(proto.graph),
    )


def _table_share(graph: Any) -> float:
    """Return the share of a graph's float constants that Gather reads rows of."""
    from onnx import TensorProto

    sizes = {item.name: math.prod(item.dims) for item in graph.initializer if item.data_type == TensorProto.FLOAT}
    lookups = [node for node in graph.node if node.op_type == "Gather" and not any(one.i for one in node.attribute)]
    tables = {node.input[0] for node in lookups}
    return float(sum(size for name, size in sizes.items() if name in tables) / max(sum(sizes.values()), 1))


def fixed(proto: Any, inputs: Sequence[TensorSpec]) -> Any:
    """Return a copy with static input sizes and the shapes of all values that onnx can infer."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    sizes = {spec.name: spec.shape for spec in inputs}
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del copy.graph.value_info[:]
    for value in copy.graph.output:  # an open size is inferred anew
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def elements(proto: Any) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype the graph holds as constants."""
    import onnx

    tally: Counter[str] = Counter()
    in_int4 = {node.input[1] for node in proto.graph.node if node.op_type == INT4_OP}
    for item in proto.graph.initializer:
        if item.name in in_int4:  # two to a byte
            tally["int4"] += 2 * math.prod(item.dims)
            continue
        tally[str(onnx.helper.tensor_dtype_to_np_dtype(item.data_type))] += math.prod(item.dims)
    return tuple(sorted(tally.items()))


def _weights(proto: Any) -> Iterator[Any]:
    """Yield the constants as arrays, whole numbers without their zero point."""
    import onnx

    held = {item.name: item for item in proto.graph.initializer}
    points = {
        node.input[0]: node.input[2] for node in proto.graph.node if len(node.input) > 2 and "Dequ" in node.op_type
    }
    in_int4 = {node.input[1] for node in proto.graph.node if node.op_type == INT4_OP}
    for name, item in held.items():
        values = onnx.numpy_helper.to_array(item)
        if name in in_int4:
            yield int4_codes(values)
            continue
        # what ONNX Runtime's tool stores for its integer operators has a zero point by name alone
        point = held.get(points.get(name, f"{name.removesuffix('_quantized')}_zero_point"))
        offset = (
            onnx.numpy_helper.to_array(point) if point is not None and values.dtype == np.uint8 else np.zeros((), int)
        )
        yield (values != offset).astype(np.uint8) if offset.size == 1 and offset.any() else values


def _constants(graph: Any) -> dict[str, Any]:
    """Return the onnx.TensorProto of each value that is stored, by its name."""
    stored = {item.name: item for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    return stored | {node.output[0]: node.attribute[0].t for node in nodes}


def _readers(graph: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each value, by its name."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name, of the values that have one: onnx notes the type alone where it cannot infer more."""
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {item.name: tuple(item.dims) for item in graph.initializer}


def _macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    second = 3 if node.op_type in _WITH_SCALES else 1
    source, weight, output = node.input[0], node.input[second], node.output[0]
    if node.op_type in _CONV:
        transposed = node.op_type == "ConvTranspose"
        return conv_macs(shapes[weight], shapes[output], shapes[source], transposed=transposed)
    if node.op_type in _MATRIX:
        if output in shapes and source in shapes:
            return matmul_macs(shapes[source], shapes[output][-1] if shapes[output] else 1)
        # [..., K] x [..., K, columns]: where onnx infers no more, the weight tells one of the factors
        swapped = any(item.name == "transB" and item.i for item in node.attribute)
        inner, columns = shapes[weight][-2:] if not swapped else shapes[weight][-2:][::-1]
        return matmul_macs(shapes[source], columns) if source in shapes else math.prod(shapes[output]) * inner
    # input [T, B, I]; the weights of input and hidden state, [directions, gates * H, I or H], meet every step; outputs
    # that nothing uses have empty names
    return math.prod(shapes[source][:2]) * (math.prod(shapes[weight]) + math.prod(shapes[node.input[2]]))


def _is_of_input(fed: Collection[str], makers: Mapping[str, Any], name: str) -> bool:
    """Whether a value depends on an input of the graph, and not on constants alone."""
    waiting, seen = [name], {name}
    while waiting:
        one = waiting.pop()
        if one in fed:
            return True
        fresh = [source for source in (makers[one].input if one in makers else ()) if source not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _nbytes(held: Mapping[str, Any], makers: Mapping[str, Any], name: str) -> int:
    """Return the bytes of the constant that a value comes from; 0 where it comes from the input."""
    import onnx

    while name not in held:
        node = makers.get(name)
        if node is None or node.op_type not in _PASSING:
            return 0
        name = node.input[0]
    item = held[name]
    width = int(onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize)
    return int(math.prod(item.dims)) * width


# --- ONNX Runtime's own format, for its mobile builds: written by the runtime itself, after its optimizations.


def write_ort(source: Path) -> Path:
    """Convert `model.onnx` to `model.ort` in the same folder, and remove the former.

    Fused up to ORT_ENABLE_EXTENDED, since a reduced build cannot fuse; the level above has x86 layouts, and with them
    kernels that only some CPUs have.

    Raises:
        UnsupportedError: ONNX Runtime does not accept the model.
    """
    import onnxruntime

    target = source.with_suffix(".ort")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime raises a type for each of its codes
        what = f"ONNX Runtime cannot write the model in its own format: {first_line(err)}"
        raise UnsupportedError(what, "use a target whose file_format is onnx") from err
    target.write_bytes(settled(target.read_bytes()))
    source.unlink()
    return target
