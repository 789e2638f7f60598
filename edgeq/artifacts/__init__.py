"""The frozen results that the steps hand to each other."""

from edgeq.artifacts.model import (
    Layer,
    LoadedModel,
    LoweredModel,
    QuantizedModel,
    SourceKind,
    TensorSpec,
    Weights,
)
from edgeq.artifacts.release import (
    BuildReport,
    BundleInput,
    DataFacts,
    DataFinding,
    GoldenSet,
    Row,
)
from edgeq.artifacts.verdict import (
    CheckReport,
    Fidelity,
    Gate,
    Interval,
    KernelShare,
    Outcome,
    Parity,
    Timing,
    VerifyReport,
)

__all__ = [
    "BuildReport",
    "BundleInput",
    "CheckReport",
    "DataFacts",
    "DataFinding",
    "Fidelity",
    "Gate",
    "GoldenSet",
    "Interval",
    "KernelShare",
    "Layer",
    "LoadedModel",
    "LoweredModel",
    "Outcome",
    "Parity",
    "QuantizedModel",
    "Row",
    "SourceKind",
    "TensorSpec",
    "Timing",
    "VerifyReport",
    "Weights",
]
