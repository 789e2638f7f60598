"""The quantization schemes, in PyTorch's words, and the limits that a run may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgeq.core.errors import ExitCode, UsageError, nearest
from edgeq.core.units import Dimension, parse_quantity

SchemeName = Literal[
    "fp32",
    "fp16",
    "bf16",
    "storage-fp16",
    "static-int8",
    "dynamic-int8",
    "8da4w",
    "weight-only-int8",
    "weight-only-int4",
    "weight-only-palette4",
    "qat-int8",
    "mixed-int8",
    "static-a16w8",
    "pretrained",
]

SCHEMES: tuple[SchemeName, ...] = get_args(SchemeName)

# not a scheme: asks for the cheapest scheme that passes every gate; the model decides which of the first two is tried
# first
AUTO: Literal["auto"] = "auto"

AskedScheme = Literal[SchemeName, "auto"]

# stands for a target's default in a plan, until the model is loaded and says which scheme that is; cannot be asked for
DEFAULT: Literal["default"] = "default"

PlannedScheme = Literal[SchemeName, "auto", "default"]


def default_schemes(schemes: tuple[SchemeName, ...]) -> tuple[SchemeName, ...]:
    """Return what the default of a target with these schemes may be: that of convolutional models, then others.

    A profile whose first scheme is not static-int8 has chosen for all models. `edgeq/pipeline/auto.py` chooses.
    """
    others: tuple[SchemeName, ...] = ("dynamic-int8", "weight-only-int8", "fp16")
    return (schemes[0], *(name for name in others if name in schemes)) if schemes[0] == "static-int8" else schemes[:1]


AUTO_TRIES: tuple[SchemeName, ...] = ("static-int8", "dynamic-int8", "mixed-int8", "qat-int8", "static-a16w8")


def auto_schemes(schemes: tuple[SchemeName, ...]) -> tuple[SchemeName, ...]:
    """Return what `auto` may try of a target's schemes, in no order of cost.

    A target whose default is a float scheme, as Core ML's is, has its float ones; so has one without any of AUTO_TRIES.
    """
    tries = () if FLOAT_SCHEMES & {*schemes[:1]} else tuple(name for name in AUTO_TRIES if name in schemes)
    return tries or tuple(name for name in schemes if name in FLOAT_SCHEMES)


# they multiply in float, regardless of what they store, and no output differs from fp32 by quantization steps
FLOAT_SCHEMES: frozenset[str] = frozenset(
    {"fp32", "fp16", "bf16", "storage-fp16", "weight-only-int8", "weight-only-int4", "weight-only-palette4"}
)

INT4_SCHEME: SchemeName = "weight-only-int4"

# dynamic int8 activations, int4 weights: the name that torchao and ExecuTorch have for it
A8W4_SCHEME: SchemeName = "8da4w"

# how many weights of a row may share a scale in int4: the largest that divides the row is taken. 128 is the default of
# NNCF and of ONNX Runtime's MatMulNBitsQuantizer; 16 is the least that MatMulNBits takes, and 32 the least of XNNPACK's
# kernels (ExecuTorch 1.5.1)
INT4_GROUPS: dict[str, tuple[int, ...]] = {INT4_SCHEME: (128, 64, 32, 16), A8W4_SCHEME: (128, 64, 32)}


def int4_groups(scheme: str, most: int) -> tuple[int, ...]:
    """Return the sizes of groups that a scheme in int4 may have.

    Raises:
        UsageError: none of at most `most`.
    """
    sizes = tuple(size for size in INT4_GROUPS[scheme] if size <= most)
    if not sizes:
        what = f"{scheme} has groups of {', '.join(map(str, INT4_GROUPS[scheme]))}, but --int4-group is {most}"
        raise UsageError(what, f"give --int4-group {INT4_GROUPS[scheme][-1]} or more")
    return sizes


PALETTE_SCHEME: SchemeName = "weight-only-palette4"

# weights with at most as many elements stay in half in Core ML's packages (coremltools' own default): the operators
# that expand them would take what they save
COMPRESSED_ELEMENTS = 2048


def used_observer(scheme: str, observer: ObserverName) -> ObserverName:
    """Return the observer that a scheme takes for the one asked for.

    The tools of static-a16w8 have no histogram observer, which would clip nothing of 16 bits: minmax stands for it.
    """
    return "minmax" if (scheme, observer) == ("static-a16w8", "histogram") else observer


# they observe ranges on real samples
NEEDS_CALIBRATION: frozenset[SchemeName] = frozenset({"static-int8", "qat-int8", "mixed-int8", "static-a16w8"})

# they train, for which the --qat options are
NEEDS_TRAINING: frozenset[SchemeName] = frozenset({"qat-int8"})

# they choose what stays in float by an accuracy, for which the --search options are
NEEDS_SEARCH: frozenset[SchemeName] = frozenset({"mixed-int8"})

ObserverName = Literal["histogram", "minmax", "percentile", "entropy"]

OBSERVERS: tuple[ObserverName, ...] = get_args(ObserverName)

LimitName = Literal[
    "size",
    "download",
    "accuracy_drop",
    "sqnr",
    "agreement",
    "perplexity",
    "drift",
    "latency",
    "peak_memory",
    "load",
    "sram",
    "cycles",
    "delta",
    "flips",
    "class_drop",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitKind:
    """A limit.

    Attributes:
        dimension: what it is measured in.
        exit_code: of a run that breaks it.
        measured_by: the command that measures it.
        at_least: whether less than the limit breaks it; else more does.
    """

    dimension: Dimension
    exit_code: ExitCode
    measured_by: Literal["package", "release"] = "package"
    at_least: bool = False


LIMITS: dict[LimitName, LimitKind] = {
    "size": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE),
    "download": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE),
    "accuracy_drop": LimitKind(dimension="pp", exit_code=ExitCode.ACCURACY),
    "sqnr": LimitKind(dimension="dB", exit_code=ExitCode.ACCURACY, at_least=True),
    "agreement": LimitKind(dimension="%", exit_code=ExitCode.ACCURACY, at_least=True),
    "perplexity": LimitKind(dimension="%", exit_code=ExitCode.ACCURACY),
    "drift": LimitKind(dimension="dB", exit_code=ExitCode.ACCURACY),
    "latency": LimitKind(dimension="ms", exit_code=ExitCode.LATENCY),
    "peak_memory": LimitKind(dimension="bytes", exit_code=ExitCode.LATENCY),
    "load": LimitKind(dimension="ms", exit_code=ExitCode.LATENCY),
    "sram": LimitKind(dimension="bytes", exit_code=ExitCode.LATENCY),
    "cycles": LimitKind(dimension="cycles", exit_code=ExitCode.LATENCY),
    "delta": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE, measured_by="release"),
    "flips": LimitKind(dimension="%", exit_code=ExitCode.ACCURACY, measured_by="release"),
    "class_drop": LimitKind(dimension="pp", exit_code=ExitCode.ACCURACY, measured_by="release"),
}

# what a search may be held to: one of them says which accuracy is enough
SEARCH_LIMITS: tuple[LimitName, ...] = ("accuracy_drop", "sqnr", "agreement")


def parse_limit(text: str) -> tuple[LimitName, float]:
    """Parse `size=5MB` into its name and its value in the base unit (bytes, ms, percentage points or percent).

    Raises:
        UsageError: no "=", an unknown name, a value of another dimension, or a share above 100%.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise UsageError(f"expected a limit such as size=5MB, got {text!r}", f"limits: {', '.join(LIMITS)}")
    for known, kind in LIMITS.items():
        if known == name:
            bare_zero = known == "sqnr" and value.strip() == "0"  # takes the floor under the outputs away
            limit = 0.0 if bare_zero else parse_quantity(value, kind.dimension)
            if kind.dimension in ("%", "pp") and limit > 100:  # nothing could keep it, or nothing break it
                raise UsageError(f"expected {name} of at most 100{kind.dimension}, got {value.strip()!r}", "lower it")
            return known, limit
    raise UsageError(f"unknown limit {name!r}.{nearest(name, LIMITS)}", f"limits: {', '.join(LIMITS)}")


# --- How far two runs that should agree may differ.


# one quantization step; the rest is what float32 loses in dividing a difference by the step
MAX_STEPS = 1.0 + 1e-3


def arithmetic(scheme: str, backend: str) -> str:
    """Return the scheme whose tolerances a scheme's outputs have on a backend: Core ML multiplies in half."""
    return "fp16" if backend == "coreml" and scheme.startswith("weight-only-") else scheme


INT8_STEPS = 127  # that weights in int8 have to each side of zero

SMALLEST_SCALE = 2**-12  # of the XNNPACK quantizer's own configuration: a row of smaller weights has fewer steps

# float32 kernels that sum in another order stay above 100 dB; 60 dB is a difference of a thousandth. Half has 11 bits,
# bfloat16 has 8, and an artifact may sum in them where its graph sums in float32
MIN_SQNR_DB_FLOAT: dict[str, float] = {
    "fp32": 60.0,
    "storage-fp16": 60.0,
    "weight-only-int8": 60.0,
    "weight-only-int4": 60.0,
    "weight-only-palette4": 40.0,
    "fp16": 40.0,
    "bf16": 25.0,
}

# of weights that are compressed, read back from the artifact: what half precision makes of their scales is above 60 dB
MIN_SQNR_DB_WEIGHTS = 40.0

# of weights in int4, whose graph has the very values that are stored: one wrong number of 16,000 is below this
MIN_SQNR_DB_INT4 = 100.0

# the two round int8 activations differently, and no output is quantized that could be counted in steps
MIN_SQNR_DB_INT8 = 30.0

# below this the difference is a third of the signal, and no comparison with the graph means anything
MIN_SQNR_DB_DEEP = 10.0

# an artifact rounds otherwise in many layers, and its graph was moved at its input alone. What both come to, once it is
# amplified, lay up to 2.6 dB apart in artifacts that lost nothing (scripts/zoo: resnet18, lcnet_050, yolov8n-cls)
REACTION_DB = 3.0

# next to nothing is left of what was to be: zeros in its place have 0 dB, and a tenth of it 0.9 dB
LOST_DB = 1.0

# mean difference beside the mean magnitude: float32 kernels that sum in another order stay below a tenth of this
MAX_RELATIVE_FP32 = 1e-5


def deep_sqnr_db(reaction_db: float) -> float:
    """Return the least ratio of a deep int8 model that one int8 step at its input moves to `reaction_db`."""
    return max(reaction_db - REACTION_DB, MIN_SQNR_DB_DEEP)


def least_sqnr_db(scheme: str) -> float:
    """Return the least signal-to-difference ratio where outputs are not counted in steps."""
    return MIN_SQNR_DB_FLOAT.get(scheme, MIN_SQNR_DB_INT8)
