"""A run as JSON. `schema_version` changes when a key is removed or changes its meaning, not for new keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeq.core.errors import Outcome
from edgeq.core.results.measured import (
    Cost,
    Emulation,
    Fidelity,
    GraphOnly,
    Interval,
    LatencyPrediction,
    OutputComparison,
    Parity,
    Timing,
    VerifyReport,
)
from edgeq.core.results.model import Attempt, LayerSqnr, LayerSqnrs, Operator, Search, Sensitivity, Weights
from edgeq.core.results.report import (
    Choice,
    Comparison,
    DataFacts,
    Fastest,
    Gate,
    ModelError,
    ModelResult,
    PackageResult,
    ProjectReport,
    Refusal,
    Reuse,
    RunReport,
    Variant,
)
from edgeq.core.schema import json_schema
from edgeq.core.units import format_bytes
from edgeq.report import text

SCHEMA_VERSION = 1


def to_json(report: RunReport) -> dict[str, Any]:
    """Return the run as a JSON document.

    Key names include units; shares are from 0 to 1. Unmeasured values are null. JSON has no infinity and no NaN:
    they are the strings "Infinity", "-Infinity" and "NaN", which both Python's `float` and JavaScript's `Number` read.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(report.exit_code),
        "rows": [_row(row) for row in report.rows],
        "refused": [_refusal(one) for one in report.refused],
        "data": _data(report.data),
    }
    result: dict[str, Any] = finite(document)
    return result


def project_json(report: ProjectReport) -> dict[str, Any]:
    """Return a project's run as a JSON document: its models as `to_json` has one, and the app as a whole.

    `error` says why an accepted bundle was not installed into its app; otherwise null.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(report.exit_code),
        "models": [_model(model) for model in report.models],
        "app": [_gate(gate) for gate in report.app],
        "error": error_json(report.not_installed),
    }
    result: dict[str, Any] = finite(document)
    return result


def _model(model: ModelResult) -> dict[str, Any]:
    return {
        "name": model.name,
        "exit_code": int(model.exit_code),
        "error": error_json(model.error),
        "rows": [_row(row) for row in model.rows],
        "refused": [_refusal(one) for one in model.refused],
        "data": _data(model.report.data) if model.report else None,
    }


def error_json(error: ModelError | None) -> dict[str, Any] | None:
    """Return an error that did not end the run."""
    return {"what": error.what, "fix": error.fix, "exit_code": int(error.exit_code)} if error else None


def _refusal(one: Refusal) -> dict[str, Any]:
    return {
        "target": one.target,
        "scheme": one.scheme,
        "error": one.error.what,
        "fix": one.error.fix,
        "exit_code": int(one.error.exit_code),
        "stays": None if one.stays is None else str(one.stays),
    }


def _row(row: PackageResult) -> dict[str, Any]:
    return {
        "model": row.model,
        "target": row.target,
        "scheme": row.scheme,
        "path": str(row.path),
        "digest": row.digest,
        "passed": not row.checked.exit_code,
        "exit_code": int(row.checked.exit_code),
        "weights": row.weights,
        "cached": row.cached,
        "size_bytes": row.size_bytes,
        "download_bytes": row.download_bytes,
        "fp32_bytes": row.fp32_bytes or None,
        "zeros": row.zeros,
        "delegated_macs": row.delegated_macs,
        "verified": _verified(row.verified),
        "gates": [_gate(gate) for gate in row.checked.gates],
        "warnings": list(row.checked.warnings),
        "seconds": dict(row.seconds),
        "reuse": _fields(row.reuse),
        "search": _search(row.search),
        "layer_sqnrs": layer_sqnrs_json(row.layer_sqnrs),
        "auto": _choice(row.choice),
        "fastest": _fastest(row.fastest),
        "default": {"reason": row.by_default} if row.by_default else None,
        "compared": _comparison(row.compared),
    }


def _choice(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "linear_macs": choice.linear_macs,
        "tried": [_variant(one) for one in choice.tried],
        "chosen": choice.chosen,
        "untried": list(choice.untried),
        "unfinished": list(choice.unfinished),
    }


def _fastest(found: Fastest | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "name": found.name,
        "cpu": found.cpu,
        "turns": found.turns,
        "candidates": [
            {"target": one.target, **_variant(one.figures), "slowdown": _fields(one.slowdown)}
            for one in found.candidates
        ],
        "chosen": found.chosen,
    }


def _comparison(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {"arch": compared.arch, "variants": [_variant(one) for one in compared.variants]}


def _variant(one: Variant) -> dict[str, Any]:
    return {
        **dataclasses.asdict(one),
        "passed": one.passed,
        "failed": [_gate(gate) for gate in one.failed],
        "error": one.error or None,
        "exit_code": int(one.exit_code),
    }


def layer_sqnrs_json(found: LayerSqnrs | None) -> dict[str, Any] | None:
    """Return the layer figures, and where the error starts; null where it builds up gradually."""
    if found is None:
        return None
    return {**dataclasses.asdict(found), "start": found.start.layer if found.start else None}


def _search(search: Search | None) -> dict[str, Any] | None:
    if search is None:
        return None
    return {**dataclasses.asdict(search), "limits": dict(search.limits), "kept_fp32": list(search.found.kept)}


def _verified(report: VerifyReport) -> dict[str, Any]:
    kernels = report.kernels
    return {
        "host": report.host,
        "parity": _fields(report.parity),
        "fidelity": _fields(report.fidelity),
        "timing": _fields(report.timing),
        "int8_macs": kernels.int8_macs if kernels else None,
        "int8_macs_unmatched": (kernels.why_unmatched or None) if kernels else None,
        "peak_memory_bytes": report.peak_memory_bytes,
        "load_ms": report.load_ms,
        "cost": _cost(report.cost),
        "findings": list(report.findings),
        "flips": {"total": report.flips.total, "ranked": report.flips.ranked} if report.flips else None,
        "emulation": _fields(report.emulation),
        "not_emulated": report.not_emulated or None,
        "stand_in": report.stand_in or None,
        "graph_only": _fields(report.graph_only),
        **({"sizes": _fields(report.sizes)} if report.sizes else {}),
        **({"drift": _fields(report.drift)} if report.drift else {}),
        **({"npu": _fields(report.npu)} if report.npu else {}),
        **({"continuation": _fields(report.continuation)} if report.continuation else {}),
    }


def _fields(value: Any) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    counted = {"counts": cost.counts, "shipped_counts": cost.shipped}
    totals = {
        name: {one.cpu: {"instructions": one.total.instructions, **dataclasses.asdict(one.total)} for one in reports}
        for name, reports in counted.items()
    }
    return {**totals, "predicted_latency": _fields(cost.prediction)}


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "name": gate.name,
        "outcome": gate.outcome,
        "passed": gate.passed,
        "limit": gate.limit,
        "measured": gate.measured,
        "detail": gate.detail,
        "exit_code": int(gate.exit_code),
    }


def _data(facts: DataFacts) -> dict[str, Any]:
    return {
        "calibration_sha256": facts.calibration_sha256,
        "calibration_samples": facts.calibration_samples,
        "evaluation_sha256": facts.evaluation_sha256,
        "evaluation_samples": facts.evaluation_samples,
        "excluded_shared": facts.excluded_shared,
        "skipped": list(facts.skipped),
        "findings": [{"name": finding.name, "message": finding.message} for finding in facts.findings],
    }


def finite(value: Any) -> Any:
    """Return `value` with infinities and NaN replaced by strings."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


# --- What `--json` prints, as models: JSON Schemas come from them, and a test holds the real documents to them.


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
    """Predictions that differ from fp32's."""

    total: int
    ranked: int = Field(description="number of compared predictions")


class CostDocument(_Document):
    """The cost of one inference on the device's cores, by core."""

    counts: dict[str, dict[str, int]] = Field(description="instructions in all and by class, bytes, cache lines")
    shipped_counts: dict[str, dict[str, int]] = Field(description="of the shipped model; empty without --shipped")
    predicted_latency: LatencyPrediction | None


class VerifiedDocument(_Document):
    """The results of running the artifact; unmeasured values are null."""

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
    graph_only: GraphOnly | None = Field(description="the converted graph's results, where the artifact was not run")
    cost: CostDocument | None = Field(description="null where no gate needs it")


class SearchDocument(_Document):
    """The search for the layers to leave in float."""

    limits: dict[str, float]
    samples: int
    ranking: list[Sensitivity] = Field(description="all layers, the most costly one first")
    attempts: list[Attempt] = Field(description="assignments that were converted and run, in order")
    chosen: int = Field(description="index of the attempt that became the artifact")
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
    speedup: Interval | None = Field(description="speedup over fp32, median of interleaved runs; null if not timed so")
    failed: list[GateDocument]
    error: str | None = Field(description="why there is no artifact")
    exit_code: int


class DefaultDocument(_Document):
    """Why the target's default scheme for this model is the one."""

    reason: str


class ChoiceDocument(_Document):
    """How --scheme auto chose the scheme."""

    linear_macs: float = Field(description="share of the float model's multiply-accumulates in matrix products")
    tried: list[VariantDocument]
    chosen: int = Field(description="index of the attempt that became the artifact")
    untried: list[str] = Field(description="not tried: they would fail the same gate")
    unfinished: list[str] = Field(description="not tried to the end: --time-budget was over")


class CandidateDocument(VariantDocument):
    """One of several targets; its latencies are of interleaved runs where several passed."""

    target: str
    slowdown: Interval | None = Field(
        description="times slower than the fastest, median of the paired turns; null for the fastest, and if not timed"
    )


class FastestDocument(_Document):
    """How the fastest of several targets was chosen."""

    name: str = Field(description="the target that the run named, which stands for the candidates")
    cpu: str = Field(description="the kind of machine that timed them")
    turns: int = Field(description="of each candidate that passed every gate; 0 where fewer than two did")
    candidates: list[CandidateDocument]
    chosen: int = Field(description="index of the candidate that became the bundle")


class ComparisonDocument(_Document):
    """Comparison with float on the same target; the latencies are from interleaved runs."""

    arch: str
    variants: list[VariantDocument] = Field(description="the artifact itself, then fp32 and fp16")


class LayerSqnrsDocument(_Document):
    """SQNR of each layer of the converted graph against the float graph, in execution order."""

    samples: int
    layers: list[LayerSqnr]
    start: str | None = Field(description="the layer where the error starts; null where it builds up gradually")


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
    zeros: float | None = Field(description="share of zeros among the weights; null where they were not read")
    delegated_macs: float | None
    verified: VerifiedDocument
    gates: list[GateDocument]
    warnings: list[str]
    seconds: dict[str, float]
    reuse: Reuse | None = Field(description="null without --reuse-qparams-from")
    search: SearchDocument | None = Field(description="null for schemes that do not search")
    auto: ChoiceDocument | None = Field(description="null without --scheme auto")
    fastest: FastestDocument | None = Field(description="null where the run names the target itself")
    default: DefaultDocument | None = Field(description="null where the scheme was named")
    compared: ComparisonDocument | None = Field(description="null without --compare")
    layer_sqnrs: LayerSqnrsDocument | None = Field(description="null for schemes without calibration")


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
    """The reason for a missing result."""

    what: str
    fix: str
    exit_code: int


class InstalledDocument(_Document):
    """A bundle that was installed into an app."""

    app: str
    target: str | None
    place: str
    files: list[str]
    size_bytes: int
    digest: str


class RefusalDocument(_Document):
    """A target and scheme that cannot be packaged."""

    target: str
    scheme: str
    error: str
    fix: str
    exit_code: int
    stays: str | None = Field(description="the accepted bundle of an earlier run, which is unchanged")


class PackageDocument(_Document):
    """`edgeq package --json`; after an error that ended the run, only schema_version and error."""

    schema_version: Literal[1]
    exit_code: int
    rows: list[RowDocument]
    refused: list[RefusalDocument] = Field(default_factory=list)
    data: DataDocument
    installed: list[InstalledDocument]
    error: ErrorDocument | None = None


class ModelDocument(_Document):
    """One model of a project."""

    name: str
    exit_code: int
    error: ErrorDocument | None
    rows: list[RowDocument]
    refused: list[RefusalDocument] = Field(default_factory=list)
    data: DataDocument | None


class BuildDocument(_Document):
    """`edgeq build --json`, and `edgeq report --format json`, which has no `installed`."""

    schema_version: Literal[1]
    exit_code: int
    models: list[ModelDocument]
    app: list[GateDocument]
    installed: list[InstalledDocument] = Field(default_factory=list)
    error: ErrorDocument | None = Field(
        default=None, description="why an accepted bundle was not installed into its app"
    )


class ChangeDocument(_Document):
    """A difference; null where one bundle does not have the fact."""

    section: str
    name: str
    old: float | int | str | None
    new: float | int | str | None


class DiffDocument(_Document):
    """`edgeq diff --json`."""

    schema_version: Literal[1]
    old: str
    new: str
    cause: str | None = None
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
    """Return the JSON Schema of a document; numbers may be strings for infinity and NaN."""
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


# --- A graph for Model Explorer, with what was measured of each layer.


# as on the pages, on Model Explorer's light ground
_COLOURS = {"int8": "#cfe2ff", "float": "#ffe0bf", "half": "#cdebd3"}

_NAMED = ("input", "output")

_WORST = "#b01525"


def ordered(row: PackageResult) -> tuple[Operator, ...]:
    """Return the layers of a report as a chain in the order of execution: it does not know what feeds them."""
    names = [f"{layer.name}#{i}" if _is_repeated(row, i) else layer.name for i, layer in enumerate(row.layers)]
    before = [(), *((name,) for name in names)]
    return tuple(
        Operator(name=name, op=layer.op, inputs=inputs)
        for name, layer, inputs in zip(names, row.layers, before, strict=False)
    )


def _is_repeated(row: PackageResult, place: int) -> bool:
    return any(layer.name == row.layers[place].name for layer in row.layers[:place])


def graph_json(operators: Sequence[Operator], row: PackageResult | None, *, title: str) -> dict[str, Any]:
    """Return a graph collection in the JSON that Model Explorer reads.

    Args:
        operators: of the artifact.
        row: what was measured of it; None for a bare artifact.
        title: its label.
    """
    layers = row.layers if row else ()
    kinds = dict(zip((layer.name for layer in layers), text.layer_kinds(row) if row else (), strict=True))
    known = {layer.name: layer for layer in layers}
    ran = row.verified.kernels.of_layers if row and row.verified.kernels else ()
    kernels = dict(zip((layer.name for layer in layers), ran, strict=False))
    found = row.layer_sqnrs if row else None
    sqnrs: dict[str, LayerSqnr] = {one.layer: one for one in found.layers} if found else {}
    worst = (found.start or found.noisiest).layer if found else ""
    nodes = []
    for operator in operators:
        layer, sqnr = known.get(operator.name), sqnrs.get(operator.name)
        *outer, own = operator.name.split(".")
        facts = [("operator", operator.op)]
        if layer is not None:
            facts += [
                ("computes in", kinds[layer.name]),
                ("weights", format_bytes(layer.weight_bytes)),
                ("MACs", f"{layer.macs:,}"),
            ]
            facts += [("kernel", kernels[layer.name])] if layer.name in kernels else []
        if sqnr is not None:
            facts += [("SQNR by itself", text.decibel(sqnr.own_db)), ("SQNR so far", text.decibel(sqnr.sqnr_db))]
        style = {}
        if layer is not None and kinds[layer.name] in _COLOURS:
            style["backgroundColor"] = _COLOURS[kinds[layer.name]]
        if operator.name == worst:
            style["borderColor"] = _WORST
            facts.append(("note", "the error starts here" if found and found.start else "most error of its own"))
        nodes.append(
            {
                "id": operator.name,
                "label": own if operator.op in _NAMED or own.startswith(operator.op) else f"{own} {operator.op}",
                "namespace": "/".join(outer),
                "attrs": [{"key": key, "value": value} for key, value in facts],
                "incomingEdges": [
                    {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
                    for i, name in enumerate(operator.inputs)
                ],
                **({"style": style} if style else {}),
            }
        )
    return {"label": title, "graphs": [{"id": "main", "nodes": nodes}]}
