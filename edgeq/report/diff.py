"""Differences between two bundles, by section, for text, JSON and HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.core.results.measured import Fidelity
from edgeq.core.results.report import PackageResult, Source
from edgeq.core.units import format_bytes
from edgeq.report.json import finite
from edgeq.report.text import layer_kinds

SCHEMA_VERSION = 1

NONE = "-"

Value = float | int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A fact that differs.

    Attributes:
        section: `bundle`, `size`, `metrics`, `gates`, `layers`, `operators` or `provenance`.
        old, new: the values; None where one bundle does not have the fact.
        told_old, told_new: the values as text.
        delta: the difference as text; "" where it has no meaning.
        verdict: `better` or `worse` of the new one; "" where neither can be said.
    """

    section: str
    name: str
    old: Value
    new: Value
    told_old: str
    told_new: str
    delta: str = ""
    verdict: str = ""

    @property
    def title(self) -> str:
        """The name in words; a key of a provenance, a layer or a gate stands for itself."""
        return _KNOWN[self.name].title if self.name in _KNOWN else self.name


@dataclass(frozen=True, slots=True)
class _Known:
    """A fact: its name in words, and whether more of it is better; None where neither is."""

    title: str
    more_is_better: bool | None = None


_KNOWN = {
    "size_bytes": _Known("size", False),
    "download_bytes": _Known("download", False),
    "golden_bytes": _Known("golden samples"),
    "fp32_bytes": _Known("fp32 weights"),
    "peak_memory_bytes": _Known("peak memory", False),
    "samples": _Known("evaluation samples"),
    "score": _Known("score", True),
    "fp32_score": _Known("fp32's score"),
    "drop_pp": _Known("accuracy drop in pp", False),
    "drop_high_pp": _Known("accuracy drop in pp, upper end of its 95% interval", False),
    "top1_agreement": _Known("agreement with fp32", True),
    "sqnr_db": _Known("SQNR against fp32 in dB", True),
    "flips": _Known("predictions that differ from fp32's", False),
    "int8_macs": _Known("share of MACs in int8", True),
    "delegated_macs": _Known("share of MACs in the delegate", True),
    "latency_p50_ms": _Known("latency p50 in ms", False),
    "latency_p90_ms": _Known("latency p90 in ms", False),
    "load_ms": _Known("load in ms", False),
    "source_sha256": _Known("source SHA-256"),
    "weights_sha256": _Known("weights SHA-256"),
    "calibration_sha256": _Known("calibration data SHA-256"),
    "calibration_samples": _Known("calibration samples"),
    "evaluation_sha256": _Known("evaluation data SHA-256"),
    "evaluation_samples": _Known("evaluation samples"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Two bundles, and all facts that differ."""

    old: str
    new: str
    changes: tuple[Change, ...]

    def cause(self) -> str:
        """Return why the artifact's bytes differ, by what it was made from; "" where they are equal."""
        changed = {one.name for one in self.changes if one.section == "bundle"}
        if "artifact" not in changed:
            return ""
        made_by = [
            one for one in self.changes if one.section == "provenance" and not one.name.startswith("evaluation_")
        ]
        told = [f"{one.name} {_brief(one.told_old)} -> {_brief(one.told_new)}" for one in made_by]
        told += [name for name in ("target", "scheme", "runtime", "threads") if name in changed]
        if told:
            return f"the artifact differs, and so does what it was made from: {'; '.join(told)}"
        return (
            "the artifact differs, though nothing recorded of what it was made from does: the code of the model, of "
            "edgeq, or an option that an older edgeq did not record"
        )

    def sections(self) -> dict[str, list[Change]]:
        """Return the changes by section, in their order."""
        found: dict[str, list[Change]] = {}
        for change in self.changes:
            found.setdefault(change.section, []).append(change)
        return found


def _brief(text: str) -> str:
    return f"{text[:12]}…" if len(text) > 40 else text


def diff(old: Source, new: Source) -> Diff:
    """Return the differences. Predictions are compared by each bundle's own figures against fp32."""
    changes = [
        *_compared("bundle", _bundle(old), _bundle(new), str),
        *_compared("size", _sizes(old), _sizes(new), format_bytes, by=_bytes_by),
        *_compared("metrics", _metrics(old.row), _metrics(new.row), _number, by=_number_by),
        *_compared("gates", _gates(old), _gates(new), str),
        *_compared("layers", _layers(old.row), _layers(new.row), str),
        *_compared("operators", _operators(old), _operators(new), str),
        *_compared("provenance", _provenance(old), _provenance(new), str),
    ]
    return Diff(old=str(old.row.path), new=str(new.row.path), changes=tuple(changes))


def diff_json(found: Diff) -> dict[str, Any]:
    """Return the differences as a JSON document; values keep their units by name, as in `edgeq package --json`."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "old": found.old,
        "new": found.new,
        "cause": found.cause() or None,
        "changes": [
            {"section": one.section, "name": one.name, "old": one.old, "new": one.new} for one in found.changes
        ],
    }
    result: dict[str, Any] = finite(document)
    return result


Facts = Mapping[str, Value]


def _compared(
    section: str,
    old: Facts,
    new: Facts,
    tell: Callable[[Any], str],
    *,
    by: Callable[[float, float], str] = lambda _old, _new: "",
) -> Iterator[Change]:
    for name in dict.fromkeys((*old, *new)):
        left, right = old.get(name), new.get(name)
        if left == right or (_is_nan(left) and _is_nan(right)):
            continue
        both = isinstance(left, int | float) and isinstance(right, int | float)
        yield Change(
            section=section,
            name=name,
            old=left,
            new=right,
            told_old=NONE if left is None else tell(left),
            told_new=NONE if right is None else tell(right),
            delta=by(left, right) if both else "",  # type: ignore[arg-type]  # `both` says that they are numbers
            verdict=_verdict(section, name, left, right),
        )


def _verdict(section: str, name: str, old: Value, new: Value) -> str:
    """Return whether the new value is better or worse; "" where that is not known."""
    if section == "gates" and isinstance(old, str) and isinstance(new, str):
        before, after = (text.partition(",")[0] in ("ok", "allowed") for text in (old, new))
        return "" if before == after else "better" if after else "worse"
    rises = _KNOWN[name].more_is_better if section in ("size", "metrics") and name in _KNOWN else None
    if rises is None or not isinstance(old, int | float) or not isinstance(new, int | float) or old == new:
        return ""
    if math.isnan(old) or math.isnan(new):
        return ""
    return "better" if (new > old) == rises else "worse"


def _is_nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _bundle(source: Source) -> Facts:
    manifest = source.manifest
    return {
        "model": manifest.model.name,
        "version": manifest.model.version,
        "target": manifest.target.name,
        "scheme": manifest.scheme,
        "runtime": f"{manifest.runtime.name} {manifest.runtime.exported_with}",
        "inputs": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
        "labels": ", ".join(manifest.labels) or None,
        "threads": manifest.threads,
        "artifact": ", ".join(entry.sha256 for entry in manifest.model_files),
        "digest": source.row.digest,
    }


def _tensors(tensors: Iterable[Any]) -> str:
    return ", ".join(f"{one.name} {one.dtype} {one.shape_text()}" for one in tensors)


def _sizes(source: Source) -> Facts:
    row, golden = source.row, source.manifest.file("golden")
    return {
        "size_bytes": row.size_bytes,
        "download_bytes": row.download_bytes,
        "golden_bytes": golden.size_bytes,
        "fp32_bytes": row.fp32_bytes or None,
        "peak_memory_bytes": row.verified.peak_memory_bytes,
    }


def _metrics(row: PackageResult) -> Facts:
    verified = row.verified
    timing, kernels, flips = verified.timing, verified.kernels, verified.flips
    return {
        **_fidelity(verified.fidelity),
        "flips": flips.total if flips else None,
        "int8_macs": kernels.int8_macs if kernels else None,
        "delegated_macs": row.delegated_macs,
        "latency_p50_ms": timing.p50_ms if timing else None,
        "latency_p90_ms": timing.p90_ms if timing else None,
        "load_ms": verified.load_ms,
    }


def _fidelity(fidelity: Fidelity | None) -> Facts:
    if fidelity is None:
        return {}
    return {
        "samples": fidelity.samples,
        "score": fidelity.score,
        "fp32_score": fidelity.fp32_score,
        "drop_pp": fidelity.drop_pp.estimate if fidelity.drop_pp else None,
        "drop_high_pp": fidelity.drop_pp.high if fidelity.drop_pp else None,
        "top1_agreement": fidelity.top1_agreement,
        "sqnr_db": fidelity.sqnr_db,
    }


def _gates(source: Source) -> Facts:
    return {gate.name: f"{gate.outcome}, limit {gate.limit or 'none'}" for gate in source.row.checked.gates}


def _layers(row: PackageResult) -> Facts:
    """Name each layer with its bytes and its precision; layers of one name are told apart by their order."""
    seen: Counter[str] = Counter()
    facts: dict[str, Value] = {}
    for layer, kind in zip(row.layers, layer_kinds(row), strict=True):
        seen[layer.name] += 1
        name = layer.name if seen[layer.name] == 1 else f"{layer.name} ({seen[layer.name]})"
        facts[name] = f"{kind}, {format_bytes(layer.weight_bytes)}, {layer.macs:,} MACs"
    return facts


def _operators(source: Source) -> Facts:
    counts: dict[str, Value] = dict(Counter(layer.op for layer in source.row.layers))
    return counts | {f"{name}, not delegated": "yes" for name in source.manifest.layers.undelegated}


def _provenance(source: Source) -> Facts:
    facts = source.manifest.provenance
    return {
        "weights": source.manifest.model.weights,
        "source_sha256": facts.source_sha256,
        "weights_sha256": facts.weights_sha256,
        "calibration_sha256": facts.calibration_sha256,
        "calibration_samples": facts.calibration_samples,
        "evaluation_sha256": facts.evaluation_sha256,
        "evaluation_samples": facts.evaluation_samples,
        "seed": facts.seed,
        "edgeq": facts.edgeq,
        "shipped": facts.shipped,
        "qat": facts.qat.model_dump_json() if facts.qat else None,
        "search": facts.search.model_dump_json() if facts.search else None,
        **facts.options,
        **facts.tools,
    }


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.5g}"


def _number_by(old: float, new: float) -> str:
    return f"{new - old:+.4g}" if math.isfinite(new - old) else ""


def _bytes_by(old: float, new: float) -> str:
    change = f" ({(new - old) / old:+.1%})" if old else ""
    return f"{'+' if new > old else '-'}{format_bytes(abs(new - old))}{change}"
