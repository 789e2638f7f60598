"""The end of every method: what was quantized, or the error that nothing was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError


def quantized_model(
    scheme: str,
    graph: Any,
    layers: tuple[Sequence[str], Sequence[str]],
    *,
    covers: str = "convolution or linear",
    steps: tuple[float | None, ...] = (),
) -> QuantizedModel:
    """Return the result of a method.

    Args:
        scheme: its name.
        graph: what the artifact is to compute.
        layers: names of the layers that were quantized, and of those left in float.
        covers: which layers the scheme is for, in words.
        steps: quantization steps of the outputs, where they are quantized.

    Raises:
        UnsupportedError: no layer was quantized.
    """
    quantized, kept = layers
    if not quantized:
        what = f"{scheme} quantized nothing: the model has no {covers} layer left for it"
        raise UnsupportedError(what, "use another --scheme (fp32 keeps all in float), or take --keep-fp32 back")
    return QuantizedModel(
        scheme=scheme,
        graph=graph,
        exported=None,
        quantized=tuple(quantized),
        kept_fp32=tuple(kept),
        output_steps=steps,
    )
