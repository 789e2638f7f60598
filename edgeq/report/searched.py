"""A search for the layers to leave in float, as the page shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeq.artifacts import Search
from edgeq.report import words
from edgeq.report.plots import Plot, Point, pareto
from edgeq.units import counted, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchView:
    """The search for the layers to leave in float; `ranking` holds name, SQNR alone, SQNR without, bytes, where."""

    told: str
    plot: Plot | None
    ranking: tuple[tuple[str, str, str, str, str], ...]


def search_view(search: Search, anchor: str) -> SearchView:
    """Return what the page shows of a search; `anchor` is the plot's own name in it."""
    kept = search.found.kept
    return SearchView(
        told=words.search(search),
        plot=_tried(search, anchor),
        ranking=tuple(
            (
                item.layer,
                words.decibel(item.alone_db),
                "" if item.but_one_db is None else words.decibel(item.but_one_db),
                format_bytes(item.weight_bytes),
                "float" if item.layer in kept else "int8",
            )
            for item in search.ranking
        ),
    )


def _tried(search: Search, anchor: str) -> Plot | None:
    """Plot what each assignment costs and gives."""
    name = search.limits[0][0]
    unit, factor = ("kB", 1e3) if search.found.size_bytes < 1e6 else ("MB", 1e6)
    points = []
    for index, attempt in enumerate(search.attempts):
        drop = attempt.scores.drop_pp
        scores = {"sqnr": attempt.scores.sqnr_db, "agreement": _percent(attempt.scores.agreement)}
        value = scores.get(name, None if drop is None else -drop)
        if value is not None and math.isfinite(value):
            series = "chosen" if index == search.chosen else "keeps the limits" if attempt.meets else "does not"
            label = ", ".join([f"{counted(len(attempt.kept), 'layer')} in float", *attempt.remedies])
            points.append(Point(series=series, label=label, x=attempt.size_bytes / factor, y=value))
    if len(points) < 2:
        return None
    titles = {"sqnr": "SQNR in dB", "agreement": "agreement in %", "accuracy_drop": "accuracy in pp over fp32's"}
    title = "Assignments of int8 and float: size and accuracy on the search samples"
    return pareto(points, title=title, anchor=anchor, x_title=f"estimated size in {unit}", y_title=titles[name])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
