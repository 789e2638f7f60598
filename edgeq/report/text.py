"""Text of the final table and of the run: figures with units, and explicit marks for missing values."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from edgeq.core.intervals import beyond_proof
from edgeq.core.manifest import Manifest
from edgeq.core.results.measured import Agreement, Emulation, Fidelity, Interval, OutputComparison
from edgeq.core.results.model import KeptValues, LayerSqnrs, RankedLayers, Search
from edgeq.core.results.report import (
    Candidate,
    Choice,
    Comparison,
    DataFacts,
    Fastest,
    Gate,
    PackageResult,
    ProjectReport,
    Refusal,
    Reuse,
    RunReport,
    Variant,
    of_one,
)
from edgeq.core.schemes import FLOAT_SCHEMES
from edgeq.core.units import counted, format_bytes, format_quantity

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


MISSING = "not measured"

_SHOWN = 6  # names of layers in one line


def size(row: PackageResult) -> str:
    """Return the artifact's size relative to the fp32 weights; a small model's can be larger."""
    if not row.fp32_bytes or not row.size_bytes:
        return format_bytes(row.size_bytes)
    ratio = row.size_bytes / row.fp32_bytes
    against = f"{ratio:.1%} of fp32" if ratio <= 1 else f"{ratio:.2f} times the fp32 weights"
    return f"{format_bytes(row.size_bytes)}\n{against}"


_SPARSE = 0.25  # zeros of a pruned model; rounding to int4 leaves a tenth of normal values at zero, to int8 a hundredth


def zeros(share: float | None) -> str:
    """Return the share of zeros among an artifact's weights."""
    return "not known" if share is None else f"{share:.1%} of the weights"


def download(row: PackageResult) -> str:
    """Return the size of the published ZIP."""
    return format_bytes(row.download_bytes)


def accuracy_head(row: PackageResult) -> str:
    """Return the name of the figure in `accuracy(row)`."""
    return "accuracy" if is_labelled(row) else "fidelity"


def is_labelled(row: PackageResult) -> bool:
    """Whether the row has a score, at least of the converted graph."""
    only = row.verified.graph_only
    fidelity = only.fidelity if only else row.verified.fidelity
    return fidelity is not None and bool(fidelity.metric)


def accuracy(row: PackageResult) -> str:
    """Return artifact against fp32 with the drop's interval; the SQNR where there are no labels."""
    only = row.verified.graph_only
    if only is not None:
        return f"{MISSING}\nits graph: {_accuracy_text(only.fidelity)}"
    return "\n".join((_accuracy_text(row.verified.fidelity), *_worst_parts(row)))


def _worst_parts(row: PackageResult) -> list[str]:
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


def _accuracy_text(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return MISSING
    if fidelity.score is None:
        if fidelity.sqnr_db is None:
            return MISSING
        return f"SQNR {decibel(fidelity.sqnr_db)}\n{fidelity.samples} {_inputs(fidelity)}"
    if fidelity.perplexity is not None:
        found = fidelity.perplexity
        rise = f"rise {found.rise_pct.estimate:.2f}% ({found.rise_pct.low:.2f} to {found.rise_pct.high:.2f})"
        return f"perplexity {found.artifact:.4g}, fp32 {found.fp32:.4g}\n{rise}"
    own = score(fidelity, fidelity.score)
    if fidelity.fp32_score is None:
        return own
    scores = f"{own}, fp32 {score(fidelity, fidelity.fp32_score)}"
    drop = fidelity.drop_pp
    return f"{scores}\ndrop {drop.estimate:.2f} pp ({drop.low:.2f} to {drop.high:.2f})" if drop else scores


def _inputs(fidelity: Fidelity) -> str:
    return "evaluation samples" if fidelity.inputs == "evaluation" else "random inputs"


def score(fidelity: Fidelity, value: float) -> str:
    """Return a score of the metric that `fidelity` has."""
    # a metric of the user's own has a range of its own
    is_share = fidelity.metric in ("top1", "top-1") or (fidelity.metric or "").startswith("accuracy@")
    return share(value) if is_share else f"{fidelity.metric} {value:.4g}"


def agreement(row: PackageResult) -> str:
    """Return the share of samples with the same top-1 class as fp32."""
    fidelity = row.verified.fidelity
    return "-" if fidelity is None or fidelity.top1_agreement is None else share(fidelity.top1_agreement)


def int8_share(row: PackageResult) -> str:
    """Return the share of multiply-accumulates that ran in int8 kernels."""
    kernels = row.verified.kernels
    if kernels is None or kernels.int8_macs is None:
        return "-"
    return share(kernels.int8_macs) + (", by its program" if row.verified.graph_only else "")


def device(row: PackageResult) -> str:
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


def latency(row: PackageResult) -> str:
    """Return p50 and p90 with the host's architecture or GPU, since they are not valid for another one."""
    timing = row.verified.timing
    if timing is None:
        return MISSING
    return f"{_ms(timing.p50_ms)} / {_ms(timing.p90_ms)} ms\n{timing.gpu or f'host {timing.arch}'}"


def _ms(value_ms: float) -> str:
    return format_quantity(value_ms, "ms").removesuffix(" ms")


def search(found: Search) -> str:
    """Return the layers that a search left in float."""
    kept = found.found.kept
    names = f": {', '.join(kept[:_SHOWN])}{f' and {len(kept) - _SHOWN} more' if len(kept) > _SHOWN else ''}"
    remedies = "".join(f", {name}" for name in found.found.remedies)
    tried = f"{counted(len(found.attempts), 'assignment')} tried on {counted(found.samples, 'sample')}"
    return f"{len(kept)} of {len(found.ranking)} layers in float{names if kept else ''}{remedies} ({tried})"


def stand_in(row: PackageResult) -> str:
    """Return what ran an artifact in place of its own kind of device."""
    return "by its reference model" if row.verified.npu else "emulated"


def npu(row: PackageResult) -> str:
    """Return what an artifact for an Ethos-U needs, by vela's report; "" for others."""
    facts = row.verified.npu
    if facts is None:
        return ""
    pools = (
        f"scratch pool {format_bytes(facts.scratch_bytes)}, method pool {format_bytes(facts.planned_bytes)} and more"
    )
    memory = f"SRAM {format_bytes(facts.sram_bytes)}, {pools}"
    return f"{facts.accelerator}: {format_quantity(facts.cycles, 'cycles')} by vela's estimate\n{memory}"


def verdict_text(row: PackageResult) -> str:
    """Return `ok`, or `failed:` with the first gate, below it how many more, and in brackets remarks on the row."""
    failed = [gate for gate in row.checked.gates if not gate.passed]
    marks = [
        *([stand_in(row)] if row.verified.stand_in else []),
        *(["random weights"] if row.weights == "random" else []),
        *(["cached"] if row.cached else []),
    ]
    lines = [f"failed: {failed[0].name}" if failed else "ok"]
    lines += [f"and {len(failed) - 1} more"] if len(failed) > 1 else []
    lines += [f"({', '.join(marks)})"] if marks else []
    return "\n".join(lines)


def failures(row: PackageResult, *, named: bool = False) -> list[str]:
    """Return a line for each gate that failed; `named` if the rows are of several models."""
    return [failure(subject(row, named=named), gate) for gate in row.checked.gates if not gate.passed]


def subject(row: PackageResult, *, named: bool) -> str:
    """Return which row a line is about; `named` if the rows are of several models."""
    return f"{row.model} {row.target} {row.scheme}" if named else f"{row.target} {row.scheme}"


def refusal_text(one: Refusal) -> str:
    """Return the verdict on a target and scheme that has no bundle."""
    return f"refused (exit code {int(one.error.exit_code)})"


def refusal_lines(one: Refusal, *, named: bool = False) -> list[str]:
    """Return why there is no bundle, what to do, and which earlier bundle remains; `named` as in `failures`."""
    about = f"{one.model} {one.label}" if named else one.label
    lines = [f"refused: {about}: {printable(one.error.what)}", f"  fix: {printable(one.error.fix)}"]
    return [*lines, f"  the bundle of an earlier run remains: {one.stays}"] if one.stays else lines


def failure(about: str, gate: Gate) -> str:
    """Return a gate's line: its subject, limit, measured value and margin."""
    return f"{gate.outcome}: {about}: {gate_facts(gate)}"


def gate_facts(gate: Gate) -> str:
    """Return a gate's name, limit and measured value."""
    is_plain = gate.measured in ("", MISSING) or gate.measured.startswith("predicted ")
    measured = gate.measured if is_plain else f"measured {gate.measured}"
    facts = (f"limit {gate.limit}" if gate.limit else "", measured)
    told = ", ".join(fact for fact in facts if fact)
    detail = f"{told}: {gate.detail}" if told and gate.detail else told or gate.detail
    return f"{gate.name}: {detail}"


def reuse(found: Reuse, fidelity: Fidelity | None) -> list[str]:
    """Return what was reused of the shipped model, its gain and cost, and the tensors with new ranges.

    Args:
        found: the comparison with an artifact that has only new ranges.
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
        return "no other values of the shipped model are kept: they would cost too much accuracy, or are equal anyway"
    cost = f"{decibel(kept.sqnr_db)} with, {decibel(kept.sqnr_strict_db)} without"
    return (
        f"kept from the shipped model, being close enough: {', '.join(parts)} ({kept.samples} calibration "
        f"samples: {cost})"
    )


def _quality(fidelity: Fidelity | None) -> str:
    if fidelity is not None and fidelity.score is not None:
        return f"accuracy {score(fidelity, fidelity.score)}"
    return MISSING if fidelity is None or fidelity.sqnr_db is None else f"SQNR {decibel(fidelity.sqnr_db)}"


def error_start(found: LayerSqnrs) -> str:
    """Return a line that says at which layer the error starts, or that it builds up gradually."""
    start, noisiest = found.start, found.noisiest
    if start is None:
        most = f"most comes from {noisiest.layer} ({decibel(noisiest.own_db)} by itself)"
        return f"no layer stands out: the error builds up from layer to layer, {most}"
    before = found.before(start)
    told = "it reads the input" if before == math.inf else f"{decibel(before)} before it"
    return f"the error starts at {start.layer}: {decibel(start.own_db)} by itself, {told}"


# --- Which layer to keep in float, and why: the same words for `edgeq sensitivity` and `edgeq compare --layers`.


FLOAT_COST = 3  # times the bytes of int8 weights: float weights take four bytes where int8 takes one

_WORTH_DB = 0.5  # less is within what another choice of samples changes


def ranked_advice(found: RankedLayers, metric: str) -> list[str]:
    """Return which layer to keep in float and why, by a ranking; the first line is the answer."""
    best = found.best_kept
    if best is None or best.but_one_db is None:
        return ["no single layer is worth keeping in float: the outputs come no nearer to fp32's with any of them"]
    gain_db = best.but_one_db - found.all_db
    before, after = decibel(found.all_db), decibel(best.but_one_db)
    lines = [f"the outputs' SQNR goes from {before} with every layer in int8 to {after} with this one in float"]
    is_better = best.but_one_score is not None and found.all_score is not None and best.but_one_score > found.all_score
    if best.but_one_score is not None and found.all_score is not None and found.fp32_score is not None:
        lines.append(
            f"{metric} goes from {found.all_score:.4g} to {best.but_one_score:.4g}; fp32 has {found.fp32_score:.4g} "
            f"({counted(found.samples, 'sample')})"
        )
    lines.append(f"it costs {format_bytes(FLOAT_COST * best.weight_bytes)} more, since float takes four bytes a weight")
    if gain_db < _WORTH_DB and not is_better:
        return [f"no single layer is worth keeping in float; {best.layer} gains most", *lines]
    return [f"keep {best.layer} in float", *lines]


def error_advice(found: LayerSqnrs, weight_bytes: Mapping[str, int]) -> list[str]:
    """Return which layer to try in float first and why, by where the error comes from; the first line is the answer."""
    worst = found.start or found.noisiest
    lines = [
        f"try {worst.layer} in float first",
        error_start(found),
        f"the output of {worst.layer} has {decibel(worst.sqnr_db)}, with all layers up to it in int8",
    ]
    if worst.layer in weight_bytes:
        cost = format_bytes(FLOAT_COST * weight_bytes[worst.layer])
        lines.append(f"it costs {cost} more, since float takes four bytes a weight")
    return [*lines, "`edgeq sensitivity` measures, with the model, what each layer in float gains at the outputs"]


def advice_lines(advice: Sequence[str], layer: str) -> list[str]:
    """Return advice as lines, the grounds indented, and the option that follows it."""
    option = [f"  try: --keep-fp32 {printable(layer)}"] if layer else []
    return [*(f"{'  ' if i else ''}{printable(line)}" for i, line in enumerate(advice)), *option]


def ranking(found: RankedLayers, *, model: str, target: str, metric: str) -> str:
    """Return a line for each layer, the most sensitive one first, and which one to keep in float."""
    best = found.best_kept
    rows = [("layer", "alone in int8", "all others in int8", *((metric, metric) if metric else ()), "weights")]
    for item in found.layers:
        decibels = [f"{value:.1f} dB" if value is not None else "" for value in (item.alone_db, item.but_one_db)]
        scores = [f"{value:.4g}" if value is not None else "" for value in (item.alone_score, item.but_one_score)]
        rows.append((item.layer, *decibels, *(scores if metric else ()), f"{item.weight_bytes:,}"))
    title = f"{model} for {target}: {counted(len(found.layers), 'layer')}, SQNR of the outputs against fp32"
    return "\n".join(
        [
            printable(title),
            *aligned(rows, right=frozenset(range(1, len(rows[0])))),
            f"measured on {counted(found.samples, 'sample')}; the first layers lose most",
            *advice_lines(ranked_advice(found, metric), best.layer if best else ""),
        ]
    )


# --- Two bundles of one model, the one in float and the other quantized.


INPUT_KINDS = {"evaluation": "evaluation samples", "random": "random inputs"}


def comparison(
    fp32: Manifest,
    quantized: Manifest,
    outputs: OutputComparison,
    layers: LayerSqnrs | None,
    weight_bytes: Mapping[str, int],
    notes: Sequence[str],
) -> str:
    """Return the figures of the outputs, a line for each layer, and the layer where the error starts."""
    lines = aligned([("fp32", bundle_title(fp32)), ("quantized", bundle_title(quantized))], indent="")
    lines += [f"outputs, {outputs.samples:,} {INPUT_KINDS[outputs.inputs]}:", *aligned(output_figures(outputs))]
    if layers is not None:
        cells = [(one.layer, decibel(one.sqnr_db), decibel(one.own_db)) for one in layers.layers]
        lines += [
            f"layers, the converted graph against the float one, {counted(layers.samples, 'calibration sample')}:",
            *aligned([("layer", "SQNR", "by itself"), *cells], right=frozenset({1, 2})),
        ]
        lines += advice_lines(error_advice(layers, weight_bytes), (layers.start or layers.noisiest).layer)
    return "\n".join([*lines, *(f"note: {printable(text)}" for text in notes)])


def bundle_title(manifest: Manifest) -> str:
    """Return a bundle's model, target and scheme."""
    return f"{manifest.model.name} {manifest.model.version} for {manifest.target.name}, {manifest.scheme}"


def output_figures(outputs: OutputComparison) -> list[tuple[str, str]]:
    """Return the figures of two artifacts' outputs, each with its name."""
    agreement = "the first output is not [N, classes]"
    if outputs.ranked:
        agreement = f"{share(outputs.agreeing / outputs.ranked)}, {outputs.agreeing:,} of {outputs.ranked:,}"
    scores = []
    if outputs.score is not None:
        scores = [(outputs.metric, f"{outputs.fp32_score:.4g} fp32, {outputs.score:.4g} quantized")]
    return [
        ("mean absolute error", f"{outputs.mean_abs_error:.4g}"),
        ("mean magnitude", f"{outputs.fp32_magnitude:.4g} fp32, {outputs.quantized_magnitude:.4g} quantized"),
        ("largest error", f"{outputs.max_abs_error:.4g}"),
        ("argmax agreement", agreement),
        *scores,
        ("SQNR", decibel(outputs.sqnr_db)),
        ("cosine", f"{outputs.cosine:.6g}"),
    ]


def layer_kinds(row: PackageResult) -> tuple[str, ...]:
    """Return the precision of each layer, int8, half, float or not known."""
    precisions = row.verified.kernels.precisions if row.verified.kernels else ()
    if len(precisions) != len(row.layers):
        return ("not known",) * len(row.layers)
    return tuple("float" if kind == "other" else kind for kind in precisions)


def place(row: PackageResult) -> str:
    """Return a label for the row's path."""
    return "rejected" if row.checked.exit_code else "bundle"


def share(value: float) -> str:
    """Return a share in percent; 100.00% only for exactly 1."""
    if not math.isfinite(value):
        return str(value)
    # 99.996% must not read as everything
    return f"{min(value, 0.9999):.2%}" if value < 1 else "100.00%"


def decibel(value_db: float) -> str:
    """Return a signal-to-difference ratio; infinite means that the outputs are equal."""
    return "infinite (equal)" if value_db == math.inf else f"{value_db:.1f} dB"


# --- A model under several schemes in words: what --scheme auto tried.


def choice(found: Choice) -> str:
    """Return the basis of --scheme auto's choice, and its result."""
    made_of = f"matrix products do {share(found.linear_macs)} of the model's multiply-accumulates"
    chosen = found.tried[found.chosen]
    if chosen.passed:
        return f"{made_of}; {chosen.scheme} is the first that passed every gate"
    left = f"; not tried, since they would fail the same gate: {', '.join(found.untried)}" if found.untried else ""
    if found.unfinished:
        left += f"; not tried to the end, since --time-budget was over: {', '.join(found.unfinished)}"
    return f"{made_of}; none passed every gate; {chosen.scheme} comes closest{left}"


def choice_lines(found: Choice) -> list[str]:
    """Return a line for each scheme that was tried: its figures, and why it was rejected."""
    return [f"{one.scheme}: {_figures(one)}{verdict_of(one)}" for one in found.tried]


def verdict_of(one: Variant) -> str:
    """Return `passed`, or why a scheme was refused."""
    return "passed" if one.passed else f"refused: {reasons(one)}"


def reasons(one: Variant) -> str:
    """Return why there is no artifact, or the text of each failed gate; "" for neither."""
    return one.error or "; ".join(gate_facts(gate) for gate in one.failed)


# --- Several targets in words: how the fastest was chosen.


def target_text(row: PackageResult) -> str:
    """Return a row's target, and below it the one that the run named where that stands for several."""
    return row.target if row.fastest is None else f"{row.target}\n({row.fastest.name})"


def fastest(found: Fastest) -> str:
    """Return which candidate a row is, and why."""
    chosen = found.candidates[found.chosen]
    passed = sum(one.figures.passed for one in found.candidates)
    if not passed:
        return f"none of {counted(len(found.candidates), 'candidate')} passed every gate; {chosen.target} comes closest"
    if not found.turns:
        return f"{chosen.target} is the only candidate that passed every gate"
    timed = f"of {passed} candidates that passed every gate, timed in {counted(found.turns, 'turn')} on {found.cpu}"
    level = [one for one in found.candidates if one.is_as_fast or (one.slowdown is None and one.figures.passed)]
    if len(level) == 1:
        return f"{chosen.target} is the fastest {timed}"
    others = " and ".join(one.target for one in level if one is not chosen)
    same = [one for one in level if one.figures.size_bytes == chosen.figures.size_bytes]
    why = "the smallest" if len(same) == 1 else "the first of the smallest"
    return f"{chosen.target} is within the noise as fast as {others}, and {why}, {timed}"


def candidate_lines(found: Fastest) -> list[str]:
    """Return a line for each candidate: its figures, how much slower it is, and its verdict."""
    return [
        f"{one.target}: {'' if one.figures.error else f'{one.figures.scheme}, '}{_figures(one.figures)}"
        f"{candidate_verdict(one)}"
        for one in found.candidates
    ]


def candidate_verdict(one: Candidate) -> str:
    """Return how a candidate's latency compares with the fastest's, and whether it passed or why it was refused."""
    if one.slowdown is None:
        return verdict_of(one.figures)
    spread = f"95% interval {one.slowdown.low:.2f} to {one.slowdown.high:.2f}"
    level = "as fast as the fastest, " if one.is_as_fast else ""
    return f"{level}{one.slowdown.estimate:.2f} times the fastest's time ({spread}), {verdict_of(one.figures)}"


# --- What --compare found, in words.


def compared(found: Comparison) -> list[str]:
    """Return the figures side by side, and a sentence on the scheme's gain over fp32."""
    own, *others = found.variants
    lines = ["; ".join(f"{one.scheme} {_figures(one) or reasons(one)}".rstrip(", ") for one in found.variants)]
    fp32 = next((one for one in others if one.scheme == "fp32" and not one.error), None)
    return [*lines, _worth(own, fp32, found.arch)] if fp32 is not None else lines


def _worth(own: Variant, fp32: Variant, arch: str) -> str:
    told = [] if own.speedup is None else [f"is {speedup(own.speedup, f'than fp32 on this {arch} host')}"]
    if own.size_bytes and fp32.size_bytes:
        ratio = fp32.size_bytes / own.size_bytes
        told.append(f"is {ratio:.2f} times smaller" if ratio >= 1 else f"is {1 / ratio:.2f} times larger")
    slower = own.speedup is not None and round(own.speedup.high, 2) < 1
    so = ": its only gain is in size" if slower and "smaller" in told[-1] else ""
    return f"{own.scheme} {' and '.join(told)}{so}" if told else f"{own.scheme}: there are no measurements to compare"


def speedup(found: Interval, than: str) -> str:
    """Return how many times faster or slower something is, or that its displayed interval includes both.

    Args:
        found: the speedup.
        than: the reference, such as "than fp32 on this x86_64 host".
    """
    spread = f"95% interval {found.low:.2f} to {found.high:.2f}"
    if round(found.low, 2) > 1:
        return f"{found.estimate:.2f} times faster {than} ({spread})"
    if round(found.high, 2) < 1:
        return (
            f"{1 / found.estimate:.2f} times slower {than} (95% interval {1 / found.high:.2f} to {1 / found.low:.2f})"
        )
    return f"not significantly faster or slower {than} ({found.estimate:.2f} times as fast, {spread})"


def _figures(one: Variant) -> str:
    known = [variant_size(one), variant_accuracy(one), variant_latency(one)]
    return "".join(f"{text}, " for text in known if text != MISSING)


def variant_size(one: Variant) -> str:
    """Return its artifact's size."""
    return MISSING if one.size_bytes is None else format_bytes(one.size_bytes)


def variant_accuracy(one: Variant) -> str:
    """Return its score, or its SQNR where there are no labels."""
    if one.score is not None:
        drop = "" if one.drop_pp is None else f" (drop {one.drop_pp.estimate:.2f} pp)"
        return f"{share(one.score) if one.score <= 1 else format(one.score, '.4g')}{drop}"
    return MISSING if one.sqnr_db is None else f"SQNR {decibel(one.sqnr_db)}"


def variant_latency(one: Variant) -> str:
    """Return its median latency, and the 90th percentile."""
    if one.latency_ms is None or one.latency_p90_ms is None:
        return MISSING
    return f"{format_quantity(one.latency_ms, 'ms')} (p90 {format_quantity(one.latency_p90_ms, 'ms')})"


# --- The closing table of a run: one row for each target and scheme, or a block where the terminal is too narrow.


_NOT_A_TERMINAL = 100

_UNIT = re.compile(r"(?<=\d) (?=(?:[kMG]?i?B|ms|pp|dB|%)\b)")

_STYLES = {"ok": "green", "failed": "bold red"}


def render(report: RunReport, *, width: int | None = None) -> str:
    """Return the run of one model: see `render_project`."""
    return render_project(of_one(report), width=width)


def render_project(report: ProjectReport, *, width: int | None = None, stream: TextIO | None = None) -> str:
    """Return the table, the failures with their margins, the warnings, and the bundles' paths.

    Args:
        report: the run.
        width: columns of the terminal; None to ask it.
        stream: what the text is for, a terminal or not; None for stdout.
    """
    canvas = io.StringIO()
    stream = stream or sys.stdout
    console = _console(canvas, width or columns(stream), stream)
    if report.rows:
        table = _table(report.rows, report.refused)
        # a table that does not fit would break numbers apart: then each row becomes a block of lines
        if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
            console.print(table)
        else:
            for row in report.rows:
                console.print(_block(row, console.width))
            for one in report.refused:
                console.print(f"{one.model} {one.label}\n  verdict  {refusal_text(one)}\n", style="bold red")
            side_by_side = _side_by_side(report.rows, report.refused)
            widest = console.measure(side_by_side, options=console.options.update(width=10_000)).maximum
            if len(report.rows) + len(report.refused) > 1 and widest <= console.width:
                console.print(side_by_side)
    below = _below(report)
    if width is not None or stream.isatty():
        below = [part for line in below for part in wrapped(line, console.width)]
    above = "\n".join(line.rstrip() for line in canvas.getvalue().splitlines())
    return "\n".join([above.rstrip("\n"), *below]).lstrip("\n")


def columns(stream: TextIO) -> int:
    """Return the width of the terminal that a stream is, $COLUMNS if that is set."""
    if "COLUMNS" in os.environ or not stream.isatty():
        return shutil.get_terminal_size((_NOT_A_TERMINAL, 24)).columns
    return os.get_terminal_size(stream.fileno()).columns or _NOT_A_TERMINAL


def terminal_width() -> int | None:
    """Return the width of the terminal that stdout is; None for a file or a pipe, whose lines stay whole."""
    return columns(sys.stdout) if sys.stdout.isatty() else None


def _console(canvas: io.StringIO, width: int, stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=canvas, width=width, force_terminal=stream.isatty(), highlight=False, markup=False)


def bound(line: str) -> str:
    """Return a line whose numbers stay with their units where it is wrapped."""
    return _UNIT.sub("\N{NO-BREAK SPACE}", line)


def wrapped(line: str, width: int, hanging: int = 2) -> list[str]:
    """Return a line in parts of `width` columns, all but the first indented by `hanging`."""
    # names and paths stay whole, so that they can be copied; a number stays with its unit
    parts = textwrap.wrap(
        bound(line), width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in parts] or [""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Return a table of texts in `width` columns, its cells wrapped between words."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    cells = [[bound(cell) for cell in row] for row in (head, *rows)]
    by_column = list(zip(*cells, strict=True))
    widths, least = (
        [max(len(part) for cell in column for part in re.split(between, cell)) for column in by_column]
        for between in ("\n", "[ \n]")
    )
    gaps = 2 * (len(widths) - 1)
    while sum(widths) + gaps > width and max(widths) > 1:
        # long texts are wrapped before a name is broken
        spare = [max(now - word, 0) * width + now for now, word in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    for name, wide in zip(head, widths, strict=True):
        drawn.add_column(name, overflow="fold", width=wide)
    for row in cells[1:]:
        drawn.add_row(*row)
    canvas = io.StringIO()
    Console(file=canvas, width=width, force_terminal=False, highlight=False, markup=False).print(drawn)
    return [line.rstrip().replace("\N{NO-BREAK SPACE}", " ") for line in canvas.getvalue().splitlines()]


def _table(rows: Sequence[PackageResult], refused: Sequence[Refusal]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    many = len({row.model for row in rows}) > 1
    # ASCII-safe rules and no colours needed: the words alone carry the meaning
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    labelled = any(is_labelled(row) for row in rows)
    heads = ["target", "scheme", "size", "download", "accuracy" if labelled else "fidelity", "agreement"]
    emulated = any(device(row) != "-" for row in rows)
    heads += ["int8 MACs", *(["on the device"] if emulated else []), "latency p50 / p90", "verdict"]
    for head in [*(["model"] if many else []), *heads]:
        table.add_column(head, no_wrap=True)
    for row in rows:
        cells = [target_text(row), row.scheme, size(row), download(row), accuracy(row)]
        cells += [agreement(row), int8_share(row)]
        cells += [*([device(row)] if emulated else []), latency(row)]
        table.add_row(*([row.model] if many else []), *cells, _verdict(row))
    for one in refused:
        cells = [one.target, one.scheme, *("-" for _ in heads[2:-1])]
        table.add_row(*([one.model] if many else []), *cells, Text(refusal_text(one), style="bold red"))
    return table


def _side_by_side(rows: Sequence[PackageResult], refused: Sequence[Refusal]) -> RenderableType:
    """Return the figures that a choice is made by, under each other; the blocks above have all others."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    many = len({row.model for row in rows}) > 1
    table.add_column("target, scheme", no_wrap=True)
    for head in ("size", "drop", "worst SQNR", "p50"):
        table.add_column(head, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        fidelity, timing = row.verified.fidelity, row.verified.timing
        drop = f"{fidelity.drop_pp.estimate:.2f} pp" if fidelity and fidelity.drop_pp else "-"
        if fidelity and fidelity.perplexity:
            drop = f"{fidelity.perplexity.rise_pct.estimate:+.2f}%"
        name = target_text(row).replace("\n", " ")
        label = f"{row.model} {name}" if many else name
        p50 = f"{_ms(timing.p50_ms)} ms" if timing else "-"
        cells = [f"{label}\n  {row.scheme}", format_bytes(row.size_bytes), drop, worst_sqnr(row), p50]
        verdict, *more = verdict_text(row).split("\n")
        more = [line for line in more if not line.startswith("(")]  # the remarks are in the block
        table.add_row(*cells, Text("\n".join((verdict, *more)), style=_STYLES.get(verdict.split(":")[0], "")))
    for one in refused:
        label = f"{one.model} {one.target}" if many else one.target
        table.add_row(f"{label}\n  {one.scheme}", *("-" for _ in range(4)), Text("refused", style="bold red"))
    return table


def worst_sqnr(row: PackageResult) -> str:
    """Return the SQNR of the output, or of the channel of it, that came out worst; "-" if there is none."""
    gate = next((one for one in row.checked.gates if one.name == "fidelity"), None)
    found = re.search(r"-?[\d.]+ dB", gate.measured) if gate else None
    if found:
        return found[0]
    fidelity = row.verified.fidelity
    if fidelity is None or fidelity.sqnr_db is None:
        return "-"
    return "equal" if fidelity.sqnr_db == math.inf else decibel(fidelity.sqnr_db)


# --- What to try next, found in what this run measured: another scheme that passed, the layer with the most error.


_ACCURACY_GATES = frozenset({"accuracy_drop", "fidelity", "sqnr", "agreement", "class_drop"})

_SIZE_GATES = frozenset({"size", "download"})

_TIME_GATES = frozenset({"latency", "load", "peak_memory"})


def next_steps(row: PackageResult, rows: Sequence[PackageResult], *, bundle: str = "") -> list[str]:
    """Return what this run's own measurements suggest for a row that failed; [] where they suggest nothing.

    Args:
        row: that failed.
        rows: all of the run.
        bundle: what to call its folder, where it may move; "" for its path.
    """
    failed = {gate.name for gate in row.checked.gates if gate.outcome == "failed"}
    unverified = {gate.name for gate in row.checked.gates if gate.outcome == "unverified"}
    said = [
        f"--scheme {other.scheme} passed every gate here: {format_bytes(other.size_bytes)}, "
        f"{_accuracy_text(other.verified.fidelity).splitlines()[-1]}"
        for other in rows
        if (other.model, other.target) == (row.model, row.target) and not other.checked.exit_code
    ]
    tried = (*(row.choice.tried if row.choice else ()), *(row.compared.variants[1:] if row.compared else ()))
    said += [
        f"--scheme {one.scheme} was measured too: {_figures(one).removesuffix(', ')}"
        for one in tried
        if failed and one.passed and one.scheme != row.scheme and not _breaks(one, row)
    ]
    unproven = _unproven(row)
    said += unproven
    if failed & _ACCURACY_GATES and not unproven:
        said += _float_layer(row)
    if "parity" in failed:
        said.append(
            "parity compares the artifact with the graph that it was made from: data and limits do not change it, only "
            "what is computed in int8 (--keep-fp32, --scheme), by which runtime (--target), and --reuse-qparams-from"
        )
    if failed & _SIZE_GATES and row.layers:
        largest = max(row.layers, key=lambda layer: layer.weight_bytes)
        said.append(
            f"the largest layer is {largest.name}: {format_bytes(largest.weight_bytes)} of "
            f"{format_bytes(row.size_bytes)}"
        )
    # a Mac's tools alone reach an iPhone
    on = "adb" if row.target.startswith("android-") else "ssh:HOST" if row.target.startswith("linux-") else ""
    on = "" if row.verified.npu else on  # edgeq's runners on boards use their CPUs
    if on and not failed and unverified & _TIME_GATES:
        names = ", ".join(sorted(unverified & _TIME_GATES))
        said.append(
            f"{names}: measure on a device: edgeq verify {bundle or row.path} --on {on} --write-verdict verdict.json"
        )
    return list(dict.fromkeys(said))


def _unproven(row: PackageResult) -> list[str]:
    """Return what proves a limit on the accuracy drop that the evaluation data cannot prove for any artifact."""
    bound = next((gate.bound for gate in row.gates if gate.name == "accuracy_drop" and not gate.passed), None)
    fidelity = row.verified.fidelity
    if bound is None or fidelity is None or fidelity.lost is None or fidelity.distinct is None:
        return []
    why = beyond_proof(fidelity.distinct, bound)
    if not why:
        return []
    return [f"give more evaluation data ({why}), or judge the estimate alone: --limit-on point"]


def _breaks(one: Variant, row: PackageResult) -> bool:
    """Whether a variant's own figures break a limit that the row was held to: what was compared was not judged."""
    figures = {
        "size": one.size_bytes,
        "accuracy_drop": one.drop_pp.high if one.drop_pp else None,
        "latency": one.latency_ms,
    }
    bounds = {gate.name: gate.bound for gate in row.gates if gate.bound is not None}
    return any(value is not None and name in bounds and value > bounds[name] for name, value in figures.items())


def sizes(row: PackageResult) -> str:
    """Return what was seen over the sizes that vary; "" where none does."""
    report = row.verified.sizes
    if report is None:
        return ""
    told = [
        f"{run.text} {'wrong' if run.problem else decibel(run.sqnr_db) if run.sqnr_db is not None else 'ran'}"
        for run in report.runs
    ]
    told += [run.text for run in report.beyond]
    if report.planned_memory_bytes is not None:
        told.append(f"{format_bytes(report.planned_memory_bytes)} planned for the largest")
    return "\n".join(told)


def state(row: PackageResult) -> str:
    """Return how a model with state ends after many steps; "" for other models."""
    report = row.verified.drift
    if report is None:
        return ""
    if not report.outputs:
        return report.problem or report.unsure
    late = min(one.sqnr_db[-1] for one in report.outputs)
    growth = max(one.growth_db for one in report.outputs)
    return f"SQNR {decibel(late)} after {report.steps:,} steps, {growth:+.1f} dB of growth"


def continuation(row: PackageResult) -> str:
    """Return how a language model continues a prompt, and how fast; "" for other models."""
    report = row.verified.continuation
    if report is None:
        return ""
    told = [f"{report.as_fp32} of {report.tokens} next tokens as fp32"]
    if report.as_graph is not None:
        told.insert(0, f"{report.as_graph} of {report.tokens} as its graph")
    if report.prefill_tokens_per_s and report.decode_tokens_per_s:
        told.append(f"prompt {report.prefill_tokens_per_s:,.0f} tokens/s")
        told.append(f"then {report.decode_tokens_per_s:,.0f} tokens/s")
    return "\n".join(told)


def _float_layer(row: PackageResult) -> list[str]:
    """Return what it costs to keep the layer with the most error of its own in float."""
    if row.layer_sqnrs is None or row.scheme in FLOAT_SCHEMES:
        return []
    noisiest = row.layer_sqnrs.noisiest
    held = sum(layer.weight_bytes for layer in row.layers if layer.name == noisiest.layer)
    if not held or not math.isfinite(noisiest.own_db):
        return []
    share_of = f", +{FLOAT_COST * held / row.size_bytes:.0%}" if row.size_bytes else ""
    return [
        f"--keep-fp32 {noisiest.layer} keeps the layer with the most error of its own ({decibel(noisiest.own_db)}) in "
        f"float: +{format_bytes(FLOAT_COST * held)}{share_of}"
    ]


def _block(row: PackageResult, width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    facts = (
        ("size", size(row)),
        ("download", download(row)),
        *((("zeros", zeros(row.zeros)),) if (row.zeros or 0) >= _SPARSE else ()),
        (accuracy_head(row), accuracy(row)),
        ("agreement", agreement(row)),
        ("int8 MACs", int8_share(row)),
        *((("on the device", device(row)),) if device(row) != "-" else ()),
        ("latency p50 / p90", latency(row)),
        *((("sizes", sizes(row)),) if row.verified.sizes else ()),
        *((("state", state(row)),) if row.verified.drift else ()),
        *((("continuation", continuation(row)),) if row.verified.continuation else ()),
        *((("NPU", npu(row)),) if row.verified.npu else ()),
    )
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for head, value in facts:
        lines.add_row(f"  {head}", value.replace("\n", ", "))
    lines.add_row("  verdict", _verdict(row, between=" "))
    title = Text(f"{row.model} {row.target} {row.scheme}", style="bold")
    if row.fastest is not None:
        title.append(f" ({row.fastest.name})", style="not bold")
    block = Table.grid()
    block.add_column(max_width=width, overflow="fold")
    block.add_row(title)
    block.add_row(lines)
    block.add_row("")
    return block


def _verdict(row: PackageResult, between: str = "\n") -> Text:
    from rich.text import Text

    verdict = verdict_text(row)
    return Text(verdict.replace("\n", between), style=_STYLES.get(verdict.split()[0].rstrip(":"), ""))


def device_lines(row: PackageResult) -> list[str]:
    """Return the table of the pairs that differ; empty where host and devices agree."""
    emulation = row.verified.emulation
    lines = disagreements(emulation) if emulation else []
    return [f"{row.target} {row.scheme}: where the runs differ", *lines] if lines else []


def _warnings(rows: Sequence[PackageResult]) -> dict[str, list[str]]:
    """Return each warning once, with the targets that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for text in row.checked.warnings:
            names = about.setdefault(text, [])
            if row.target not in names:
                names.append(row.target)
    return about


def _busy_line(rows: Sequence[PackageResult]) -> list[str]:
    """Return a line on times that may be too long and that no limit is on: `warnings` has each of the others."""
    timings = [row.verified.timing for row in rows if row.verified.timing is not None]
    busy = [
        row for row in rows if row.verified.timing and row.verified.timing.warning not in ("", *row.checked.warnings)
    ]
    if not busy:
        return []
    share_of = f"{len(busy)} of {counted(len(timings), 'bundle')}"
    return [
        f"note: this host was busy while it timed {share_of}: latencies may be too high. No limit is on them; "
        "`--no-cache` measures again"
    ]


def _below(report: ProjectReport) -> list[str]:
    """Return the lines under the table: failures, errors, the app, warnings, data, paths."""
    named = len(report.models) > 1
    devices = [line for row in report.rows for line in device_lines(row)]
    failed = [line for row in report.rows for line in failures(row, named=named)]
    failed += [failure("app", gate) for gate in report.app if not gate.passed]
    for model in report.models:
        for one in model.error.findings if model.error else ():
            failed += [f"error: {printable(f'{model.name}: {one.what}')}", f"  fix: {printable(one.fix)}"]
    failed += [line for one in report.refused for line in refusal_lines(one, named=named)]
    steps = [
        f"next: {subject(row, named=named)}: {printable(step)}"
        for row in report.rows
        if row.checked.exit_code
        for step in next_steps(row, report.rows)
    ]
    found = [f"search: {search(row.search)} ({row.target})" for row in report.rows if row.search]
    chosen = default_lines((row.target, row.scheme, row.by_default) for row in report.rows)
    tried = [*chosen, *(line for row in report.rows for line in _attempt_lines(row))]
    app = [f"app: {gate.name}: {gate.measured}, limit {gate.limit}" for gate in report.app if gate.passed]
    warnings = [f"warning: {text} ({', '.join(names)})" for text, names in _warnings(report.rows).items()]
    warnings += _busy_line(report.rows)
    data = [line for model in report.models if model.report for line in _data(model.report.data)]
    reused = [line for row in report.rows for line in _reused(row)]
    paths = [f"{place(row)}: {row.path}" for row in report.rows]
    sections = [
        section for section in (devices, failed, steps, found, tried, app, warnings, data, reused, paths) if section
    ]
    return [line for section in sections for line in ("", *section)]


def default_lines(choices: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return which schemes the defaults of targets are for a model, and why, one line for targets of one scheme.

    static-int8 is not mentioned: it is every model's until there is a reason.

    Args:
        choices: target, scheme and reason.
    """
    targets: dict[tuple[str, str], list[str]] = {}
    for target, scheme, why in choices:
        if why and scheme != "static-int8":
            targets.setdefault((scheme, why), []).append(target)
    return [
        f"scheme {scheme} for {', '.join(names)}: {why}. Choose another with --scheme"
        for (scheme, why), names in targets.items()
    ]


def _attempt_lines(row: PackageResult) -> list[str]:
    """Return how the row's target was chosen, how auto came to its scheme, and how that compares with float."""
    lines = []
    if row.fastest is not None:
        lines.append(f"fastest: {row.fastest.name}: {printable(fastest(row.fastest))}")
        lines += [f"  {printable(line)}" for line in candidate_lines(row.fastest)]
    if row.choice is not None:
        lines.append(f"auto: {row.target}: {choice(row.choice)}")
        lines += [f"  {printable(line)}" for line in choice_lines(row.choice)]
    if row.compared is not None:
        lines += [f"compare: {row.target}: {printable(line)}" for line in compared(row.compared)]
    return lines


def _reused(row: PackageResult) -> list[str]:
    if row.reuse is None:
        return []
    return [f"reuse: {row.target}: {line}" for line in reuse(row.reuse, row.verified.fidelity)]


def _data(facts: DataFacts) -> list[str]:
    lines = [f"data: {finding.name}: {finding.message}" for finding in facts.findings]
    if facts.excluded_shared:
        lines.append(f"data: {counted(facts.excluded_shared, 'sample')} left out: they are also in the other set")
    return lines + [f"data: skipped {name}" for name in facts.skipped]


# --- The emulated runs as tables: each against the host and fp32, and where two runs disagree.


_HEADS = ("against", "run", "max abs", "SQNR", "differing", "top-1 flips")


def disagreements(emulation: Emulation) -> list[str]:
    """Return a line for each pair of runs, of host and devices, whose outputs differ."""
    pairs = [(run.host.left, run.name, run.host) for run in emulation.runs]
    pairs += [(pair.left, pair.right, pair) for pair in emulation.between]
    rows = [_row(left, right, pair) for left, right, pair in pairs if pair.sqnr_db != math.inf]
    return aligned([_HEADS, *rows], right=frozenset({2, 3, 4, 5})) if rows else []


def runs_table(emulation: Emulation) -> list[str]:
    """Return a line for each run against the host, and one against fp32 where available."""
    rows = []
    for run in emulation.runs:
        rows.append(_row("host", run.name, run.host))
        if run.fp32 is not None:
            rows.append(_row("fp32", run.name, run.fp32))
    rows += [_row(pair.left, pair.right, pair) for pair in emulation.between]
    return aligned([_HEADS, *rows], right=frozenset({2, 3, 4, 5})) if rows else []


def _row(left: str, right: str, pair: Agreement) -> tuple[str, ...]:
    flips = "-" if pair.top1_flips is None else f"{pair.top1_flips} of {pair.samples}"
    if pair.sqnr_db == math.inf:
        return (left, right, "0", "equal", "0", flips)
    differing = f"{pair.differing:.2%}" if pair.differing >= 1e-4 else f"{pair.differing:.1e}"
    return (left, right, f"{pair.max_abs:.3g}", f"{pair.sqnr_db:.1f} dB", differing, flips)


# --- Plain text for a terminal: aligned columns, and names from files that cannot move the cursor.


def printable(text: str) -> str:
    """Return `text` on one line, without control characters, which a foreign bundle may hold."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def aligned(
    rows: Sequence[Sequence[str]],
    *,
    indent: str = "  ",
    right: frozenset[int] = frozenset(),
    width: int | None = None,
) -> list[str]:
    """Return a line for each row, its cells under those of the row above.

    Args:
        rows: cells; all rows have as many.
        indent: put before each line.
        right: the columns whose cells end together.
        width: where the last cell is wrapped, below itself; None to leave it whole.
    """
    safe = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*safe, strict=True)]
    lines = [
        indent
        + "  ".join(
            cell.rjust(wide) if i in right else cell.ljust(wide)
            for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in safe
    ]
    if width is None:
        return lines
    hanging = len(indent) + sum(wide + 2 for wide in widths[:-1])
    return [part for line in lines for part in wrapped(line, width, min(hanging, width // 2))]
