"""A run as JSON for machines. `schema_version` changes when a key goes or changes its meaning, not when one comes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeq.artifacts import (
        BuildReport,
        Choice,
        Comparison,
        Cost,
        DataFacts,
        Gate,
        LayerSqnrs,
        Row,
        Search,
        Variant,
        VerifyReport,
    )
    from edgeq.project import ModelError, ModelResult, ProjectReport

SCHEMA_VERSION = 1


def to_json(report: BuildReport) -> dict[str, Any]:
    """Return the run as a JSON document.

    Units stand in the names; shares are of 1. What could not be measured is null. JSON has no infinity and no NaN:
    they are the strings "Infinity", "-Infinity" and "NaN", which both Python's `float` and JavaScript's `Number` read.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": int(report.exit_code),
        "rows": [_row(row) for row in report.rows],
        "data": _data(report.data),
    }
    result: dict[str, Any] = finite(document)
    return result


def project_json(report: ProjectReport) -> dict[str, Any]:
    """Return a project's run as a JSON document: its models as `to_json` has one, and the app as a whole.

    `error` says why a bundle that passed is not in its app; null where all are, or none was to be.
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
        "data": _data(model.report.data) if model.report else None,
    }


def error_json(error: ModelError | None) -> dict[str, Any] | None:
    """Return an error that did not end the run."""
    return {"what": error.what, "fix": error.fix, "exit_code": int(error.exit_code)} if error else None


def _row(row: Row) -> dict[str, Any]:
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
        "delegated_macs": row.delegated_macs,
        "verified": _verified(row.verified),
        "gates": [_gate(gate) for gate in row.checked.gates],
        "warnings": list(row.checked.warnings),
        "seconds": dict(row.seconds),
        "reuse": _fields(row.reuse),
        "search": _search(row.search),
        "layer_sqnrs": layer_sqnrs_json(row.layer_sqnrs),
        "auto": _choice(row.choice),
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
    """Return what is known of the layers, and where the error starts; null where it builds up."""
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
    """Return `value` with infinities and NaN as the strings that stand for them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
