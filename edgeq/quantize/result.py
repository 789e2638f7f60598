"""What the methods share: the copy that they start from, and the end, which is an error where nothing was quantized."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from edgeq.artifacts import LayerSqnrs, QuantizedModel, Tuning
from edgeq.errors import UnsupportedError
from edgeq.quantize.reusing import Converted
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
) -> QuantizedModel:
    """Return the result of a method.

    Args:
        scheme: its name.
        graph: what the artifact is to compute.
        layers: names of the layers that were quantized, and of those left in float.
        covers: which layers the scheme is for, in words.
        steps: quantization steps of the outputs, where they are quantized.
        tuning: what training came to, for schemes that train.
        converted: scales and zero points, for schemes that observe them, and what was kept of a shipped model.
        layer_sqnrs: against the float graph, for schemes that calibrate one.

    Raises:
        UnsupportedError: no layer was quantized.
    """
    quantized, in_float = layers
    _require(quantized, scheme, covers)
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
    )


def _require(quantized: Sequence[str], scheme: str, covers: str) -> None:
    if not quantized:
        what = f"{scheme} quantized nothing: the model has no {covers} layer left for it"
        raise UnsupportedError(what, "use another --scheme (fp32 keeps all in float), or take --keep-fp32 back")


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
        what = f"{scheme} exchanges modules on TorchScript targets, and an exported program has none"
        raise UnsupportedError(what, "give the model's factory, or use an ExecuTorch target")
    return copy.deepcopy(spec.model.model)


def type_names(module: Any) -> dict[str, str]:
    """Return the type's name of every module, by the module's name."""
    return {name: type(part).__name__ for name, part in module.named_modules()}
