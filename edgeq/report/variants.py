"""Schemes side by side, as the page shows them: what --scheme auto tried, what --compare made, all rows of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.artifacts import Choice, Comparison, Row, Variant, variant_of
from edgeq.report import schemes
from edgeq.report.plots import Plot, Point, pareto


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantsView:
    """A table of schemes; `rows` holds scheme, size, accuracy, latency, verdict with its reasons."""

    title: str
    told: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str, str], ...]


def variants_views(row: Row) -> tuple[VariantsView, ...]:
    """Return the tables of a row: how its scheme was chosen, and how it compares with float."""
    views = []
    if row.choice is not None:
        views.append(_view("How the scheme was chosen", (schemes.choice(row.choice),), row.choice))
    if row.compared is not None:
        views.append(_view("Against float on the same target", schemes.compared(row.compared), row.compared))
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
                schemes.size(one),
                schemes.accuracy(one),
                schemes.latency(one),
                schemes.verdict_of(one) if is_choice else schemes.reasons(one) or "ok",
            )
            for one in variants
        ),
    )


def attempts(rows: Sequence[Row]) -> tuple[Plot, ...]:
    """Return a plot for each model that several schemes were tried on."""
    plots = []
    for i, model in enumerate(dict.fromkeys(row.model for row in rows)):
        tried = {(one.scheme, row.target): one for row in rows if row.model == model for one in _all_of(row)}
        if len({scheme for scheme, _ in tried}) > 1:
            plot = _plot(tried, f"{model}: size and accuracy of each scheme", f"attempts{i}")
            plots += [plot] if plot else []
    return tuple(plots)


def _all_of(row: Row) -> tuple[Variant, ...]:
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
