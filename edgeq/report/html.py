"""HTML pages that need no network, scripts or other files."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.core.results.measured import DeviceRun, Flip, Flips
from edgeq.core.results.model import LayerSqnr, LayerSqnrs, Search
from edgeq.core.results.report import (
    Choice,
    Comparison,
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
from edgeq.report.plots import Plot, Point, histogram, pareto

if TYPE_CHECKING:
    from jinja2 import Environment


HTML_NAME = "report.html"

_HERE = Path(__file__).parent


def to_html(page: PageView) -> str:
    """Return the page of a run; names are always escaped."""
    return _environment().get_template("page.html.j2").render(page=page, css=_css())


def diff_html(diff: Diff) -> str:
    """Return the page of a difference."""
    return _environment().get_template("diff.html.j2").render(diff=diff, css=_css())


def _css() -> str:
    return (_HERE / "page.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


# --- Schemes side by side, as the page shows them: what --scheme auto tried, what --compare made, all rows of a
# run.


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsView:
    """A table of schemes; `rows` holds scheme, size, accuracy, latency, verdict with its reasons."""

    title: str
    told: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str, str], ...]


def variants_views(row: PackageResult) -> tuple[VariantsView, ...]:
    """Return the tables of a row: the choice of its scheme, and the comparison with float."""
    views = []
    if row.choice is not None:
        views.append(_view("How the scheme was chosen", (text.choice(row.choice),), row.choice))
    if row.compared is not None:
        views.append(_view("Against float on the same target", text.compared(row.compared), row.compared))
    return tuple(views)


def _view(title: str, told: Sequence[str], of: Choice | Comparison) -> VariantsView:
    is_choice = isinstance(of, Choice)
    variants = of.tried if isinstance(of, Choice) else of.variants
    return VariantsView(
        title=title,
        told=tuple(told),
        rows=tuple(
            (
                one.scheme,
                text.variant_size(one),
                text.variant_accuracy(one),
                text.variant_latency(one),
                text.verdict_of(one) if is_choice else text.reasons(one) or "ok",
            )
            for one in variants
        ),
    )


def attempts(rows: Sequence[PackageResult]) -> tuple[Plot, ...]:
    """Return a plot for each model with several tried schemes."""
    plots = []
    for i, model in enumerate(dict.fromkeys(row.model for row in rows)):
        tried = {(one.scheme, row.target): one for row in rows if row.model == model for one in _all_of(row)}
        if len({scheme for scheme, _ in tried}) > 1:
            plot = _plot(tried, f"{model}: size and accuracy of each scheme", f"attempts{i}")
            plots += [plot] if plot else []
    return tuple(plots)


def _all_of(row: PackageResult) -> tuple[Variant, ...]:
    tried = row.choice.tried if row.choice else ()
    beside = row.compared.variants if row.compared else ()
    return (*tried, *beside, variant_of(row))


def _plot(tried: dict[tuple[str, str], Variant], title: str, anchor: str) -> Plot | None:
    """Plot scores where every artifact has one, else SQNR; what is infinite or was not measured has no place in it."""
    made = {name: one for name, one in tried.items() if one.size_bytes is not None}
    scored = all(one.score is not None for one in made.values())
    largest = max((one.size_bytes or 0 for one in made.values()), default=0)
    unit, factor = ("kB", 1e3) if largest < 1e6 else ("MB", 1e6)
    points = []
    for (scheme, target), one in made.items():
        value = 100 * (one.score or 0.0) if scored else one.sqnr_db
        if value is not None and math.isfinite(value):
            size = (one.size_bytes or 0) / factor
            points.append(Point(series=scheme, label=f"{scheme}, {target}", x=size, y=value))
    if len(points) < 2:
        return None
    y_title = "score in %" if scored else "SQNR in dB"
    return pareto(points, title=title, anchor=anchor, x_title=f"size in {unit}", y_title=y_title)


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
            points.append(Point(series=series, label=label, x=attempt.size_bytes / factor, y=value))
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


# --- What the page shows, in words and shares: from a run's rows and their manifests, nothing drawn yet.


_MOST_LAYERS = 300  # a page with more would be neither small nor read

_SHOWN_BYTES = 600_000  # of thumbnails in one page, which is to stay below 2 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """A layer with its shares of the largest one, in percent, for its bars.

    Attributes:
        sqnr, own_sqnr: of its output against the float graph's, with all layers quantized and by itself, as
            `LayerSqnr` defines them; "" where that was not measured.
    """

    name: str
    op: str
    kind: str
    size: str
    size_percent: float
    macs: str
    macs_percent: float
    sqnr: str = ""
    own_sqnr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipView:
    """A sample that changed, its classes by name."""

    sample: str
    label: str
    fp32: str
    artifact: str
    thumbnail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsView:
    """The predictions that changed."""

    told: str
    pairs: tuple[tuple[str, str, int, float], ...]
    examples: tuple[FlipView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One target and scheme."""

    anchor: str
    title: str
    verdict: str
    passed: bool
    figures: tuple[tuple[str, str], ...]
    gates: tuple[Gate, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerView, ...]
    layers_left: int
    error_start: str
    latency: Plot | None
    places: tuple[Place, ...]
    host_only: str
    flips: FlipsView | None
    search: SearchView | None
    variants: tuple[VariantsView, ...]
    provenance: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """A page: one row, or all of a run."""

    title: str
    verdict: str
    passed: bool
    rows: tuple[RowView, ...]
    attempts: tuple[Plot, ...]
    app: tuple[Gate, ...]
    errors: tuple[tuple[str, str, str], ...]  # model, or model with target; what happened; what to do
    data: tuple[str, ...]


def page_view(
    sources: Sequence[Source],
    data: DataFacts,
    *,
    title: str,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
    refused: Sequence[Refusal] = (),
) -> PageView:
    """Return the page of one row or of many.

    Args:
        sources: the rows; none where no model could be built.
        data: facts about the samples.
        title: the page's heading.
        app: gates of the app as a whole.
        broken: models that ended with an error, and have no row.
        refused: targets and schemes that could not be packaged, and have no row.
    """
    failed = [source.row for source in sources if source.row.checked.exit_code]
    elsewhere = [f"{counted(len(broken), 'model')} could not be built"] if broken else []
    elsewhere += [f"{counted(len(refused), 'target')} refused"] if refused else []
    elsewhere += ["the app as a whole failed"] if any(not gate.passed for gate in app) else []
    told = [f"{len(failed)} of {len(sources)} failed"] if failed else []
    if len(sources) == 1 and (failed or not elsewhere):
        told = [text.verdict_text(sources[0].row).replace("\n", " ")]
    budget = _SHOWN_BYTES // max(len(sources), 1)
    return PageView(
        title=title,
        verdict=", ".join(told + elsewhere) or "ok",
        passed=not failed and not elsewhere,
        rows=tuple(_row(source, f"row{i}", budget) for i, source in enumerate(sources)),
        attempts=attempts([source.row for source in sources]),
        app=tuple(app),
        errors=(
            *((model.name, model.error.what, model.error.fix) for model in broken if model.error),
            *((f"{one.model}, {one.target}, {one.scheme}", one.error.what, one.error.fix) for one in refused),
        ),
        data=_data(data),
    )


def _row(source: Source, anchor: str, budget: int) -> RowView:
    row, manifest = source.row, source.manifest
    timing = row.verified.timing
    runs = timing.latencies_ms if timing else ()
    flips = row.verified.flips
    return RowView(
        anchor=anchor,
        title=f"{row.model} {manifest.model.version}, {row.target}, {row.scheme}",
        verdict=text.verdict_text(row).replace("\n", " "),
        passed=not row.checked.exit_code,
        figures=(
            ("size", text.size(row).replace("\n", ", ")),
            ("download", text.download(row)),
            (text.accuracy_head(row), text.accuracy(row).replace("\n", ", ")),
            ("agreement", text.agreement(row)),
            ("int8 MACs", text.int8_share(row)),
            ("latency p50 / p90", text.latency(row).replace("\n", ", ")),
        ),
        gates=row.checked.gates,
        warnings=row.checked.warnings,
        layers=_layers(row),
        layers_left=max(0, len(row.layers) - _MOST_LAYERS),
        error_start=_error_start(row.layer_sqnrs),
        latency=histogram(runs, title=f"Latency on {row.verified.host}", anchor=f"{anchor}-latency") if runs else None,
        places=places(row),
        host_only=why_host_only(row),
        flips=_flips(flips, manifest.labels, budget) if flips else None,
        search=search_view(row.search, f"{anchor}-search") if row.search else None,
        variants=variants_views(row),
        provenance=_provenance(source),
    )


def _layers(row: PackageResult) -> tuple[LayerView, ...]:
    kernels = row.verified.kernels
    known = kernels.precisions if kernels else ()
    kinds = known if len(known) == len(row.layers) else ("not known",) * len(row.layers)
    most_bytes = max((layer.weight_bytes for layer in row.layers), default=0) or 1
    most_macs = max((layer.macs for layer in row.layers), default=0) or 1
    largest = sorted(row.layers, key=lambda layer: (layer.weight_bytes, layer.macs), reverse=True)[:_MOST_LAYERS]
    shown = {id(layer) for layer in largest}
    return tuple(
        LayerView(
            name=layer.name,
            op=layer.op,
            kind="float" if kind == "other" else kind,
            size=format_bytes(layer.weight_bytes),
            size_percent=100 * layer.weight_bytes / most_bytes,
            macs=f"{layer.macs:,}",
            macs_percent=100 * layer.macs / most_macs,
            sqnr=text.decibel(sqnr.sqnr_db) if sqnr else "",
            own_sqnr=text.decibel(sqnr.own_db) if sqnr else "",
        )
        for layer, kind, sqnr in zip(row.layers, kinds, _sqnr_of(row), strict=True)
        if id(layer) in shown
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


def _flips(flips: Flips, labels: tuple[str, ...], budget: int) -> FlipsView:
    most = max((pair.count for pair in flips.pairs), default=1)
    examples, left = [], budget
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
    return FlipView(
        sample=flip.sample.rpartition(":")[2],
        label="" if flip.label is None else _label(flip.label, labels),
        fp32=_label(flip.fp32, labels),
        artifact=_label(flip.artifact, labels),
        thumbnail=flip.thumbnail if shown else "",
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
        ("runtime", f"{runtime.name} {runtime.exported_with}, oldest in the field {runtime.oldest_in_field}"),
        ("verified on", manifest.verified_on),
        *((name, version) for name, version in sorted(facts.tools.items())),
    )


def _samples(count: int, sha256: str | None) -> str:
    return f"{counted(count, 'sample')}, SHA-256 {sha256}" if sha256 else "none given"


def _data(facts: DataFacts) -> tuple[str, ...]:
    lines = [f"{finding.name}: {finding.message}" for finding in facts.findings]
    if facts.excluded_shared:
        lines.append(f"{counted(facts.excluded_shared, 'sample')} left out: they are also in the other set")
    return (*lines, *(f"skipped {name}" for name in facts.skipped))
