"""The quantization schemes, in PyTorch's words, and the limits that a run may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgeq.errors import ExitCode, UsageError, nearest
from edgeq.units import Dimension, parse_quantity

SchemeName = Literal["fp32", "fp16", "static-int8", "dynamic-int8", "weight-only-int8", "qat-int8", "pretrained"]
SCHEMES: tuple[SchemeName, ...] = get_args(SchemeName)
# PyTorch's other schemes: known, so that a profile or a user who names one gets code 3, not a spelling hint
PLANNED_SCHEMES = ("mixed-int8",)
# they multiply in float, whatever they store, and differ from fp32 by no quantization steps
FLOAT_SCHEMES: frozenset[str] = frozenset({"fp32", "fp16", "weight-only-int8"})
# they observe ranges on real samples
NEEDS_CALIBRATION: frozenset[SchemeName] = frozenset({"static-int8", "qat-int8"})
# they train, for which the --qat options are
NEEDS_TRAINING: frozenset[SchemeName] = frozenset({"qat-int8"})

ObserverName = Literal["histogram", "minmax", "percentile"]
OBSERVERS: tuple[ObserverName, ...] = ("histogram", "minmax", "percentile")

LimitName = Literal[
    "size", "download", "accuracy_drop", "latency", "peak_memory", "load", "delta", "flips", "class_drop"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitKind:
    """What a limit is measured in, the exit code of a run that breaks it, and the command that measures it."""

    dimension: Dimension
    exit_code: ExitCode
    measured_by: Literal["package", "release"] = "package"


LIMITS: dict[LimitName, LimitKind] = {
    "size": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE),
    "download": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE),
    "accuracy_drop": LimitKind(dimension="pp", exit_code=ExitCode.ACCURACY),
    "latency": LimitKind(dimension="ms", exit_code=ExitCode.LATENCY),
    "peak_memory": LimitKind(dimension="bytes", exit_code=ExitCode.LATENCY),
    "load": LimitKind(dimension="ms", exit_code=ExitCode.LATENCY),
    "delta": LimitKind(dimension="bytes", exit_code=ExitCode.SIZE, measured_by="release"),
    "flips": LimitKind(dimension="%", exit_code=ExitCode.ACCURACY, measured_by="release"),
    "class_drop": LimitKind(dimension="pp", exit_code=ExitCode.ACCURACY, measured_by="release"),
}


def parse_limit(text: str) -> tuple[LimitName, float]:
    """Parse `size=5MB` into its name and its value in the base unit (bytes, ms, percentage points or percent).

    Raises:
        UsageError: no "=", an unknown name, or a value of another dimension.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise UsageError(f"expected a limit such as size=5MB, got {text!r}", f"limits: {', '.join(LIMITS)}")
    for known, kind in LIMITS.items():
        if known == name:
            return known, parse_quantity(value, kind.dimension)
    raise UsageError(f"unknown limit {name!r}.{nearest(name, LIMITS)}", f"limits: {', '.join(LIMITS)}")
