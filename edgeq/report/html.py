"""HTML pages that need no network, scripts or other files."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.core.results.measured import DeviceRun, Flip, Flips
from edgeq.core.results.model import LayerSqnr, LayerSqnrs, RankedLayers, Search, Sensitivity
from edgeq.core.results.report import (
    DataFacts,
    Gate,
    ModelResult,
    PackageResult,
    Refusal,
    Source,
    Variant,
    variant_of,
)
from edgeq.core.units import counted, format_bytes, format_quantity
from edgeq.report import text
from edgeq.report.diff import Diff
from edgeq.report.plots import Area, Plot, Point, box, depth, pareto, treemap

if TYPE_CHECKING:
    from jinja2 import Environment


HTML_NAME = "report.html"

_HERE = Path(__file__).parent


def diff_html(diff: Diff) -> str:
    """Return the page of a difference."""
    return _environment().get_template("diff.html.j2").render(diff=diff, css=_css())


def _css() -> str:
    return (_HERE / "page.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def breakable(name: str) -> Markup:
        """Let a long name break after its separators, and nowhere else."""
        return Markup("<wbr>").join(re.split(r"(?<=[._/:@])", name))

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(breakable=breakable, bound=text.bound)
    return environment


# --- Schemes side by side, as the page shows them: what --scheme auto tried, what --compare made, all rows of a
# run.


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsView:
    """A table of artifacts; `rows` holds what `head` names, then size, accuracy, latency, verdict with its reasons."""

    title: str
    head: str
    told: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str, str], ...]


def variants_views(row: PackageResult) -> tuple[VariantsView, ...]:
    """Return the tables of a row: the choices of its target and its scheme, and the comparison with float."""
    views = []
    if row.fastest is not None:
        rows = [
            (f"{one.target}, {one.figures.scheme}", one.figures, text.candidate_verdict(one))
            for one in row.fastest.candidates
        ]
        told = (f"{row.fastest.name}: {text.fastest(row.fastest)}.",)
        views.append(_view("How the target was chosen", "target, scheme", told, rows))
    if row.choice is not None:
        rows = [(one.scheme, one, text.verdict_of(one)) for one in row.choice.tried]
        views.append(_view("How the scheme was chosen", "scheme", (text.choice(row.choice),), rows))
    if row.compared is not None:
        rows = [(one.scheme, one, _compared_verdict(one, is_own=i == 0)) for i, one in enumerate(row.compared.variants)]
        views.append(_view("Against float on the same target", "scheme", text.compared(row.compared), rows))
    return tuple(views)


def _view(title: str, head: str, told: Sequence[str], rows: Sequence[tuple[str, Variant, str]]) -> VariantsView:
    return VariantsView(
        title=title,
        head=head,
        told=tuple(told),
        rows=tuple(
            (name, text.variant_size(one), text.variant_accuracy(one), text.variant_latency(one), verdict)
            for name, one, verdict in rows
        ),
    )


def _compared_verdict(one: Variant, *, is_own: bool) -> str:
    if one.error or one.failed:
        return one.error or f"failed: {', '.join(gate.name for gate in one.failed)}"
    return "ok" if is_own else "for comparison, not judged"


def attempts(sources: Sequence[Source]) -> tuple[Plot, ...]:
    """Return plots of accuracy against size and against latency for each model that a target has several attempts of.

    Attempts at different targets do not compete: a target has a front of its own.
    """
    plots = []
    for i, model in enumerate(dict.fromkeys(source.row.model for source in sources)):
        tried = dict(one for source in sources if source.row.model == model for one in _all_of(source))
        for cost in ("size", "latency"):
            plot = _plot(tried, f"{model}: accuracy against {cost}", f"attempts{i}-{cost}", cost)
            plots += [plot] if plot else []
    return tuple(plots)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """An artifact in figures.

    Attributes:
        rivals: the target that it was one of several attempts at, as the run named it.
        timed_on: the architecture that timed it, where that is not its target's; else "".
    """

    figures: Variant
    rivals: str
    timed_on: str


def _all_of(source: Source) -> list[tuple[tuple[str, str], _Attempt]]:
    """Return the row and what was built beside it, by scheme and target."""
    row, timing = source.row, source.row.verified.timing
    arch = timing.arch if timing else row.compared.arch if row.compared else ""
    timed_on = arch if arch not in ("", source.manifest.target.arch) else ""
    tried = row.choice.tried if row.choice else ()
    beside = row.compared.variants if row.compared else ()
    candidates = row.fastest.candidates if row.fastest else ()
    return [
        ((one.scheme, target), _Attempt(figures=one, rivals=row.named_target, timed_on=timed_on))
        for target, one in (
            *((one.target, one.figures) for one in candidates),
            *((row.target, one) for one in (*tried, *beside, variant_of(row))),
        )
    ]


def _plot(tried: dict[tuple[str, str], _Attempt], title: str, anchor: str, cost: str) -> Plot | None:
    """Plot scores where every artifact has one, else SQNR; what is infinite or was not measured has no place in it."""
    made = {name: one for name, one in tried.items() if one.figures.size_bytes is not None}
    scored = all(one.figures.score is not None for one in made.values())
    is_small = max((one.figures.size_bytes or 0 for one in made.values()), default=0) < 1e6
    unit, factor = ("ms", 1.0) if cost == "latency" else ("kB", 1e3) if is_small else ("MB", 1e6)
    many = len({target for _, target in made}) > 1
    points = []
    for (scheme, target), attempt in made.items():
        one = attempt.figures
        value = 100 * (one.score or 0.0) if scored else one.sqnr_db
        price = one.latency_ms if cost == "latency" else one.size_bytes
        if value is None or price is None or not math.isfinite(value):
            continue
        drop = one.drop_pp if scored else None
        timed = f" (timed on {attempt.timed_on})" if attempt.timed_on and cost == "latency" else ""
        points.append(
            Point(
                series=f"{f'{target}, ' if many else ''}{scheme}{timed}",
                label=f"{scheme}, {target}{timed}",
                x=price / factor,
                y=value,
                # fp32's own score is the same for all: the interval of the drop is that of the score
                low=value - (drop.high - drop.estimate) if drop else value,
                high=value + (drop.estimate - drop.low) if drop else value,
                rivals=attempt.rivals,
            )
        )
    rivals = [point.rivals for point in points]
    if len(set(rivals)) == len(rivals):
        return None
    y_title = "score in %" if scored else "SQNR in dB"
    x_title = "latency p50 on this host in ms" if cost == "latency" else f"size in {unit}"
    return pareto(points, title=title, anchor=anchor, x_title=x_title, y_title=y_title)


# --- A search for the layers to leave in float, as the page shows it.


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchView:
    """The search for the layers to keep in float; `ranking` holds name, SQNR alone, SQNR without, bytes, where."""

    told: str
    plot: Plot | None
    ranking: tuple[tuple[str, str, str, str, str], ...]


def search_view(search: Search, anchor: str) -> SearchView:
    """Return the view of a search; `anchor` is the plot's id in the page."""
    kept = search.found.kept
    return SearchView(
        told=text.search(search),
        plot=_search_plot(search, anchor),
        ranking=tuple(
            (
                item.layer,
                text.decibel(item.alone_db),
                "" if item.but_one_db is None else text.decibel(item.but_one_db),
                format_bytes(item.weight_bytes),
                "float" if item.layer in kept else "int8",
            )
            for item in search.ranking
        ),
    )


def _search_plot(search: Search, anchor: str) -> Plot | None:
    """Plot what each assignment costs and gives."""
    name = search.limits[0][0]
    unit, factor = ("kB", 1e3) if search.found.size_bytes < 1e6 else ("MB", 1e6)
    points = []
    for index, attempt in enumerate(search.attempts):
        drop = attempt.scores.drop_pp
        scores = {
            "sqnr": attempt.scores.sqnr_db,
            "agreement": None if attempt.scores.agreement is None else 100 * attempt.scores.agreement,
        }
        value = scores.get(name, None if drop is None else -drop)
        if value is not None and math.isfinite(value):
            series = "chosen" if index == search.chosen else "meets the limits" if attempt.meets else "does not"
            label = ", ".join([f"{counted(len(attempt.kept), 'layer')} in float", *attempt.remedies])
            points.append(
                Point(series=series, label=label, x=attempt.size_bytes / factor, y=value, low=value, high=value)
            )
    if len(points) < 2:
        return None
    titles = {"sqnr": "SQNR in dB", "agreement": "agreement in %", "accuracy_drop": "accuracy in pp over fp32's"}
    title = "Assignments of int8 and float: size and accuracy on the search samples"
    return pareto(points, title=title, anchor=anchor, x_title=f"estimated size in {unit}", y_title=titles[name])


# --- Where an artifact ran, side by side: this host, and each CPU model that was emulated.


_SELF = "-"  # a place against itself

_NO_TIME = "emulated: no time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The measurements of one place; all places of a row list the same facts in the same order."""

    name: str
    facts: tuple[tuple[str, str], ...]


def places(row: PackageResult) -> tuple[Place, ...]:
    """Return this host first, then the emulated devices."""
    emulation = row.verified.emulation
    verified = row.verified
    timing, parity, fidelity = verified.timing, verified.parity, verified.fidelity
    load_ms, peak_bytes = verified.load_ms, verified.peak_memory_bytes
    facts = (
        ("samples", str(fidelity.samples) if fidelity else text.MISSING),
        ("score", _score(fidelity.score if fidelity else None)),
        ("SQNR against fp32", _decibel(fidelity.sqnr_db if fidelity else None)),
        ("SQNR against its graph", _decibel(parity.sqnr_db if parity else None)),
        ("SQNR against the host", _SELF),
        ("classes that differ from the host's", _SELF),
        ("latency p50", format_quantity(timing.p50_ms, "ms") if timing else text.MISSING),
        ("latency p90", format_quantity(timing.p90_ms, "ms") if timing else text.MISSING),
        ("load", text.MISSING if load_ms is None else format_quantity(load_ms, "ms")),
        ("peak memory", text.MISSING if peak_bytes is None else format_bytes(peak_bytes)),
    )
    return (Place(name=verified.host, facts=facts), *(_device(run) for run in (emulation.runs if emulation else ())))


def why_host_only(row: PackageResult) -> str:
    """Return why the artifact was not fully run on its device's kernels; "" otherwise."""
    emulation = row.verified.emulation
    return emulation.problem if emulation else row.verified.not_emulated


def _device(run: DeviceRun) -> Place:
    flips = run.host.top1_flips
    facts = (
        ("samples", str(run.samples)),
        ("score", _score(run.score)),
        ("SQNR against fp32", _decibel(run.fp32.sqnr_db if run.fp32 else None)),
        ("SQNR against its graph", text.MISSING),
        ("SQNR against the host", _decibel(run.host.sqnr_db)),
        ("classes that differ from the host's", text.MISSING if flips is None else f"{flips} of {run.host.samples}"),
        ("latency p50", _NO_TIME),
        ("latency p90", _NO_TIME),
        ("load", _NO_TIME),
        ("peak memory", text.MISSING),
    )
    return Place(name=run.name, facts=facts)


def _decibel(value_db: float | None) -> str:
    return text.MISSING if value_db is None else text.decibel(value_db)


def _score(value: float | None) -> str:
    return text.MISSING if value is None else f"{value:.4g}"


# --- The page of a bundle, in words and shares: from a row and its manifest, nothing drawn yet.


_MOST_LAYERS = 150  # a page with more would be neither small nor read

_MOST_AREAS = 100  # of a treemap

_SHOWN_BYTES = 100_000  # of thumbnails in one page, which is to stay below 300 kB

_KINDS = ("int8", "float", "half", "not known")  # precisions, in the order of their colours


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryLine:
    """A figure beside its limit, and beside the same of the float model and of the shipped one; "" for none.

    Attributes:
        outcome: of the gate that judged it; "" where nothing was asked for.
    """

    name: str
    asked: str
    outcome: str
    passed: bool
    measured: str
    fp32: str
    shipped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """A layer with its shares of the largest one, in percent, for its bars.

    Attributes:
        number: its place in the order of execution, from 1.
        sqnr, own_sqnr: of its output against the float graph's, with all layers quantized and by itself, as
            `LayerSqnr` defines them; "" where that was not measured.
        mark: why it stands out; "" where it does not.
    """

    number: int
    name: str
    op: str
    kind: str
    size: str
    size_percent: float
    macs: str
    macs_percent: float
    sqnr: str = ""
    own_sqnr: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipView:
    """A sample that changed, its classes by name.

    Attributes:
        scores: for each of the two classes its name, and fp32's and the artifact's output for it; none in older
            reports.
    """

    sample: str
    label: str
    fp32: str
    artifact: str
    thumbnail: str
    scores: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsView:
    """The predictions that changed."""

    told: str
    pairs: tuple[tuple[str, str, int, float], ...]
    examples: tuple[FlipView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleView:
    """One target and scheme.

    Attributes:
        steps: what to try next, where it failed.
        gates: those that failed first.
        layers: those with most error of their own first, else those with most bytes.
        kinds: the choices of the layers' filter, each with its words.
    """

    title: str
    about: str
    verdict: str
    passed: bool
    steps: tuple[str, ...]
    summary: tuple[SummaryLine, ...]
    has_fp32: bool
    has_shipped: bool
    gates: tuple[Gate, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerView, ...]
    layers_left: int
    kinds: tuple[tuple[str, str], ...]
    error_start: str
    depth: Plot | None
    bytes_plot: Plot | None
    latency: Plot | None
    places: tuple[Place, ...]
    host_only: str
    flips: FlipsView | None
    search: SearchView | None
    variants: tuple[VariantsView, ...]
    attempts: tuple[Plot, ...]
    reused: tuple[str, ...]
    data: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]


def bundle_view(source: Source, data: DataFacts, *, title: str) -> BundleView:
    """Return the page of one bundle; `data` are facts about its samples."""
    row, manifest = source.row, source.manifest
    timing, flips = row.verified.timing, row.verified.flips
    runs = timing.latencies_ms if timing else ()
    failed = [gate.name for gate in row.checked.gates if not gate.passed]
    passed = "1 gate passed" if len(row.gates) == 1 else f"all {len(row.gates)} gates passed"
    lost = f"{len(failed)} of {counted(len(row.gates), 'gate')} failed: {', '.join(failed)}"
    summary = _summary(row)
    layers = _layers(row)
    shown = layers[:_MOST_LAYERS]
    numbered = [(number, one) for number, one in enumerate(_sqnr_of(row), start=1) if one is not None]
    kinds = [layer.kind for layer in shown]
    return BundleView(
        title=title,
        about=", ".join([f"version {manifest.model.version}", f"runtime {manifest.runtime.name}", *_remarks(row)]),
        verdict=f"rejected: {lost} (exit code {int(row.exit_code)})" if failed else f"ok: {passed}",
        passed=not failed,
        steps=tuple(text.next_steps(row, (row,), bundle="BUNDLE")) if failed else (),
        summary=summary,
        has_fp32=any(line.fp32 for line in summary),
        has_shipped=any(line.shipped for line in summary),
        gates=tuple(sorted(row.checked.gates, key=lambda gate: gate.passed)),
        warnings=row.checked.warnings,
        layers=shown,
        layers_left=len(layers) - len(shown),
        kinds=(
            ("all", f"all {len(kinds)}"),
            *((kind, f"{kind} {kinds.count(kind)}") for kind in _KINDS if kind in kinds),
        ),
        error_start=_error_start(row.layer_sqnrs),
        depth=depth_plot(row.layer_sqnrs, numbered) if row.layer_sqnrs else None,
        bytes_plot=_bytes_plot(row),
        latency=box(runs, title=_timed_on(row), anchor="latency-plot") if runs else None,
        places=places(row),
        host_only=why_host_only(row),
        flips=_flips(flips, manifest.labels) if flips else None,
        search=search_view(row.search, "search-plot") if row.search else None,
        variants=variants_views(row),
        attempts=attempts([source]),
        reused=tuple(text.reuse(row.reuse, row.verified.fidelity)) if row.reuse else (),
        data=_data(data),
        provenance=_provenance(source),
    )


def bundle_html(view: BundleView) -> str:
    """Return the page of a bundle; names are always escaped."""
    return _environment().get_template("bundle.html.j2").render(page=view, css=_css())


def _remarks(row: PackageResult) -> list[str]:
    remarks = [text.stand_in(row)] if row.verified.stand_in else []
    if row.by_default and row.scheme != "static-int8":
        remarks.append(f"scheme by default: {row.by_default}")
    return [*remarks, "random weights"] if row.weights == "random" else remarks


def _summary(row: PackageResult) -> tuple[SummaryLine, ...]:
    """Return what was asked for, and what came: every figure that was measured or limited."""
    gates = {gate.name: gate for gate in row.gates}
    own, shipped = variant_of(row), row.shipped
    float_one = next((one for one in (row.compared.variants[1:] if row.compared else ()) if one.scheme == "fp32"), None)
    verified, fidelity = row.verified, row.verified.fidelity
    peak, load = verified.peak_memory_bytes, verified.load_ms

    def latency_of(one: Variant | None) -> str:
        return "" if one is None or one.latency_ms is None else format_quantity(one.latency_ms, "ms")

    def score_of(value: float | None) -> str:
        return text.score(fidelity, value) if fidelity and fidelity.metric and value is not None else ""

    lines = [
        (
            "size",
            "size",
            text.size(row).replace("\n", ", "),
            f"{format_bytes(row.fp32_bytes)} of weights" if row.fp32_bytes else "",
            text.variant_size(shipped) if shipped and shipped.size_bytes is not None else "",
        ),
        ("download", "download", text.download(row), "", ""),
        (
            text.accuracy_head(row),
            "accuracy_drop",
            text.accuracy(row).replace("\n", ", "),
            score_of(own.fp32_score),
            score_of(shipped.score) if shipped else "",
        ),
        ("agreement with fp32", "agreement", text.agreement(row), "", ""),
        (
            "SQNR against fp32",
            "sqnr",
            "" if own.sqnr_db is None or not text.is_labelled(row) else text.decibel(own.sqnr_db),
            "",
            "" if shipped is None or shipped.sqnr_db is None else text.decibel(shipped.sqnr_db),
        ),
        (
            "latency p50 / p90",
            "latency",
            text.latency(row).replace("\n", ", "),
            latency_of(float_one),
            latency_of(shipped),
        ),
        ("load", "load", "" if load is None else format_quantity(load, "ms"), "", ""),
        ("peak memory", "peak_memory", "" if peak is None else format_bytes(peak), "", ""),
        ("int8 MACs", "int8_macs", text.int8_share(row), "", ""),
        ("NPU", "cycles", text.npu(row).replace("\n", "; "), "", ""),
        ("SRAM", "sram", "", "", ""),
    ]
    summary = []
    for name, gate_name, measured, fp32, of_shipped in lines:
        gate = gates.get(gate_name)
        if gate is None and measured in ("", "-", text.MISSING) and not (fp32 or of_shipped):
            continue
        summary.append(
            SummaryLine(
                name=name,
                asked=gate.limit if gate else "",
                outcome=gate.outcome if gate else "",
                passed=gate is None or gate.passed,
                measured=(measured if measured not in ("", "-") else gate.measured if gate else "") or text.MISSING,
                fp32=fp32,
                shipped=of_shipped,
            )
        )
    return tuple(summary)


def _layers(row: PackageResult) -> tuple[LayerView, ...]:
    kinds = text.layer_kinds(row)
    most_bytes = max((layer.weight_bytes for layer in row.layers), default=0) or 1
    most_macs = max((layer.macs for layer in row.layers), default=0) or 1
    found = row.layer_sqnrs
    marked = (found.start or found.noisiest) if found else None
    told = "the error starts here" if found and found.start else "most error of its own"
    known = list(enumerate(zip(row.layers, kinds, _sqnr_of(row), strict=True), start=1))
    known.sort(key=lambda one: (one[1][2] is None, one[1][2].own_db if one[1][2] else 0.0, -one[1][0].weight_bytes))
    return tuple(
        LayerView(
            number=number,
            name=layer.name,
            op=layer.op,
            kind=kind,
            size=format_bytes(layer.weight_bytes),
            size_percent=100 * layer.weight_bytes / most_bytes,
            macs=f"{layer.macs:,}",
            macs_percent=100 * layer.macs / most_macs,
            sqnr=text.decibel(sqnr.sqnr_db) if sqnr else "",
            own_sqnr=text.decibel(sqnr.own_db) if sqnr else "",
            mark=told if sqnr is not None and sqnr is marked else "",
        )
        for number, (layer, kind, sqnr) in known
    )


def _timed_on(row: PackageResult) -> str:
    unsure = row.verified.timing.why_unsure if row.verified.timing else ""
    return f"Latency on {row.verified.host}{f', which was busy ({unsure})' if unsure else ''}"


def _bytes_plot(row: PackageResult) -> Plot | None:
    areas = [
        Area(series=kind, number=i, label=layer.name, size_bytes=layer.weight_bytes)
        for i, (layer, kind) in enumerate(zip(row.layers, text.layer_kinds(row), strict=True), start=1)
    ]
    largest = sorted(areas, key=lambda area: -area.size_bytes)[:_MOST_AREAS]
    title = "Bytes by layer" if len(areas) == len(largest) else f"Bytes by layer, the {_MOST_AREAS} largest"
    return treemap(largest, _KINDS, title=title, anchor="bytes-plot")


def depth_plot(found: LayerSqnrs, numbered: Sequence[tuple[int, LayerSqnr]]) -> Plot | None:
    """Return the error along the depth of the graph; each layer has the number of the page's table."""
    worst = (found.start or found.noisiest).layer
    return depth(
        [(number, one.layer, one.sqnr_db, one.own_db) for number, one in numbered],
        worst,
        title="Error along the depth of the graph",
        names=("up to this layer", "this layer by itself"),
        caption=f"SQNR of each layer's output against the float graph's, on {counted(found.samples, 'sample')}: less "
        f"is worse, and {worst} is marked.",
        anchor="depth-plot",
    )


def _sqnr_of(row: PackageResult) -> list[LayerSqnr | None]:
    """Return what is known of each lowered layer; a module that is called twice has its calls in their order."""
    known: dict[str, list[LayerSqnr]] = {}
    for one in row.layer_sqnrs.layers if row.layer_sqnrs else ():
        known.setdefault(one.layer, []).append(one)
    return [known[layer.name].pop(0) if known.get(layer.name) else None for layer in row.layers]


def _error_start(found: LayerSqnrs | None) -> str:
    if found is None:
        return ""
    samples = counted(found.samples, "calibration sample")
    return f"Against the float graph, on {samples}: {text.error_start(found)}."


def _flips(flips: Flips, labels: tuple[str, ...]) -> FlipsView:
    most = max((pair.count for pair in flips.pairs), default=1)
    examples, left = [], _SHOWN_BYTES
    for flip in flips.examples:
        left -= len(flip.thumbnail)
        examples.append(_flip(flip, labels, shown=left >= 0))
    return FlipsView(
        told=f"{flips.total} of {flips.ranked} samples have another top-1 class than fp32.",
        pairs=tuple(
            (_label(p.fp32, labels), _label(p.artifact, labels), p.count, 100 * p.count / most) for p in flips.pairs
        ),
        examples=tuple(examples),
    )


def _flip(flip: Flip, labels: tuple[str, ...], *, shown: bool) -> FlipView:
    classes = (flip.fp32, flip.artifact)
    return FlipView(
        sample=flip.sample.rpartition(":")[2],
        label="" if flip.label is None else _label(flip.label, labels),
        fp32=_label(flip.fp32, labels),
        artifact=_label(flip.artifact, labels),
        thumbnail=flip.thumbnail if shown else "",
        scores=tuple(
            (_label(index, labels), f"{before:.3g}", f"{after:.3g}")
            for index, before, after in zip(classes, flip.fp32_scores, flip.artifact_scores, strict=False)
        ),
    )


def _label(index: int, labels: tuple[str, ...]) -> str:
    return labels[index] if index < len(labels) else f"class {index}"


def _provenance(source: Source) -> tuple[tuple[str, str], ...]:
    facts, manifest = source.manifest.provenance, source.manifest
    runtime = manifest.runtime
    return (
        ("digest", source.row.digest),
        ("weights", manifest.model.weights),
        ("source SHA-256", facts.source_sha256),
        ("weights SHA-256", facts.weights_sha256 or "covered by the source's"),
        ("calibration", _samples(facts.calibration_samples, facts.calibration_sha256)),
        ("evaluation", _samples(facts.evaluation_samples, facts.evaluation_sha256)),
        ("seed", str(facts.seed)),
        ("edgeq", facts.edgeq or "not recorded"),
        ("runtime", f"{runtime.name} {runtime.exported_with}, oldest in the field {runtime.oldest_in_field}"),
        ("verified on", manifest.verified_on),
        *((name, str(value)) for name, value in sorted(facts.options.items())),
        *((name, version) for name, version in sorted(facts.tools.items())),
    )


def _samples(count: int, sha256: str | None) -> str:
    return f"{counted(count, 'sample')}, SHA-256 {sha256}" if sha256 else "none given"


def _data(facts: DataFacts) -> tuple[str, ...]:
    lines = [f"{finding.name}: {finding.message}" for finding in facts.findings]
    if facts.excluded_shared:
        lines.append(f"{counted(facts.excluded_shared, 'sample')} left out: they are also in the other set")
    return (*lines, *(f"skipped {name}" for name in facts.skipped))


# --- The page of a run or a project: an index of cards, each with a link to its bundle's page.


_MOST_PLOTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """A bundle in the index.

    Attributes:
        link: to its page; "" if there is none.
        failed: the gates that failed, in words.
    """

    link: str
    model: str
    about: str
    verdict: str
    passed: bool
    figures: tuple[tuple[str, str], ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexView:
    """A run or a project.

    Attributes:
        cards: of this run, those that failed first.
        earlier: of bundles that earlier runs left in the folder.
        errors: model, or model with target; what happened; what to do.
        unread: the same of folders that earlier runs left.
        plots_left: how many plots there was no room for.
    """

    title: str
    verdict: str
    passed: bool
    cards: tuple[CardView, ...]
    earlier: tuple[CardView, ...]
    attempts: tuple[Plot, ...]
    plots_left: int
    app: tuple[Gate, ...]
    errors: tuple[tuple[str, str, str], ...]
    unread: tuple[tuple[str, str, str], ...]
    data: tuple[str, ...]


def index_view(
    sources: Sequence[Source],
    data: DataFacts,
    *,
    title: str,
    link: Callable[[PackageResult], str],
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
    earlier: Sequence[Source] = (),
    unread: Sequence[tuple[str, str, str]] = (),
) -> IndexView:
    """Return the page of a run.

    Args:
        sources: its rows; none where no model could be built.
        data: facts about the samples.
        title: the page's heading.
        link: returns the address of a row's page, "" for none.
        app: gates of the app as a whole.
        broken: models that ended with an error, and have no row.
        refused: targets and schemes that could not be packaged, and have no row.
        earlier: bundles of earlier runs in the same folder.
        unread: folders of others that cannot be read: place, why, and what to do.
    """
    failed = [source.row for source in sources if source.row.checked.exit_code]
    told = [f"{len(failed)} of {counted(len(sources), 'bundle')} rejected"] if failed else []
    told += [f"{counted(len(broken), 'model')} could not be built"] if broken else []
    told += [f"{counted(len(refused), 'target')} refused"] if refused else []
    told += ["the app as a whole failed"] if any(not gate.passed for gate in app) else []
    rows = [source.row for source in sources]
    plots = attempts(sources)
    return IndexView(
        title=title,
        verdict=", ".join(told) or "ok",
        passed=not told,
        cards=tuple(sorted((_card(row, link(row), rows) for row in rows), key=lambda card: card.passed)),
        earlier=tuple(_card(source.row, link(source.row), ()) for source in earlier),
        attempts=plots[:_MOST_PLOTS],
        plots_left=max(0, len(plots) - _MOST_PLOTS),
        app=tuple(app),
        errors=(
            *((model.name, model.error.what, model.error.fix) for model in broken if model.error),
            *((f"{one.model}, {one.target}, {one.scheme}", one.error.what, one.error.fix) for one in refused),
        ),
        unread=tuple(unread),
        data=_data(data),
    )


def index_html(view: IndexView) -> str:
    """Return the page of a run; names are always escaped."""
    return _environment().get_template("index.html.j2").render(page=view, css=_css())


def _card(row: PackageResult, link: str, rows: Sequence[PackageResult]) -> CardView:
    failed = [gate for gate in row.gates if not gate.passed]
    fidelity, timing = row.verified.fidelity, row.verified.timing
    figures = [("size", format_bytes(row.size_bytes))]
    if fidelity and fidelity.drop_pp:
        figures.append(("drop", f"{fidelity.drop_pp.estimate:.2f} pp"))
    figures.append(("worst SQNR", text.worst_sqnr(row)))
    figures.append(("latency p50", format_quantity(timing.p50_ms, "ms") if timing else text.MISSING))
    steps = text.next_steps(row, rows) if failed else []
    return CardView(
        link=link,
        model=row.model,
        about=", ".join([row.target, row.scheme, *_remarks(row)]),
        verdict=f"{len(failed)} of {len(row.gates)} gates failed" if failed else "ok",
        passed=not failed,
        figures=tuple(figures),
        failed=(*(text.gate_facts(gate) for gate in failed), *steps),
    )


# --- The page that says which layer to keep in float, and why: of `edgeq sensitivity` and of `edgeq compare --layers`.


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatView:
    """A recommendation with its grounds.

    Attributes:
        advice: the answer first, then why.
        layer: the one that it is about; "" for none.
        heads: of the table's columns after the layer's name.
        rows: number in the order of execution, name, cells; the layers with most error first.
        facts: what was compared.
    """

    title: str
    about: str
    advice: tuple[str, ...]
    layer: str
    plot: Plot | None
    heads: tuple[str, ...]
    rows: tuple[tuple[int, str, tuple[str, ...]], ...]
    rows_left: int
    facts: tuple[tuple[str, str], ...]


def float_html(view: FloatView) -> str:
    """Return the page; names are always escaped."""
    return _environment().get_template("float.html.j2").render(page=view, css=_css())


def ranked_view(found: RankedLayers, *, model: str, target: str, metric: str) -> FloatView:
    """Return the page of a ranking."""
    numbers = {name: i for i, name in enumerate(found.order, start=1)}
    advice = text.ranked_advice(found, metric)
    best = found.best_kept
    heads = ["only this layer in int8", "all other layers in int8"]
    heads += [f"{metric}, only this layer", f"{metric}, all others"] if metric else []

    def cells(one: Sensitivity) -> tuple[str, ...]:
        decibels = [one.alone_db, one.but_one_db]
        scores = [one.alone_score, one.but_one_score] if metric else []
        return (
            *("" if value is None else text.decibel(value) for value in decibels),
            *("" if value is None else f"{value:.4g}" for value in scores),
            format_bytes(one.weight_bytes),
            f"+{format_bytes(text.FLOAT_COST * one.weight_bytes)}",
        )

    by_name = {one.layer: one for one in found.layers}
    drawn = [(numbers[name], name, by_name[name].but_one_db, by_name[name].alone_db) for name in found.order]
    return FloatView(
        title=f"{model} for {target}: which layer to keep in float",
        about=f"{counted(len(found.layers), 'layer')}, measured on {counted(found.samples, 'sample')}",
        advice=tuple(advice),
        layer=best.layer if best else "",
        plot=depth(
            [(number, name, but_one, alone) for number, name, but_one, alone in drawn if but_one is not None],
            best.layer if best else "",
            title="Error of the outputs by layer",
            names=("all others in int8", "only this layer in int8"),
            caption="SQNR of the outputs against fp32's. Less is worse; the layer to keep in float is marked.",
            anchor="depth-plot",
        ),
        heads=(*heads, "weights", "cost in float"),
        rows=tuple((numbers[one.layer], one.layer, cells(one)) for one in found.layers[:_MOST_LAYERS]),
        rows_left=max(0, len(found.layers) - _MOST_LAYERS),
        facts=(
            ("every layer in int8", f"SQNR {text.decibel(found.all_db)}"),
            *(((f"{metric}, every layer in int8", f"{found.all_score:.4g}"),) if found.all_score is not None else ()),
            *(((f"{metric}, fp32", f"{found.fp32_score:.4g}"),) if found.fp32_score is not None else ()),
        ),
    )


def compared_view(
    found: LayerSqnrs | None,
    weight_bytes: Mapping[str, int],
    *,
    title: str,
    about: str,
    facts: Sequence[tuple[str, str]],
) -> FloatView:
    """Return the page of two bundles that were compared; `found` is None where the layers were not."""
    layers = sorted(enumerate(found.layers, start=1), key=lambda one: one[1].own_db) if found else []
    marked = (found.start or found.noisiest).layer if found else ""

    def cells(one: LayerSqnr) -> tuple[str, ...]:
        held = weight_bytes.get(one.layer)
        cost = ("", "") if held is None else (format_bytes(held), f"+{format_bytes(text.FLOAT_COST * held)}")
        return (text.decibel(one.own_db), text.decibel(one.sqnr_db), *cost)

    return FloatView(
        title=title,
        about=about,
        advice=tuple(text.error_advice(found, weight_bytes)) if found else (),
        layer=marked,
        plot=depth_plot(found, list(enumerate(found.layers, start=1))) if found else None,
        heads=("SQNR by itself", "SQNR so far", "weights", "cost in float"),
        rows=tuple((number, one.layer, cells(one)) for number, one in layers[:_MOST_LAYERS]),
        rows_left=max(0, len(layers) - _MOST_LAYERS),
        facts=tuple(facts),
    )
