"""Fusion and quantization: a table of schemes, a module for each method."""

from __future__ import annotations

from collections.abc import Callable

from edgeq.artifacts import QuantizedModel
from edgeq.errors import UnsupportedError
from edgeq.quantize import fx, pt2e
from edgeq.quantize.spec import QuantizeSpec
from edgeq.scheme import TRAINED_SCHEMES

METHODS: dict[tuple[str, str], Callable[[QuantizeSpec], QuantizedModel]] = {
    ("executorch", "fp32"): pt2e.fp32,
    ("executorch", "static-int8"): pt2e.static_int8,
    ("executorch", "qat-int8"): pt2e.qat_int8,
    ("torchscript", "fp32"): fx.fp32,
    ("torchscript", "static-int8"): fx.static_int8,
    ("torchscript", "qat-int8"): fx.qat_int8,
}
NEEDS_CALIBRATION = frozenset({"static-int8", "qat-int8"})
NEEDS_TRAINING = frozenset(TRAINED_SCHEMES)


def quantize(runtime: str, scheme: str, spec: QuantizeSpec) -> QuantizedModel:
    """Quantize by the scheme's method for this runtime.

    Raises:
        UnsupportedError: the runtime has no such scheme, or nothing could be quantized.
    """
    method = METHODS.get((runtime, scheme))
    if method is None:
        can = ", ".join(name for kind, name in METHODS if kind == runtime)
        raise UnsupportedError(f"{runtime} cannot run scheme {scheme}", f"it can: {can}")
    return method(spec)
