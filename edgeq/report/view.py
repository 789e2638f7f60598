"""What the page shows, in words and shares: from a run's rows and their manifests, nothing drawn yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.artifacts import DataFacts, Gate, LayerSqnr, LayerSqnrs, Row
from edgeq.flips import Flip, Flips
from edgeq.manifest import Manifest
from edgeq.project import ModelResult
from edgeq.report import words
from edgeq.report.places import Place, places, why_host_only
from edgeq.report.plots import Plot, histogram
from edgeq.report.searched import SearchView, search_view
from edgeq.report.variants import VariantsView, attempts, variants_views
from edgeq.units import counted, format_bytes

_MOST_LAYERS = 300  # a page with more would be neither small nor read
_SHOWN_BYTES = 600_000  # of thumbnails in one page, which is to stay below 2 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A row with the manifest of its bundle."""

    row: Row
    manifest: Manifest


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
    errors: tuple[tuple[str, str, str], ...]  # model, what happened, what to do
    data: tuple[str, ...]


def page_view(
    sources: Sequence[Source],
    data: DataFacts,
    *,
    title: str,
    app: Sequence[Gate] = (),
    broken: Sequence[ModelResult] = (),
) -> PageView:
    """Return the page of one row or of many.

    Args:
        sources: the rows; none where no model could be built.
        data: what is known of the samples.
        title: the page's heading.
        app: gates of the app as a whole.
        broken: models that ended with an error, and have no row.
    """
    failed = [source.row for source in sources if source.row.checked.exit_code]
    elsewhere = [f"{counted(len(broken), 'model')} could not be built"] if broken else []
    elsewhere += ["the app as a whole failed"] if any(not gate.passed for gate in app) else []
    told = [f"{len(failed)} of {len(sources)} failed"] if failed else []
    if len(sources) == 1 and (failed or not elsewhere):
        told = [words.verdict(sources[0].row).replace("\n", ", ")]
    budget = _SHOWN_BYTES // max(len(sources), 1)
    return PageView(
        title=title,
        verdict=", ".join(told + elsewhere) or "ok",
        passed=not failed and not elsewhere,
        rows=tuple(_row(source, f"row{i}", budget) for i, source in enumerate(sources)),
        attempts=attempts([source.row for source in sources]),
        app=tuple(app),
        errors=tuple((model.name, model.error.what, model.error.fix) for model in broken if model.error),
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
        verdict=words.verdict(row).replace("\n", ", "),
        passed=not row.checked.exit_code,
        figures=_figures(row),
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


def _figures(row: Row) -> tuple[tuple[str, str], ...]:
    return (
        ("size", words.size(row).replace("\n", ", ")),
        ("download", words.download(row)),
        (words.accuracy_head(row), words.accuracy(row).replace("\n", ", ")),
        ("agreement", words.agreement(row)),
        ("int8 MACs", words.int8_share(row)),
        ("latency p50 / p90", words.latency(row).replace("\n", ", ")),
    )


def _layers(row: Row) -> tuple[LayerView, ...]:
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
            sqnr=words.decibel(sqnr.sqnr_db) if sqnr else "",
            own_sqnr=words.decibel(sqnr.own_db) if sqnr else "",
        )
        for layer, kind, sqnr in zip(row.layers, kinds, _sqnr_of(row), strict=True)
        if id(layer) in shown
    )


def _sqnr_of(row: Row) -> list[LayerSqnr | None]:
    """Return what is known of each lowered layer; a module that is called twice has its calls in their order."""
    known: dict[str, list[LayerSqnr]] = {}
    for one in row.layer_sqnrs.layers if row.layer_sqnrs else ():
        known.setdefault(one.layer, []).append(one)
    return [known[layer.name].pop(0) if known.get(layer.name) else None for layer in row.layers]


def _error_start(found: LayerSqnrs | None) -> str:
    if found is None:
        return ""
    samples = counted(found.samples, "calibration sample")
    return f"Against the float graph, on {samples}: {words.error_start(found)}."


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
        lines.append(f"{counted(facts.excluded_shared, 'sample')} left out: they are in the other set too")
    return (*lines, *(f"skipped {name}" for name in facts.skipped))
