"""A row of the closing table in words: the figures with their units, and what is missing said plainly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeq.units import counted, format_bytes, format_quantity

if TYPE_CHECKING:
    from edgeq.artifacts import (
        Fidelity,
        Gate,
        KeptValues,
        LayerSqnrs,
        Reuse,
        Row,
        Search,
    )

MISSING = "not measured"
_SHOWN = 6  # names of layers in one line


def size(row: Row) -> str:
    """Return the artifact's size against the fp32 weights; of a small model it can be more, the program included."""
    if not row.fp32_bytes or not row.size_bytes:
        return format_bytes(row.size_bytes)
    ratio = row.size_bytes / row.fp32_bytes
    against = f"{ratio:.1%} of fp32" if ratio <= 1 else f"{ratio:.2f} times the fp32 weights"
    return f"{format_bytes(row.size_bytes)}\n{against}"


def download(row: Row) -> str:
    """Return the size of the published ZIP."""
    return format_bytes(row.download_bytes)


def accuracy_head(row: Row) -> str:
    """Return what `accuracy(row)` is a figure of."""
    return "accuracy" if is_labelled(row) else "fidelity"


def is_labelled(row: Row) -> bool:
    """Whether the row has a score, if only the converted graph's."""
    only = row.verified.graph_only
    fidelity = only.fidelity if only else row.verified.fidelity
    return fidelity is not None and bool(fidelity.metric)


def accuracy(row: Row) -> str:
    """Return artifact against fp32 with the drop's interval; the SQNR where there are no labels."""
    only = row.verified.graph_only
    if only is not None:
        return f"{MISSING}\nits graph: {_told(only.fidelity)}"
    return "\n".join((_told(row.verified.fidelity), *_worst_parts(row)))


def _worst_parts(row: Row) -> list[str]:
    """Return the channel that came out worst, where it is not the whole output, and the class that lost most."""
    said = [gate.measured for gate in row.checked.gates if gate.name == "fidelity" and "channel" in gate.measured]
    fidelity = row.verified.fidelity
    if fidelity is None:
        return said
    if fidelity.distinct is not None and fidelity.distinct < fidelity.samples:
        said.append(f"{counted(fidelity.distinct, 'distinct sample')} of {fidelity.samples}")
    if fidelity.classes and fidelity.by_labels:
        worst = fidelity.classes[0]
        drop = f"drop {worst.drop_pp.estimate:.2f} pp ({worst.drop_pp.low:.2f} to {worst.drop_pp.high:.2f})"
        said.append(
            f"worst class {worst.label}: {worst.right} right of {worst.samples}, fp32 {worst.fp32_right}, {drop}"
        )
    return said


def _told(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return MISSING
    if fidelity.score is None:
        if fidelity.sqnr_db is None:
            return MISSING
        return f"SQNR {decibel(fidelity.sqnr_db)}\n{fidelity.samples} {_inputs(fidelity)}"
    score = _score(fidelity, fidelity.score)
    if fidelity.fp32_score is None:
        return score
    scores = f"{score}, fp32 {_score(fidelity, fidelity.fp32_score)}"
    drop = fidelity.drop_pp
    return f"{scores}\ndrop {drop.estimate:.2f} pp ({drop.low:.2f} to {drop.high:.2f})" if drop else scores


def _inputs(fidelity: Fidelity) -> str:
    return "evaluation samples" if fidelity.inputs == "evaluation" else "random inputs"


def _score(fidelity: Fidelity, value: float) -> str:
    # a metric of the user's own has a range of its own
    return share(value) if fidelity.metric in ("top1", "top-1") else f"{fidelity.metric} {value:.4g}"


def agreement(row: Row) -> str:
    """Return the share of samples with the same top-1 class as fp32."""
    fidelity = row.verified.fidelity
    return "-" if fidelity is None or fidelity.top1_agreement is None else share(fidelity.top1_agreement)


def int8_share(row: Row) -> str:
    """Return the share of multiply-accumulates that ran in int8 kernels."""
    kernels = row.verified.kernels
    return "-" if kernels is None or kernels.int8_macs is None else share(kernels.int8_macs)


def device(row: Row) -> str:
    """Return how the device's kernels compare with the host's; "-" where the target has no device to emulate."""
    verified = row.verified
    emulation = verified.emulation
    if emulation is None:
        return "host only" if verified.not_emulated else "-"
    if emulation.problem:
        return MISSING
    worst = min(emulation.runs, key=lambda run: -math.inf if math.isnan(run.host.sqnr_db) else run.host.sqnr_db)
    cpus = ", ".join(dict.fromkeys(run.cpu for run in emulation.runs))
    same = "equal" if worst.host.sqnr_db == math.inf else f"host {decibel(worst.host.sqnr_db)}"
    return f"{same}\n{cpus}"


def latency(row: Row) -> str:
    """Return p50 and p90 with the host's architecture or GPU, since they say little of another one."""
    timing = row.verified.timing
    if timing is None:
        return MISSING
    return f"{_ms(timing.p50_ms)} / {_ms(timing.p90_ms)} ms\n{timing.gpu or f'host {timing.arch}'}"


def _ms(value_ms: float) -> str:
    return format_quantity(value_ms, "ms").removesuffix(" ms")


def search(found: Search) -> str:
    """Return which layers a search left in float."""
    kept = found.found.kept
    names = f": {', '.join(kept[:_SHOWN])}{f' and {len(kept) - _SHOWN} more' if len(kept) > _SHOWN else ''}"
    remedies = "".join(f", {name}" for name in found.found.remedies)
    tried = f"{counted(len(found.attempts), 'assignment')} tried on {counted(found.samples, 'sample')}"
    return f"{len(kept)} of {len(found.ranking)} layers in float{names if kept else ''}{remedies} ({tried})"


def verdict(row: Row) -> str:
    """Return `ok`, or `failed:` with the first gate; below it, what else to know of the row."""
    failed = [gate for gate in row.checked.gates if not gate.passed]
    marks = [
        *([f"and {len(failed) - 1} more"] if len(failed) > 1 else []),
        *(["emulated"] if row.verified.stand_in else []),
        *(["random weights"] if row.weights == "random" else []),
        *(["cached"] if row.cached else []),
    ]
    text = f"failed: {failed[0].name}" if failed else "ok"
    return f"{text}\n{', '.join(marks)}" if marks else text


def failures(row: Row, *, named: bool = False) -> list[str]:
    """Return a line for each gate that failed; `named` where rows of several models stand together."""
    about = f"{row.model} {row.target} {row.scheme}" if named else f"{row.target} {row.scheme}"
    return [failure(about, gate) for gate in row.checked.gates if not gate.passed]


def failure(about: str, gate: Gate) -> str:
    """Return a gate's line: what it is of, its limit, what was measured, and by how much."""
    return f"{gate.outcome}: {about}: {gate_facts(gate)}"


def gate_facts(gate: Gate) -> str:
    """Return a gate's name, its limit and what was measured."""
    is_plain = gate.measured in ("", MISSING) or gate.measured.startswith("predicted ")
    measured = gate.measured if is_plain else f"measured {gate.measured}"
    facts = (f"limit {gate.limit}" if gate.limit else "", measured)
    told = ", ".join(fact for fact in facts if fact)
    detail = f"{told}: {gate.detail}" if told and gate.detail else told or gate.detail
    return f"{gate.name}: {detail}"


def reuse(found: Reuse, fidelity: Fidelity | None) -> list[str]:
    """Return what was reused of the shipped model, what that brought and cost, and the tensors that have new ranges.

    Args:
        found: the comparison with the artifact that has all new ranges.
        fidelity: of the artifact that reuses them.
    """
    kept = found.tensors - len(found.fresh)
    patches = f"{format_bytes(found.patch_bytes)} with, {format_bytes(found.patch_bytes_without)} without"
    lines = [
        f"{kept} of {found.tensors} int8 tensors keep the shipped scales and zero points",
        f"the artifact's patch: {patches}; {_quality(fidelity)} with, {_quality(found.fidelity_without)} without",
    ]
    if found.kept is not None:
        lines.append(_kept_values(found.kept))
    if found.fresh:
        more = f" and {len(found.fresh) - _SHOWN} more" if len(found.fresh) > _SHOWN else ""
        lines.append(f"new ranges, since the shipped ones do not fit: {', '.join(found.fresh[:_SHOWN])}{more}")
    return lines


def _kept_values(kept: KeptValues) -> str:
    gains = ((kept.ranges, "ranges"), (kept.biases, "biases"), (kept.values, "int8 values"))
    parts = [f"{count} {what}" for count, what in gains if count]
    if not parts:
        return "nothing else stays the shipped model's: it would cost too much, or is the same anyway"
    cost = f"{decibel(kept.sqnr_db)} with, {decibel(kept.sqnr_strict_db)} without"
    return f"near enough to stay the shipped ones: {', '.join(parts)} ({kept.samples} calibration samples: {cost})"


def _quality(fidelity: Fidelity | None) -> str:
    if fidelity is not None and fidelity.score is not None:
        return f"accuracy {_score(fidelity, fidelity.score)}"
    return MISSING if fidelity is None or fidelity.sqnr_db is None else f"SQNR {decibel(fidelity.sqnr_db)}"


def error_start(found: LayerSqnrs) -> str:
    """Return at which layer the error starts, or that it builds up, in a line."""
    start, noisiest = found.start, found.noisiest
    if start is None:
        most = f"most comes from {noisiest.layer} ({decibel(noisiest.own_db)} by itself)"
        return f"no layer stands out: the error builds up from layer to layer, {most}"
    before = found.before(start)
    told = "it reads the input" if before == math.inf else f"{decibel(before)} before it"
    return f"the error starts at {start.layer}: {decibel(start.own_db)} by itself, {told}"


def place(row: Row) -> str:
    """Return what the row's path is."""
    return "rejected" if row.checked.exit_code else "bundle"


def share(value: float) -> str:
    """Return a share in percent; 100.00% only where it is all of it."""
    if not math.isfinite(value):
        return str(value)
    # 99.996% must not read as everything
    return f"{min(value, 0.9999):.2%}" if value < 1 else "100.00%"


def decibel(value_db: float) -> str:
    """Return a signal-to-difference ratio; infinite means that the outputs are equal."""
    return "infinite (equal)" if value_db == math.inf else f"{value_db:.1f} dB"
