"""FX graph mode quantization for TorchScript's engines: QNNPACK on ARM, x86 and FBGEMM on hosts."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from edgeq.core.errors import EdgeqError, UnsupportedError, UsageError, first_line, user_line
from edgeq.core.results.model import (
    ASKED,
    BATCHED,
    BEFORE_LOGARITHM,
    EXACT,
    NO_KERNEL,
    RECURRENT,
    TRANSPOSED,
    QuantizedModel,
    Tuning,
)
from edgeq.core.schemes import ObserverName
from edgeq.quantize.before_logs import IN_FLOAT_BY_PLAN, leave_lost_fronts_in_float, multiplies
from edgeq.quantize.calibrate import activation_observer, calibrate
from edgeq.quantize.capture import example_tensors
from edgeq.quantize.eager import convert_eager, has_stubs, prepare_eager
from edgeq.quantize.fake_quant import leave_in_float
from edgeq.quantize.fx_export import exported_graph, products_of, with_product_layers
from edgeq.quantize.fx_observers import (
    is_int8_layer,
    layer_name,
    observe_inputs,
    place_observers,
    split_layers,
    with_weights,
)
from edgeq.quantize.fx_workarounds import (
    bound_clamps,
    clamped_layers,
    containers,
    contiguous_clamps,
    contiguous_images,
    exchange_layers,
    forget_configs,
    kept_names,
    leave_unlike_sums,
    observe_floats_only,
    open_layers,
    plain,
    saturate_clamps,
    without_mutations,
)
from edgeq.quantize.layer_error import FloatRun, float_run
from edgeq.quantize.qat import Library, tune
from edgeq.quantize.result import float_model, output_steps, quantized_model, type_names
from edgeq.quantize.reuse import convert_reusing
from edgeq.quantize.spec import QuantizeSpec


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Set the process's quantized engine for a step, and restore it.

    Raises:
        UnsupportedError: this torch was built without the engine.
    """
    import torch

    supported = torch.backends.quantized.supported_engines
    if name not in supported:
        what = f"this torch has no quantized engine {name!r}; it has {', '.join(supported)}"
        raise UnsupportedError(what, "run on a host with a torch build that has it")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def fp32(spec: QuantizeSpec) -> QuantizedModel:
    """Leave the model as it is; lowering folds conv-bn."""
    module = spec.model.model.module() if spec.model.kind == "exported" else spec.model.model
    return float_model(module)


def static_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Fuse, calibrate and convert by FX, or in eager mode a module that has QuantStub and DeQuantStub already.

    Raises:
        UnsupportedError: FX cannot trace the model (names module and line), or nothing was quantized.
        UsageError: a --keep-fp32 name that the model does not have, or a sample that does not fit.
    """
    return _int8(spec, "static-int8", train=None)


def qat_int8(spec: QuantizeSpec) -> QuantizedModel:
    """Fuse, calibrate, train from there, and convert by FX.

    Raises:
        UnsupportedError, UsageError: as `static_int8`.
        AccuracyError: as `qat.tune`.
    """
    return _int8(spec, "qat-int8", train=lambda prepared: tune(prepared, spec.model.model, spec, library()))


def library() -> Library:
    """Return what tells FX's observers."""
    from torch.ao.quantization.observer import FixedQParamsObserver, _is_activation_post_process

    return Library(is_observer=_is_activation_post_process, fixed=FixedQParamsObserver)


def _int8(spec: QuantizeSpec, scheme: str, *, train: Callable[[Any], Tuning] | None) -> QuantizedModel:
    refuse_exported(spec)
    eager = has_stubs(spec.model.model)
    inputs = example_tensors(spec.inputs)
    with engine(spec.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its deprecation on every call
        with spec.progress.task(f"calibrate {spec.label}", spec.calibration.count) as task:
            # eagerly: what the engine's mapping has for all that it does not name
            prepared = (
                prepare_eager(spec, _qconfig_mapping(spec.backend, spec.observer).global_qconfig)
                if eager
                else prepare(spec)
            )
            calibrate(prepared, spec.calibration, spec.inputs, task)
        before = None if eager else watched(prepared, spec)
        tuning = train(prepared) if train else None
        converted = convert_reusing(prepared, spec, _finish(inputs) if eager else convert, library().is_observer)
        steps = output_steps(converted.graph, inputs)
        layer_sqnrs = before.against(converted.graph) if before else None
    return quantized_model(
        scheme,
        converted.graph,
        split_layers(converted.graph),
        steps=steps,
        tuning=tuning,
        converted=converted,
        layer_sqnrs=layer_sqnrs,
        by_plan=prepared.meta[IN_FLOAT_BY_PLAN] if not eager else None,
    )


def _finish(inputs: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Return what converts a module that was prepared in eager mode."""
    return lambda prepared: _for_engine(convert_eager(prepared, inputs))


def watched(prepared: Any, spec: QuantizeSpec) -> FloatRun:
    """Return what the layers of a prepared graph give in float, to compare its quantized form with."""
    clamped = clamped_layers(prepared, functools.partial(is_int8_layer, prepared))
    return float_run(
        prepared,
        spec.calibration,
        spec.inputs,
        is_observer=library().is_observer,
        name_of=layer_name,
        clamps={one.before.args[0].name: one.clamp.name for one in clamped},
    )


def refuse_exported(spec: QuantizeSpec) -> None:
    """Refuse a program that has no modules to fuse.

    Raises:
        UnsupportedError: it is an exported one.
    """
    if spec.model.kind == "exported":
        what = "FX cannot quantize an exported program, since it fuses modules"
        raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch target")


def prepare(spec: QuantizeSpec) -> Any:
    """Return a fused copy of the model with observers, of the values that a layer in int8 reads or writes.

    Raises:
        UnsupportedError: FX cannot trace the model (names module and line), or what it writes in place.
        UsageError: a --keep-fp32 name that the model does not have.
    """
    import torch
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import prepare_fx

    # a copy, since preparing writes to the modules
    module, inputs = copy.deepcopy(spec.model.model), example_tensors(spec.inputs)
    types = type_names(module)
    opaque = containers(module, types, spec.keep_fp32)
    custom = PrepareCustomConfig().set_non_traceable_module_names(opaque)
    mapping = _qconfig_mapping(spec.backend, spec.observer)

    def observed(module: Any) -> tuple[Any, list[str]]:
        """Return the graph with observers, and the names of the modules that stay in float."""
        products = products_of(module)
        module, copies = plain(module, inputs, opaque)
        known = {**types, **dict.fromkeys(products.layers.values(), "Linear")}
        kept = sorted(products.like(kept_names(spec.keep_fp32, known, copies)))
        for name in kept:
            mapping.set_module_name(name, None)
        with without_mutations(inputs):
            prepared = observe_inputs(prepare_fx(module, mapping, inputs, custom), mapping.global_qconfig.activation)
            return observe_floats_only(prepared, inputs), kept

    exchange_layers(module)
    # FX calls PyTorch's own attention and encoder layers as a whole, in float, and replaces layers without their hooks
    by_export = "attention FX leaves in float" if open_layers(module, inputs) else ""
    by_export = by_export or ("hooks FX drops" if any(map(_has_hooks, module.modules())) else "")
    try:
        if by_export:
            graph = exported_graph(module, spec.inputs)
            products = products_of(graph)
            prepared, kept = observed(graph)
        else:
            (prepared, kept), products = with_product_layers(module, spec, observed)
    except UsageError:
        raise
    except Exception as err:  # FX's tracer raises its own and Python's errors from inside the user's forward
        if by_export:
            if isinstance(err, EdgeqError):
                raise
            what = f"torch.export cannot capture the model, whose {by_export}{user_line(err)}"
            raise UnsupportedError(f"{what}: {first_line(err)}", "make that line traceable") from err
        # torch.export follows much that FX cannot; FX is the first way, whose graphs have the model's own modules
        try:
            graph = exported_graph(module, spec.inputs)
            products = products_of(graph)
            prepared, kept = observed(graph)
        except Exception as other:  # torch.export raises many types, most of them internal
            if isinstance(err, EdgeqError):
                raise err from other
            what = f"FX cannot trace the model{user_line(err)}: {first_line(err)}"
            what += f"; its exported graph cannot be used either{user_line(other)}: {first_line(other)}"
            fix = "make that line traceable, keep the module in float (--keep-fp32), or use an ExecuTorch target"
            raise UnsupportedError(what, fix) from err
        with spec.progress.task(f"export {spec.label}") as task:
            task.note(f"FX cannot trace the model{user_line(err)}: quantizing its exported graph instead")
    leave_in_float(prepared, library().is_observer, with_weights(prepared, kept))
    front = leave_lost_fronts_in_float(prepared, library().is_observer, spec)
    forget_configs(prepared, front)
    # a function of the graph has its operator's name in the table of layers, which others elsewhere may have too
    functions = [node for node in prepared.graph.nodes if node.op != "call_module" and multiplies(prepared, node)]
    elsewhere = {_table_names(node) for node in functions if node not in front}
    prepared.meta[IN_FLOAT_BY_PLAN] = {
        ASKED: kept,
        BEFORE_LOGARITHM: [
            *(str(node.target) for node in front if node.op == "call_module" and multiplies(prepared, node)),
            *(name for names in {_table_names(node) for node in functions} - elsewhere for name in names),
        ],
        RECURRENT: [name for name, part in prepared.named_modules() if isinstance(part, torch.nn.LSTM | torch.nn.GRU)],
        NO_KERNEL: [name for name, part in prepared.named_modules() if isinstance(part, torch.nn.RNN)],
        TRANSPOSED: [
            name
            for name, part in prepared.named_modules()
            if spec.backend != "qnnpack" and isinstance(part, _transposed())
        ],
        BATCHED: ["bmm", "baddbmm"] if BATCHED in products.in_float else [],
        # not where others that no layer stands for would share the names
        EXACT: ["mm", "bmm", "addmm"] if EXACT in products.in_float and "" not in products.in_float else [],
    }
    return place_observers(prepared, spec, mapping.global_qconfig.activation)


def _has_hooks(part: Any) -> bool:
    """Whether a module has hooks of the user's; PyTorch's own compute weights, which stay where they are."""
    hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)


def _table_names(function: Any) -> tuple[str, ...]:
    """Return what a product that is called as a function may be named in the table of layers."""
    name = str(function.target if function.op == "call_method" else getattr(function.target, "__name__", ""))
    return ("convolution",) if "conv" in name else ("mm", "bmm", "addmm")


def convert(prepared: Any) -> Any:
    """Return the quantized graph of a calibrated one.

    Raises:
        UnsupportedError: the engine cannot pack a layer.
    """
    import torch
    from torch.ao.quantization.quantize_fx import convert_fx

    saturate_clamps(prepared, functools.partial(is_int8_layer, prepared), torch.backends.quantized.engine)
    bound_clamps(prepared)
    if torch.backends.quantized.engine == "qnnpack":
        leave_unlike_sums(prepared)
    try:
        return _for_engine(convert_fx(prepared))
    except Exception as err:  # the engines' packing raises many types
        what = f"FX cannot convert the model: {first_line(err)}"
        raise UnsupportedError(what, "keep that layer in float (--keep-fp32), or use an ExecuTorch target") from err


def _for_engine(converted: Any) -> Any:
    """Return a quantized module that the engine of the process computes rightly."""
    import torch

    if isinstance(converted, torch.fx.GraphModule):
        converted = contiguous_images(converted)
    return contiguous_clamps(converted) if torch.backends.quantized.engine == "qnnpack" else converted


def _transposed() -> tuple[type, ...]:
    from torch import nn

    return nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d


def _qconfig_mapping(backend: str, observer: ObserverName) -> Any:
    """Return the engine's own mapping, with the observer of activations exchanged."""
    import torch
    from torch.ao.quantization import HistogramObserver, MinMaxObserver, QConfig, get_default_qconfig_mapping

    mapping = get_default_qconfig_mapping(backend)
    for product in (torch.matmul, operator.matmul):
        # quantized::matmul computes in float, between two roundings that gain nothing
        mapping.set_object_type(product, None)
    mapping.set_object_type("matmul", None)
    if backend != "qnnpack":
        # FBGEMM garbles the weights of a transposed convolution when it unpacks them to save or copy (torch 2.15)
        for kind in _transposed():
            mapping.set_object_type(kind, None)
    chosen = activation_observer(observer, HistogramObserver, MinMaxObserver)

    def exchanged(config: Any) -> Any:
        if config is None or not isinstance(config.activation(), HistogramObserver):
            return config
        reduced = config.activation().reduce_range
        return QConfig(activation=chosen.with_args(reduce_range=reduced), weight=config.weight)

    mapping.set_global(exchanged(mapping.global_qconfig))
    for kind, config in list(mapping.object_type_qconfigs.items()):
        mapping.set_object_type(kind, exchanged(config))
    return mapping
