"""What the methods share: the copy that they start from, and the end, which is an error where nothing was quantized."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.results.model import LayerSqnrs, QuantizedModel, Tuning
from edgeq.core.system import Uncompiled
from edgeq.quantize.reuse import Converted
from edgeq.quantize.spec import QuantizeSpec


def quantized_model(
    scheme: str,
    graph: Any,
    layers: tuple[Sequence[str], Sequence[str]],
    *,
    covers: str = "convolution or linear",
    steps: tuple[float | None, ...] = (),
    tuning: Tuning | None = None,
    converted: Converted | None = None,
    layer_sqnrs: LayerSqnrs | None = None,
    by_plan: Mapping[str, Sequence[str]] | None = None,
) -> QuantizedModel:
    """Return the result of a method.

    Args:
        scheme: its name.
        graph: what the artifact is to compute.
        layers: names of the layers that were quantized, and of those left in float.
        covers: the layers that the scheme is for, as text.
        steps: quantization steps of the outputs, where they are quantized.
        tuning: results of training, for schemes that train.
        converted: scales and zero points, for schemes that observe them, and what was kept of a shipped model.
        layer_sqnrs: against the float graph, for schemes that calibrate one.
        by_plan: names of other layers that stay in float, by the reason.

    Raises:
        UnsupportedError: no layer was quantized.
    """
    quantized, in_float = layers
    if not quantized:
        what = f"{scheme} quantized nothing: the model has no {covers} layer that it could quantize"
        raise UnsupportedError(what, "use another --scheme (fp32 keeps everything in float), or omit --keep-fp32")
    if layer_sqnrs is not None:
        judged = (dataclasses.replace(one, is_int8=one.layer not in in_float) for one in layer_sqnrs.layers)
        layer_sqnrs = dataclasses.replace(layer_sqnrs, layers=tuple(judged))
    return QuantizedModel(
        scheme=scheme,
        graph=graph,
        quantized=tuple(quantized),
        kept_fp32=tuple(in_float),
        output_steps=steps,
        tuning=tuning,
        qparams=converted.settled.qparams if converted else (),
        fresh=converted.settled.fresh if converted else (),
        kept=converted.kept if converted else None,
        layer_sqnrs=layer_sqnrs,
        in_float={why: tuple(dict.fromkeys(names)) for why, names in (by_plan or {}).items() if names},
    )


def float_model(graph: Any, exported: Any = None) -> QuantizedModel:
    """Return the result of fp32, which quantizes nothing.

    Args:
        graph: what the artifact is to compute.
        exported: the program that the graph is of; None where the model was not exported yet.
    """
    outputs = 1 if exported is None else len(exported.graph_signature.user_outputs)
    return QuantizedModel(
        scheme="fp32", graph=graph, exported=exported, quantized=(), kept_fp32=(), output_steps=(None,) * outputs
    )


def float_copy(spec: QuantizeSpec, scheme: str) -> Any:
    """Return a copy of the float module, for methods that exchange its parts.

    Raises:
        UnsupportedError: an exported program, which has no modules to exchange.
    """
    if spec.model.kind == "exported":
        what = f"{scheme} replaces modules on TorchScript targets, but an exported program has none"
        raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch target")
    return copy.deepcopy(spec.model.model)


def type_names(module: Any) -> dict[str, str]:
    """Return the type's name of every module, by the module's name."""
    return {name: type(part).__name__ for name, part in module.named_modules()}


# --- The quantization steps of a TorchScript model's outputs, seen in a run.


# what moves values and changes none of them
_REARRANGING = frozenset({"view", "_unsafe_view", "clone", "permute", "transpose", "squeeze", "unsqueeze", "select"})


def output_steps(converted: Any, inputs: tuple[Any, ...]) -> tuple[float | None, ...]:
    """Return the scale of each output that leaves the graph straight from a quantized tensor.

    Seen in a run: which operators keep a scale is PyTorch's to know.

    Args:
        converted: a quantized module.
        inputs: tensors that it takes.

    Raises:
        UnsupportedError: the engine of the process cannot run it.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    steps: list[tuple[Any, float]] = []  # the tensors too, so that no id is used again

    def step_of(tensor: Any) -> float | None:
        return next((step for known, step in steps if known is tensor), None)

    class Recorder(Uncompiled, TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operator."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            op = func.__name__.partition(".")[0]
            if op == "dequantize" and args[0].qscheme() == torch.per_tensor_affine:
                steps.append((result, float(args[0].q_scale())))
            elif op in _REARRANGING and (step := step_of(args[0])) is not None:
                steps.append((result, step))
            return result

    try:
        with torch.no_grad(), Recorder():
            outputs = torch.utils._pytree.tree_leaves(converted(*inputs))
    except Exception as err:  # each engine lacks operators, shapes and ratios of scales, and says so in its own way
        what = f"the {torch.backends.quantized.engine} engine cannot run the quantized model: {first_line(err)}"
        fix = "keep the failing module in float (--keep-fp32), or use an ExecuTorch target"
        raise UnsupportedError(what, fix) from err
    return tuple(step_of(leaf) for leaf in outputs)
