"""Plots as inline SVG: drawn by pygal, colored by the page's own CSS, each with its figures as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgeq.core.units import counted

if TYPE_CHECKING:
    from pygal.graph.graph import Graph


_WIDTH_PX, _HEIGHT_PX = 360, 220  # a phone's width: the text keeps its size there

_BINS = 12

_SEEN = (("least", 0.0), ("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("most", 1.0))

_DROPPED = ("script", "style", "desc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures of a plot, for screen readers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing with its caption and figures.

    Attributes:
        svg: an SVG element that a page includes unchanged.
        caption: a sentence that describes it.
    """

    svg: str
    caption: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A dot of a scatter plot; points of one series have one colour."""

    series: str
    label: str
    x: float
    y: float


def histogram(latencies_ms: Sequence[float], *, title: str, anchor: str) -> Plot:
    """Return the distribution of latencies.

    Args:
        latencies_ms: at least one.
        title: what was timed.
        anchor: the plot's id in the page.
    """
    import pygal

    low, high = min(latencies_ms), max(latencies_ms)
    width = (high - low) / _BINS or max(high, 1e-6) / 100
    counts = [0] * _BINS
    for value in latencies_ms:
        counts[min(_BINS - 1, int((value - low) / width))] += 1
    chart = _styled(pygal.Histogram, x_title="latency in ms", y_title="runs", show_legend=False)
    chart.add("runs", [(count, low + i * width, low + (i + 1) * width) for i, count in enumerate(counts)])
    rows = tuple((name, f"{_at(latencies_ms, share):.3f} ms") for name, share in _SEEN)
    caption = f"{title}: {counted(len(latencies_ms), 'run')}, from {low:.3f} to {high:.3f} ms."
    return Plot(
        svg=_svg(chart, title, caption, anchor), caption=caption, table=Table(head=("share", "latency"), rows=rows)
    )


def pareto(points: Sequence[Point], *, title: str, anchor: str, x_title: str, y_title: str) -> Plot:
    """Return a scatter plot of cost (x, less is better) and benefit (y, more is better) of each attempt.

    Args:
        points: at least two, all finite.
        title: of the plot.
        anchor: the plot's id in the page.
        x_title: quantity and unit of x.
        y_title: of y.
    """
    import pygal

    chart = _styled(
        pygal.XY,
        x_title=x_title,
        y_title=y_title,
        x_value_formatter=_short,
        value_formatter=_short,
        stroke=False,
        dots_size=6,
        legend_at_bottom=True,
        truncate_legend=30,
    )
    for series in dict.fromkeys(point.series for point in points):
        own = [{"value": (point.x, point.y), "label": point.label} for point in points if point.series == series]
        chart.add(series, own)
    rows = tuple((p.label, f"{p.x:.4g}", f"{p.y:.5g}", "yes" if is_best(p, points) else "no") for p in points)
    front = sum(is_best(point, points) for point in points)
    caption = f"{title}: {front} of {len(points)} are on the Pareto front."
    head = ("attempt", x_title, y_title, "on the Pareto front")
    return Plot(svg=_svg(chart, title, caption, anchor), caption=caption, table=Table(head=head, rows=rows))


def is_best(point: Point, points: Sequence[Point]) -> bool:
    """Whether no other point is at least as good in both, and better in one (Pareto's front)."""
    return not any(
        other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y) for other in points
    )


def _short(value: float) -> str:
    return f"{value:.6g}"


def _at(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile, as the verify step takes it."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _styled(kind: type[Graph], **options: Any) -> Graph:
    from pygal.style import Style

    style = Style(label_font_size=12, major_label_font_size=12, legend_font_size=12, title_font_size=13)
    return kind(style=style, js=[], width=_WIDTH_PX, height=_HEIGHT_PX, margin=8, max_scale=6, **options)


def _svg(chart: Graph, title: str, caption: str, anchor: str) -> str:
    """Return the drawing without its own style and scripts, named for screen readers."""
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in [child for child in parent if _is_dropped(child)]:
            parent.remove(child)
    for name in root.findall("title"):
        root.remove(name)
    for tag, text in (("desc", caption), ("title", title)):
        element = ElementTree.Element(tag, id=f"{anchor}-{tag}")
        element.text = text
        root.insert(0, element)
    root.attrib.pop("id", None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{anchor}-title {anchor}-desc"})
    return ElementTree.tostring(root, encoding="unicode")


def _is_dropped(element: ElementTree.Element) -> bool:
    """Whether a part serves pygal's own scripts only; ElementTree's comments have a function for a tag."""
    if not isinstance(element.tag, str) or element.tag in _DROPPED:
        return True
    return "tooltip-overlay" in element.get("class", "")
