"""What `--json` prints, as models: JSON Schemas come from them, and a test holds the real documents to them.

A schema's version changes when a key goes or changes its meaning, not when one comes: readers must allow more keys.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeq.artifacts import (
    Attempt,
    Emulation,
    Fidelity,
    GraphOnly,
    Interval,
    LatencyPrediction,
    LayerSqnr,
    Outcome,
    OutputComparison,
    Parity,
    Reuse,
    Sensitivity,
    Timing,
    Weights,
)
from edgeq.strict import json_schema


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow")


class GateDocument(_Document):
    """One gate."""

    name: str
    outcome: Outcome
    passed: bool
    limit: str
    measured: str
    detail: str
    exit_code: int


class FlipsDocument(_Document):
    """How many predictions are not fp32's."""

    total: int
    ranked: int = Field(description="of how many")


class CostDocument(_Document):
    """What one inference makes the device's cores do, by core."""

    counts: dict[str, dict[str, int]] = Field(description="instructions in all and by class, bytes, cache lines")
    shipped_counts: dict[str, dict[str, int]] = Field(description="of the shipped model; empty where none was named")
    predicted_latency: LatencyPrediction | None


class VerifiedDocument(_Document):
    """What running the artifact showed; null is what could not be measured."""

    host: str
    parity: Parity | None
    fidelity: Fidelity | None
    timing: Timing | None
    int8_macs: float | None
    int8_macs_unmatched: str | None = Field(description="why int8_macs is null")
    peak_memory_bytes: int | None
    load_ms: float | None
    findings: list[str]
    flips: FlipsDocument | None
    emulation: Emulation | None
    not_emulated: str | None
    stand_in: str | None
    graph_only: GraphOnly | None = Field(description="the converted graph's verdict, where the artifact was not run")
    cost: CostDocument | None = Field(description="null where no gate needs it")


class SearchDocument(_Document):
    """The search for the layers to leave in float."""

    limits: dict[str, float]
    samples: int
    ranking: list[Sensitivity] = Field(description="all layers, the one that costs most by itself first")
    attempts: list[Attempt] = Field(description="assignments that were converted and run, in order")
    chosen: int = Field(description="the index of the attempt that the artifact is")
    kept_fp32: list[str]


class VariantDocument(_Document):
    """The model under one scheme."""

    scheme: str
    passed: bool
    size_bytes: int | None
    score: float | None
    fp32_score: float | None
    drop_pp: Interval | None
    sqnr_db: float | None
    latency_ms: float | None = Field(description="p50 on this host")
    latency_p90_ms: float | None
    speedup: Interval | None = Field(description="times faster than fp32, median of turns; null if not timed in turns")
    failed: list[GateDocument]
    error: str | None = Field(description="why there is no artifact")
    exit_code: int


class ChoiceDocument(_Document):
    """How --scheme auto came to the scheme."""

    linear_macs: float = Field(description="share of the float model's multiply-accumulates in matrix products")
    tried: list[VariantDocument]
    chosen: int = Field(description="the index of the one that the artifact is")
    untried: list[str] = Field(description="left out: no scheme could mend what failed before")


class ComparisonDocument(_Document):
    """Against float on the same target; the latencies were measured in turns."""

    arch: str
    variants: list[VariantDocument] = Field(description="the artifact itself, then fp32 and fp16")


class LayerSqnrsDocument(_Document):
    """How far each layer of the converted graph is from the float graph's, in the order of execution."""

    samples: int
    layers: list[LayerSqnr]
    start: str | None = Field(description="the layer where the error starts; null where it builds up")


class RowDocument(_Document):
    """One target and scheme."""

    model: str
    target: str
    scheme: str
    path: str
    digest: str
    passed: bool
    exit_code: int
    weights: Weights
    cached: bool
    size_bytes: int
    download_bytes: int
    fp32_bytes: int | None
    delegated_macs: float | None
    verified: VerifiedDocument
    gates: list[GateDocument]
    warnings: list[str]
    seconds: dict[str, float]
    reuse: Reuse | None = Field(description="null where no shipped model's scales and zero points were reused")
    search: SearchDocument | None = Field(description="null for schemes that do not search")
    auto: ChoiceDocument | None = Field(description="null where the scheme was named")
    compared: ComparisonDocument | None = Field(description="null without --compare")
    layer_sqnrs: LayerSqnrsDocument | None = Field(description="null for schemes that calibrate no graph")


class FindingDocument(_Document):
    """A finding of the data lint."""

    name: str
    message: str


class DataDocument(_Document):
    """The samples, by hash and count."""

    calibration_sha256: str | None
    calibration_samples: int
    evaluation_sha256: str | None
    evaluation_samples: int
    excluded_shared: int
    skipped: list[str]
    findings: list[FindingDocument]


class ErrorDocument(_Document):
    """Why there is no result."""

    what: str
    fix: str
    exit_code: int


class InstalledDocument(_Document):
    """A bundle that went into an app."""

    app: str
    target: str | None
    place: str
    files: list[str]
    size_bytes: int
    digest: str


class PackageDocument(_Document):
    """`edgeq package --json`; after an error that ended the run, only schema_version and error."""

    schema_version: Literal[1]
    exit_code: int
    rows: list[RowDocument]
    data: DataDocument
    installed: list[InstalledDocument]
    error: ErrorDocument | None = None


class ModelDocument(_Document):
    """One model of a project."""

    name: str
    exit_code: int
    error: ErrorDocument | None
    rows: list[RowDocument]
    data: DataDocument | None


class BuildDocument(_Document):
    """`edgeq build --json`, and `edgeq report --format json`, which has no `installed`."""

    schema_version: Literal[1]
    exit_code: int
    models: list[ModelDocument]
    app: list[GateDocument]
    installed: list[InstalledDocument] = Field(default_factory=list)
    error: ErrorDocument | None = Field(default=None, description="why a bundle that passed is not in its app")


class ChangeDocument(_Document):
    """A fact that differs; null where one bundle has no such fact."""

    section: str
    name: str
    old: float | int | str | None
    new: float | int | str | None


class DiffDocument(_Document):
    """`edgeq diff --json`."""

    schema_version: Literal[1]
    old: str
    new: str
    changes: list[ChangeDocument]


class ComparedDocument(_Document):
    """One of the bundles that were compared."""

    model: str
    model_version: str
    target: str
    scheme: str


class CompareDocument(_Document):
    """`edgeq compare --json`."""

    schema_version: Literal[1]
    fp32: ComparedDocument
    quantized: ComparedDocument
    outputs: OutputComparison
    layer_sqnrs: LayerSqnrsDocument | None = Field(description="null without --layers")
    notes: list[str]


DOCUMENTS: dict[str, type[BaseModel]] = {
    "package": PackageDocument,
    "build": BuildDocument,
    "diff": DiffDocument,
    "compare": CompareDocument,
}
_NOT_FINITE = {"enum": ["Infinity", "-Infinity", "NaN"]}


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document; numbers may be the strings that stand for infinity and NaN."""
    schema: dict[str, Any] = _with_infinity(json_schema(DOCUMENTS[name]))
    return schema


def _with_infinity(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_infinity(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        rest = {key: value for key, value in node.items() if key != "type"}
        return {**rest, "anyOf": [{"type": "number"}, _NOT_FINITE]}
    return {key: _with_infinity(value) for key, value in node.items()}
