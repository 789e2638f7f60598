"""PT2E quantization for ExecuTorch, ONNX and OpenVINO: int8 weights per channel, activations per tensor."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.results.model import (
    BATCHED,
    BEFORE_LOGARITHM,
    COMPUTED,
    EXACT,
    NO_INT4_GROUP,
    NO_KERNEL,
    RECURRENT,
    TRANSPOSED,
    GroupedWeight,
    QuantizedModel,
    Tuning,
)
from edgeq.core.runtimes import ETHOS_U, has_int8_recurrent
from edgeq.core.schemes import A8W4_SCHEME, SMALLEST_SCALE, SchemeName, int4_groups
from edgeq.core.speedups import decomposed
from edgeq.core.system import replaced, unlogged
from edgeq.quantize import ethos
from edgeq.quantize.before_logs import IN_FLOAT_BY_PLAN, leave_lost_fronts_in_float, multiplies
from edgeq.quantize.calibrate import activation_observer, calibrate, observed
from edgeq.quantize.capture import MODULE_KEY, capture_batched, example_tensors
from edgeq.quantize.fake_quant import leave_in_float, observes_weight, part_at
from edgeq.quantize.fx_workarounds import observe_after_activations
from edgeq.quantize.layer_error import FloatRun, float_run
from edgeq.quantize.products import WHY_IN_FLOAT, write_as_linear
from edgeq.quantize.pt2e_workarounds import (
    IN_FLOAT,
    coordinates,
    functional,
    keep_whole_numbers,
    leave_scalars_and_empties,
    leave_wide_softmax,
    part_silu,
    plain_clamps,
    prepare_layers,
    separate_outputs,
    without_copies,
)
from edgeq.quantize.qat import Library, tune
from edgeq.quantize.qparams import settle
from edgeq.quantize.result import float_model, quantized_model
from edgeq.quantize.reuse import Converted, convert_reusing
from edgeq.quantize.rounded import in_groups
from edgeq.quantize.shared_ranges import has_joins, unshare
from edgeq.quantize.spec import CLAMPING, FUSED_IN_FLOAT, UNSIGNED, QuantizeSpec, inside, matched_names
from edgeq.quantize.weight_only import store_lookups

_LAYERS = frozenset(f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)) | {
    "linear",
    "convolution",
}

_NORM_PATTERNS: dict[Any, Any] = {}  # by what distinguishes them, their exported graphs

_RECURRENT = {
    "aten.lstm.input": "LSTM",
    "aten.gru.input": "GRU",
    "aten.rnn_tanh.input": "RNN",
    "aten.rnn_relu.input": "RNN",
}


def fp32(spec: QuantizeSpec) -> QuantizedModel:
    """Leave the captured model as it is."""
    return float_model(spec.captured.module(), spec.captured)


def static_int8(
    spec: QuantizeSpec,
    *,
    scheme: str = "static-int8",
    program: Any = None,
    train: Callable[[Any], Tuning] | None = None,
) -> QuantizedModel:
    """Calibrate and convert the captured model.

    Args:
        spec: the model, its calibration samples and options.
        scheme: named in the result.
        program: the ExportedProgram to quantize; None for the captured one.
        train: trains the prepared graph between calibration and conversion.

    Raises:
        UnsupportedError: no layer was quantized.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    is_observer = library().is_observer
    graph = float_graph(spec.captured if program is None else program, spec.backend)
    with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
        prepared = prepare(graph, spec, scheme=scheme)
        # a second observer of each value that shares one costs time
        frees_joins = spec.backend not in ETHOS_U and has_joins(prepared)  # in float, they would leave the NPU
        with observed(prepared, is_observer if frees_joins else lambda _part: False) as ranges:
            calibrate(prepared, spec.calibration, spec.inputs, task)
    if spec.backend not in ETHOS_U:
        unshare(prepared, ranges.alone, is_observer, spec.backend)
    before = watched(prepared, spec)
    tuning = train(prepared) if train else None
    if spec.sticky is None:
        settled = settle(prepared, spec.shipped, is_observer)
        converted = Converted(graph=_finished(convert_pt2e(prepared), spec.backend), settled=settled)
    else:
        converted = convert_reusing(prepared, spec, lambda graph: convert(graph, spec.backend), is_observer)
    return quantized_model(
        scheme,
        converted.graph,
        split_layers(converted.graph),
        steps=output_steps(converted.graph),
        tuning=tuning,
        converted=converted,
        layer_sqnrs=before.against(converted.graph),
        by_plan=prepared.meta[IN_FLOAT_BY_PLAN],
    )


def static_a16w8(spec: QuantizeSpec) -> QuantizedModel:
    """Calibrate and convert the captured model with activations in int16; raises the errors of `static_int8`."""
    return static_int8(spec, scheme="static-a16w8")


def qat_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Calibrate the captured model, train it from there, and convert it.

    Batch norm is folded before training, with its own eps: `prepare_qat_pt2e` would train it batch by batch, and
    reset its eps and momentum.

    Raises:
        UnsupportedError, UsageError: as `static_int8`.
        AccuracyError: as `qat.tune`.
    """
    program = capture_batched(spec.model) or spec.captured
    teacher = program.module()

    def train(prepared: Any) -> Tuning:
        # torchao lets nobody call these; batch norm and dropout are gone, so that they would change nothing
        for name in ("train", "eval"):
            vars(prepared).pop(name, None)
        return tune(prepared, teacher, spec, library())

    return static_int8(spec, scheme="qat-int8", program=program, train=train)


def float_graph(program: Any, backend: str) -> Any:
    """Return the torch.fx.GraphModule of an exported program, of its own, that `prepare` takes over.

    Args:
        program: an ExportedProgram.
        backend: of the target. For Ethos-U the graph does not check its inputs: Arm's passes (ExecuTorch 1.5.1) take
            that call for an operator, and refuse it.
    """
    written = functional(program)
    graph = written.module(check_guards=backend not in ETHOS_U)
    graph = graph if written is program else without_copies(graph)
    write_as_linear(graph)
    return graph


def watched(prepared: Any, spec: QuantizeSpec) -> FloatRun:
    """Return what the layers of a prepared graph give in float, to compare its quantized form with."""
    return float_run(prepared, spec.calibration, spec.inputs, is_observer=library().is_observer, name_of=_layer_name)


def library() -> Library:
    """Return what tells torchao's observers."""
    from torchao.quantization.pt2e.observer import FixedQParamsObserver, _is_activation_post_process

    return Library(is_observer=_is_activation_post_process, fixed=FixedQParamsObserver)


def prepare(graph: Any, spec: QuantizeSpec, *, scheme: str = "static-int8") -> Any:
    """Return a captured graph with observers, of the values that a layer in int8 reads or writes; it takes it over.

    Raises:
        UnsupportedError: the quantizer cannot take the graph.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    if spec.backend in ETHOS_U:
        prepared = _prepared(graph, ethos.quantizer(spec, scheme, _kept_names(graph, spec)))
        prepared.meta[IN_FLOAT_BY_PLAN] = {}
        return prepared
    is_float = _left_in_float(graph, spec)
    prepare_layers(graph, norms_in_float=is_float or (lambda _norm: False))
    leave_wide_softmax(graph)
    if spec.backend == "ort":
        part_silu(graph)
    if spec.backend == "xnnpack":
        leave_scalars_and_empties(graph)
    if spec.backend in CLAMPING:
        plain_clamps(graph)
    computed = {node for node in graph.graph.nodes if _is_layer(node) and node.args[1].op != "get_attr"}
    for node in coordinates(graph.graph) | computed:
        node.meta[IN_FLOAT] = True
    prepared = _prepared(graph, _quantizer(spec, is_float))
    if is_float is not None:
        layers = {node: layer_of(prepared, node) is not None for node in prepared.graph.nodes if _is_layer(node)}
        known = {node: is_int8 for node, is_int8 in layers.items() if is_int8 or is_float(node)}
        leave_in_float(prepared, library().is_observer, known)
    front = leave_lost_fronts_in_float(prepared, library().is_observer, spec)
    of_computed = {node.name for node in computed}
    products = [(node.meta.get(WHY_IN_FLOAT), _name_in_table(node)) for node in prepared.graph.nodes]
    by_computed = [node for node in prepared.graph.nodes if node.name in of_computed]
    for node in (*front, *by_computed):  # the name of a function in the model's own forward changes when it is lowered
        if multiplies(prepared, node):
            node.meta["custom"] = {**node.meta.get("custom", {}), MODULE_KEY: _name_in_table(node)}
    # of a layer that is called again behind the logarithm, the name tells nothing
    elsewhere = {_name_in_table(node) for node in prepared.graph.nodes if _is_layer(node) and node not in front}
    names = {_name_in_table(node) for node in front if multiplies(prepared, node)}
    kinds = [(_RECURRENT.get(str(node.target), ""), _name_in_table(node)) for node in prepared.graph.nodes]
    recurrent = [(kind, name) for kind, name in kinds if kind]
    prepared.meta[IN_FLOAT_BY_PLAN] = {
        BEFORE_LOGARITHM: sorted(names - elsewhere),
        RECURRENT: [name for kind, name in recurrent if has_int8_recurrent(spec.backend, kind)],
        NO_KERNEL: [name for kind, name in recurrent if not has_int8_recurrent(spec.backend, kind)],
        **{reason: [name for why, name in products if why == reason] for reason in (BATCHED, EXACT)},
        COMPUTED: [_name_in_table(node) for node in by_computed],
        TRANSPOSED: [
            _name_in_table(node)
            for node in prepared.graph.nodes
            if spec.backend != "xnnpack" and _is_layer(node) and "transpose" in node.target.__name__
        ],
    }
    if spec.backend in UNSIGNED:
        fused = FUSED_IN_FLOAT.get(spec.backend, frozenset())
        observe_after_activations(prepared, library().is_observer, SMALLEST_SCALE, fused=fused)
    elif spec.backend in CLAMPING:
        observe_after_activations(prepared, library().is_observer, SMALLEST_SCALE, _LAYERS)
    return prepared


def convert(prepared: Any, backend: str) -> Any:
    """Return the quantized graph of a calibrated one, for a backend of ExecuTorch or ONNX Runtime."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    return _finished(convert_pt2e(prepared), backend)


def _finished(graph: Any, backend: str) -> Any:
    if backend == "xnnpack":
        separate_outputs(graph)
    _share_weights(graph)
    return _without_unused(graph)


def layer_of(prepared: Any, node: Any) -> str | None:
    """Return the module name of a prepared graph's node that is a convolution or a linear layer in int8, else None."""
    if not _is_layer(node):
        return None
    is_int8 = any(observes_weight(prepared, arg) for arg in node.args[1:2] if hasattr(arg, "op"))
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (_stack_name(stack[-1]) or None) if stack and is_int8 else None


def _is_layer(node: Any) -> bool:
    return node.op == "call_function" and node.target.__name__.split(".")[0] in _LAYERS


def _share_weights(graph: Any) -> None:
    """Let the calls of a layer read one int8 weight, in place: torchao gives each call one of its own."""
    first: dict[tuple[Any, ...], str] = {}
    for node in graph.graph.nodes:
        value = part_at(graph, node.target) if node.op == "get_attr" else None
        if value is not None and str(node.target).startswith("_frozen_param"):
            raw = value.detach().cpu().contiguous()
            key = (raw.dtype, tuple(raw.shape), raw.numpy().tobytes())
            node.target = first.setdefault(key, node.target)
    graph.recompile()


def _without_unused(graph: Any) -> Any:
    """Drop the float weights that int8 ones took the place of: torchao leaves them in the graph's modules."""
    used = tuple(node.target for node in graph.graph.nodes if node.op in ("get_attr", "call_module"))
    held = [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]
    for name in held:
        if not any(f"{name}.".startswith(f"{target}.") for target in used):
            place, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(place), leaf)
    return graph


def dynamic_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Give linear layers int8 weights per channel; XNNPACK quantizes each row of their inputs as it runs.

    The tables of embeddings are stored in int8, with a scale for each row.

    LSTM, GRU and RNN layers are unrolled into linear ones. Convolutions stay in float: ExecuTorch 1.5 lowers some
    dynamic ones, and its runtime then fails on them.

    Raises:
        UnsupportedError: no layer was quantized.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    return _dynamic(spec, "dynamic-int8")


def dynamic_a8w4(spec: QuantizeSpec) -> QuantizedModel:
    """Give linear layers int4 weights, a scale for each group of inputs; all else is as in `dynamic_int8`.

    Layers whose rows no group divides have int8 weights.

    Raises:
        UnsupportedError: no layer is in int4.
        UsageError: a --keep-fp32 name that the model does not have, or an --int4-group that is too small.
    """
    return _dynamic(spec, A8W4_SCHEME)


def _dynamic(spec: QuantizeSpec, scheme: SchemeName) -> QuantizedModel:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph = float_graph(_unrolled(spec.captured), spec.backend)
    is_float = _left_in_float(graph, spec) or (lambda _node: False)
    tables, tables_in_float = store_lookups(graph, _module_name, is_float)
    in_int4: list[GroupedWeight] = []
    undivided: list[str] = []
    if scheme == A8W4_SCHEME:
        sizes = int4_groups(scheme, spec.int4_group)
        weights = _linear_weights(graph, is_float)
        with spec.progress.task(f"round the weights of {spec.label}", len(weights), "layers") as task:
            for nodes, matrix in weights:
                names = tuple(dict.fromkeys(map(_name_in_table, nodes)))
                # XNNPACK keeps scales of groups in bfloat16, and takes positive ones alone
                found = in_groups(matrix, sizes, scale_type=torch.bfloat16, is_signed=False)
                if found is None:
                    undivided += names
                else:
                    _multiply_in_int8(graph, nodes, *found)
                    in_int4.append(GroupedWeight(layers=names, codes=found[0].numpy(), scales=found[1].numpy()))
                task.advance()
        graph.graph.eliminate_dead_code()
        graph.delete_all_unused_submodules()
        graph.recompile()
        if not in_int4:
            what = f"{scheme} quantized nothing: no group of {sizes[-1]} or more divides the rows of a linear layer"
            raise UnsupportedError(what, "use --scheme dynamic-int8, or omit --keep-fp32")
    prepare_layers(graph, norms_in_float=lambda _norm: True)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    quantizer.set_filter_function(
        lambda node: node.target is torch.ops.aten.linear.default and not (is_float(node) or _is_grouped(node.args[1]))
    )
    prepared = _prepared(graph, quantizer)
    with torch.no_grad():
        prepared(*example_tensors(spec.inputs))  # the observers of weights see them in a run
    converted = convert_pt2e(prepared)
    quantized, in_float = split_layers(converted)
    # of tables alone dynamic-int8 makes nothing that runs in int8
    layers = (quantized and [*quantized, *tables], [*in_float, *tables_in_float])
    made = quantized_model(scheme, converted, layers, covers="linear or recurrent", by_plan={NO_INT4_GROUP: undivided})
    return dataclasses.replace(made, runs_as=_by_row(converted), grouped=tuple(in_int4))


def _linear_weights(graph_module: Any, is_float: Callable[[Any], bool]) -> list[tuple[list[Any], Any]]:
    """Return the float32 weights that linear layers of an exported graph read: of each these layers, and the matrix.

    Args:
        graph_module: a torch.fx.GraphModule of ATen operators.
        is_float: whether a layer is to stay in float.
    """
    import torch

    found: dict[str, tuple[list[Any], Any]] = {}
    for node in graph_module.graph.nodes:
        if node.target is not torch.ops.aten.linear.default or node.args[1].op != "get_attr" or is_float(node):
            continue
        weight = operator.attrgetter(node.args[1].target)(graph_module)
        if weight.dtype == torch.float32:
            found.setdefault(node.args[1].target, ([], weight.detach()))[0].append(node)
    return [*found.values()]


_ORIGIN = ("nn_module_stack", "stack_trace", "custom")  # what tells whose node it is


def _multiply_in_int8(graph_module: Any, layers: Sequence[Any], codes: Any, scales: Any) -> None:
    """Let linear layers multiply int8 by a matrix in int4, each row of their inputs quantized as the graph runs.

    The operators are those that torchao's `Int8DynamicActivationIntxWeightConfig` exports, which XNNPACK's partitioner
    (ExecuTorch 1.5.1) takes for one kernel, QD8 by QB4W.

    Args:
        graph_module: changed in place.
        layers: its nodes of linear layers that read the matrix.
        codes: int8 [out, groups, size of a group], from -8 to 7.
        scales: float32 [out, groups], positive.
    """
    import torch

    with unlogged():  # torchao's import has torch warn of torchao's own enumerations
        import torchao.quantization.quant_primitives  # noqa: F401  # registers the operators

    ao, graph = torch.ops.torchao, graph_module.graph
    name = f"{str(layers[0].args[1].target).replace('.', '_')}_int4"
    parts = {"": codes.flatten(1), "_scale": scales, "_zero_point": torch.zeros_like(scales, dtype=torch.int8)}
    for suffix, value in parts.items():
        graph_module.register_buffer(name + suffix, value.contiguous())
    for node in layers:
        source = node.args[0]
        row = [1] * (source.meta["val"].dim() - 1) + [source.meta["val"].shape[-1]]
        steps = (torch.int8, -128, 127)
        with graph.inserting_before(node):
            chosen = graph.call_function(
                ao.choose_qparams_affine.default, (source, "ASYMMETRIC", row, *steps, None, None, torch.int8)
            )
            scale, zero_point = (graph.call_function(operator.getitem, (chosen, place)) for place in (0, 1))
            rounded = graph.call_function(ao.quantize_affine.default, (source, row, scale, zero_point, *steps))
            value = graph.call_function(
                ao.dequantize_affine.default, (rounded, row, scale, zero_point, *steps, torch.float32)
            )
            held, its_scale, its_zero_point = (graph.get_attr(name + suffix) for suffix in parts)
            weight = graph.call_function(
                ao.dequantize_affine.default,
                (held, [1, codes.shape[-1]], its_scale, its_zero_point, torch.int8, -8, 7, torch.float32),
            )
        for made in (chosen, scale, zero_point, rounded, value, weight):
            made.meta = {
                key: node.meta[key] for key in ("nn_module_stack", "stack_trace", "custom") if key in node.meta
            }
        node.args = (value, weight, *node.args[2:])


def _is_grouped(node: Any) -> bool:
    """Whether a node is a matrix in int4, as a layer of `_multiply_in_int8` reads it."""
    return getattr(node.target, "__name__", "") == "dequantize_affine.default" and node.args[0].op == "get_attr"


def _by_row(converted: Any) -> Any:
    """Return a graph in dynamic int8 with each row of an input quantized by itself, as XNNPACK runs it.

    PT2E has a scale for all of them together: rows that are small beside others differ from the artifact's by more than
    parity allows.
    """
    import torch

    graph, ops = copy.deepcopy(converted.graph), torch.ops.quantized_decomposed
    for node in [node for node in graph.nodes if node.target is ops.dequantize_per_tensor.tensor]:
        if node.args[0].op == "get_attr":  # a constant, which XNNPACK then refuses
            continue
        value, limits = node.args[0].args[0], node.args[3:6]
        with graph.inserting_before(node):
            chosen = graph.call_function(ops.choose_qparams_per_token_asymmetric.default, (value, torch.int8))
            scales = [graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1)]
            rounded = graph.call_function(ops.quantize_per_token.default, (value, *scales, *limits))
            args = (rounded, *scales, *limits, torch.float32)
            node.replace_all_uses_with(graph.call_function(ops.dequantize_per_token.default, args))
    made = torch.fx.GraphModule(converted, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _unrolled(program: Any) -> Any:
    """Return the program with its recurrent layers taken apart, where it has any."""
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    kinds = [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]
    if not any(node.target in kinds for node in program.graph.nodes):
        return program
    return decomposed(program, get_decompositions(kinds))


def _prepared(graph: Any, quantizer: Any) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    keep_whole_numbers(graph)
    try:
        with _norm_patterns_where_norms_are():
            return prepare_pt2e(graph, quantizer)
    except Exception as err:  # torchao raises many types
        what = f"the quantizer cannot prepare this model: {first_line(err)}"
        raise UnsupportedError(what, "keep the layers named in this error in float (--keep-fp32)") from err


@contextlib.contextmanager
def _norm_patterns_where_norms_are() -> Iterator[None]:
    """Skip the XNNPACK quantizer's search for a convolution with its batch norm in graphs without a batch norm.

    For that search it exports 12 patterns with torch.export, anew for every model: seconds, nearly all of the time of
    `prepare_pt2e`. torchao folds batch norms into their convolutions before, so few graphs have one left; the graphs
    that have share the patterns.
    """
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils

    annotators = xnnpack_quantizer_utils.OP_TO_ANNOTATOR
    before = dict(annotators)

    def where_norms_are(annotate: Callable[..., Any]) -> Callable[..., Any]:
        def annotate_or_skip(graph: Any, *args: Any, **kwargs: Any) -> Any:
            if any("batch_norm" in str(node.target) for node in graph.graph.nodes):
                return annotate(graph, *args, **kwargs)
            graph.graph.eliminate_dead_code()  # as the search does
            graph.recompile()
            return []

        return annotate_or_skip

    export = xnnpack_quantizer_utils._get_aten_graph_module_for_pattern

    def exported(pattern: Any, inputs: Any, is_cuda: bool) -> Any:
        # what tells one pattern from another: its convolution, and whether a ReLU follows, and how
        key = (tuple(cell.cell_contents for cell in pattern.fn.__closure__), is_cuda)
        if key not in _NORM_PATTERNS:
            _NORM_PATTERNS[key] = export(pattern, inputs, is_cuda)
        return copy.deepcopy(_NORM_PATTERNS[key])  # the matcher takes the names out of the pattern that it gets

    annotators.update({name: where_norms_are(annotate) for name, annotate in before.items() if "_bn" in name})
    try:
        with replaced(xnnpack_quantizer_utils, "_get_aten_graph_module_for_pattern", exported):
            yield
    finally:
        annotators.update(before)


def _quantizer(spec: QuantizeSpec, is_float: Callable[[Any], bool] | None) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

    most = 63 if spec.reduce_range else 127
    config = get_symmetric_quantization_config(is_per_channel=True, weight_qmin=-most, weight_qmax=most)
    chosen = activation_observer(spec.observer, HistogramObserver, MinMaxObserver)
    activation = {
        name: dataclasses.replace(
            getattr(config, name), observer_or_fake_quant_ctr=chosen.with_args(eps=SMALLEST_SCALE), **_activation(spec)
        )
        for name in ("input_activation", "output_activation")
    }
    quantizer = XNNPACKQuantizer().set_global(dataclasses.replace(config, **activation))
    quantizer.set_filter_function(lambda node: IN_FLOAT not in node.meta and not (is_float and is_float(node)))
    return quantizer


def _activation(spec: QuantizeSpec) -> dict[str, Any]:
    """Return what the backend's activations are, where they are not the XNNPACK quantizer's int8."""
    import torch

    return {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255} if spec.backend in UNSIGNED else {}


def _left_in_float(graph: Any, spec: QuantizeSpec) -> Callable[[Any], bool] | None:
    """Return whether a node belongs to a module that the user keeps in float, by name or type."""
    names = _kept_names(graph, spec)
    if not names:
        return None
    # a ModuleList is in no stack: nothing calls it
    return lambda node: any(inside(_stack_name(one), names) for one in node.meta.get("nn_module_stack", {}).values())


def _kept_names(graph: Any, spec: QuantizeSpec) -> frozenset[str]:
    """Return the names of the modules that the user keeps in float."""
    if not spec.keep_fp32:
        return frozenset()
    stacks = [list(node.meta.get("nn_module_stack", {}).values()) for node in graph.graph.nodes]
    modules = {_stack_name(entry): _type_name(entry[1]) for stack in stacks for entry in stack}
    if spec.model.kind == "module":  # names of modules that left no node, such as dropout, are no mistake
        modules |= {name: type(part).__name__ for name, part in spec.model.model.named_modules()}
    return matched_names(spec.keep_fp32, modules)


def _module_name(node: Any) -> str:
    """Return the name of the innermost module that a node belongs to, the node's own where that is the whole model."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (_stack_name(stack[-1]) if stack else "") or str(node.name)


def _stack_name(entry: tuple[str, Any]) -> str:
    return entry[0].removeprefix("L['self'].").removeprefix("L__self__.")


def _type_name(kind: Any) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else str(kind.__name__)


def _layer_name(_graph: Any, node: Any) -> str | None:
    """Return the name of a convolution or linear, in int8 or in float, as the table of layers has it; else None."""
    return _name_in_table(node) if _is_layer(node) else None


def _name_in_table(node: Any) -> str:
    return str(node.meta.get("custom", {}).get(MODULE_KEY) or node.name)


def split_layers(graph: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of convolutions and linears that compute in int8, and of those in float."""
    quantized: list[str] = []
    kept: list[str] = []
    for node in graph.graph.nodes:
        name = _layer_name(graph, node)
        if name is None:
            continue
        operands = [arg for arg in node.args[:2] if hasattr(arg, "target")]
        is_int8 = len(operands) == 2 and all("dequantize" in str(arg.target) for arg in operands)
        (quantized if is_int8 else kept).append(name)
    return tuple(quantized), tuple(kept)


def output_steps(graph: Any) -> tuple[float | None, ...]:
    """Return the scale of each output that a dequantize node gives."""
    import torch

    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    leaves = torch.utils._pytree.tree_leaves(output.args)
    is_step = ["dequantize_per_tensor" in str(getattr(leaf, "target", "")) for leaf in leaves]
    return tuple(
        float(leaf.args[1]) if found and isinstance(leaf.args[1], float) else None
        for leaf, found in zip(leaves, is_step, strict=True)
    )
