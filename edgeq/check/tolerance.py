"""How far two runs that should agree may differ."""

from __future__ import annotations

# one quantization step; the rest is what float32 loses in dividing a difference by the step
MAX_STEPS = 1.0 + 1e-3
# float32 kernels that sum in another order stay above 100 dB; 60 dB is a difference of a thousandth. Half has 11 bits,
# bfloat16 has 8, and an artifact may sum in them where its graph sums in float32
MIN_SQNR_DB_FLOAT: dict[str, float] = {
    "fp32": 60.0,
    "storage-fp16": 60.0,
    "weight-only-int8": 60.0,
    "fp16": 40.0,
    "bf16": 25.0,
}
# the two round int8 activations differently, and no output is quantized that could be counted in steps
MIN_SQNR_DB_INT8 = 30.0
# below this the difference is a third of the signal, and no comparison with the graph means anything
MIN_SQNR_DB_DEEP = 10.0
# mean difference beside the mean magnitude: float32 kernels that sum in another order stay below a tenth of this
MAX_RELATIVE_FP32 = 1e-5


def least_sqnr_db(scheme: str) -> float:
    """Return the least signal-to-difference ratio where outputs are not counted in steps."""
    return MIN_SQNR_DB_FLOAT.get(scheme, MIN_SQNR_DB_INT8)
