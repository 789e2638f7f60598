"""Plots as inline SVG: drawn by pygal, colored by the page's own CSS, each with its figures as a table."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgeq.core.units import counted, format_bytes, format_quantity

if TYPE_CHECKING:
    from pygal.graph.graph import Graph


_WIDTH_PX, _HEIGHT_PX = 360, 220  # a phone's width: the text keeps its size there

_SEEN = (("least", 0.0), ("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("most", 1.0))

_MOST_DOTS = 80  # of a line: more hide it

_DROPPED = ("script", "style", "desc")

_COORDINATES = frozenset({"x", "y", "cx", "cy", "width", "height", "d", "transform"})

_LEAST_LABELLED = 0.015  # of the area of a treemap: a smaller rectangle has no room for a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures of a plot, for screen readers; no rows where the page has them in a table of its own."""

    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing with its caption and figures.

    Attributes:
        svg: an SVG element that a page includes unchanged.
        caption: a sentence that describes it.
        legend: the series by colour and name; none for a single one.
        kind: a class for the page's CSS; "" for none.
    """

    svg: str
    caption: str
    table: Table = Table()
    legend: tuple[tuple[int, str], ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A dot of a scatter plot; points of one series have one colour.

    Attributes:
        low, high: the 95% interval of y; both y if there is none.
        rivals: the points that it competes with are those of the same name.
    """

    series: str
    label: str
    x: float
    y: float
    low: float
    high: float
    rivals: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A rectangle of a treemap; those of one series have one colour.

    Attributes:
        number: what it is called in the plot.
    """

    series: str
    number: int
    label: str
    size_bytes: int


def box(latencies_ms: Sequence[float], *, title: str, anchor: str) -> Plot:
    """Return the distribution of latencies as a box with Tukey's whiskers; what lies far outside is named, not drawn.

    Args:
        latencies_ms: at least one, in the order of the runs.
        title: what was timed.
        anchor: the plot's id in the page.
    """
    import pygal

    low, high = _fences(latencies_ms)
    outside = [(run, value) for run, value in enumerate(latencies_ms, start=1) if not low <= value <= high]
    inside = [value for value in latencies_ms if low <= value <= high]
    chart = _styled(pygal.Box, box_mode="tukey", y_title="latency in ms", show_legend=False, value_formatter=_short)
    margin = (max(inside) - min(inside)) / 10 or max(inside) / 20
    chart.config.zero = max(0.0, min(inside) - margin)  # where the axis begins
    chart.config.range = (chart.config.zero, max(inside) + margin)
    chart.add("runs", inside)
    rows = [(name, f"{_at(latencies_ms, share):.4g} ms") for name, share in _SEEN]
    rows += [(f"outlier, run {run}", f"{value:.4g} ms") for run, value in outside]
    caption = f"{title}: {counted(len(latencies_ms), 'run')}, median {format_quantity(_at(latencies_ms, 0.5), 'ms')}."
    if outside:
        named = ", ".join(f"{value:.4g} ms (run {run})" for run, value in outside[:_NAMED])
        more = f" and {len(outside) - _NAMED} more" if len(outside) > _NAMED else ""
        are = "1 outlier is" if len(outside) == 1 else f"{len(outside)} outliers are"
        caption += f" {are} outside the plot: {named}{more}."
    return Plot(
        svg=_svg(chart, title, caption, anchor),
        caption=caption,
        table=Table(head=("run or share", "latency"), rows=tuple(rows)),
    )


_NAMED = 5  # outliers in a caption


def _fences(values: Sequence[float]) -> tuple[float, float]:
    """Return Tukey's fences, three times the distance of the quartiles: what lies beyond is far outside."""
    if len(values) < 4:
        return min(values), max(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    reach = 3 * (upper - lower)
    return lower - reach, upper + reach


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

    fronts = pareto_fronts(points)
    best = [point for front in fronts for point in front]
    names = tuple(dict.fromkeys(point.series for point in points))
    chart = _styled(
        pygal.XY,
        x_title=x_title,
        y_title=y_title,
        x_value_formatter=_short,
        value_formatter=_short,
        show_legend=False,
        dots_size=6,
        allow_interruptions=True,
    )
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    chart.config.range = (low - margin, high + margin)  # what lies within the intervals is not drawn large
    for name in names:
        own = [{"value": (point.x, point.y), "label": point.label} for point in points if point.series == name]
        chart.add(name, own, stroke=False)
    # series of lines, divided by None
    spread = [part for point in points if point.low < point.high for part in _between(point)]
    lines = [part for front in fronts if len(front) > 1 for part in (*((p.x, p.y) for p in front), None)]
    drawn = {"spread": spread, "front": lines}
    for series in drawn.values():
        if series:
            chart.add("", series, show_dots=False)
    is_spread = bool(spread)
    rows = tuple(
        (
            p.label,
            f"{p.x:.4g}",
            f"{p.y:.5g}",
            *([f"{p.low:.5g} to {p.high:.5g}"] if is_spread else []),
            "yes" if p in best else "no",
        )
        for p in points
    )
    head = ("attempt", x_title, y_title, *(["95% interval"] if is_spread else []), "on the Pareto front")
    whose = "front" if len(fronts) == 1 else "front of their target"
    caption = f"{title}: {len(best)} of {len(points)} are on the Pareto {whose}."
    if is_spread:
        caption += " What is not better than something cheaper beyond the 95% intervals is not on it."
    return Plot(
        svg=_svg(chart, title, caption, anchor, last=[name for name, series in drawn.items() if series]),
        caption=caption,
        table=Table(head=head, rows=rows),
        legend=tuple(enumerate(names)),
    )


def _between(point: Point) -> tuple[tuple[float, float] | None, ...]:
    return (point.x, point.low), (point.x, point.high), None


def pareto_fronts(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points of each Pareto front by cost, a front for each group of rivals.

    A point is on it if it is better than all cheaper ones there by more than the intervals.
    """
    fronts: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        front = fronts.setdefault(point.rivals, [])
        if all(one.high < point.low or (one.x, one.y) == (point.x, point.y) for one in front):
            front.append(point)
    return list(fronts.values())


def depth(
    layers: Sequence[tuple[int, str, float, float]],
    worst: str,
    *,
    title: str,
    names: tuple[str, str],
    caption: str,
    anchor: str,
) -> Plot | None:
    """Return the error along the depth of a graph as two lines, with one layer marked; None for less than two.

    Args:
        layers: in the order of execution: number and name, as the page's table has them, and two kinds of SQNR in dB.
        worst: the name of the layer to mark.
        title: of the plot.
        names: of the two kinds.
        caption: of it.
        anchor: the plot's id in the page.
    """
    import pygal

    # the float graph and a quantized one can agree in a layer: an infinite ratio has no place on the axis
    drawn = [one for one in layers if math.isfinite(one[2]) and math.isfinite(one[3])]
    if len(drawn) < 2:
        return None
    chart = _styled(
        pygal.XY,
        x_title="layer, in the order of execution",
        y_title="SQNR in dB",
        show_legend=False,
        dots_size=3,
        show_dots=len(drawn) <= _MOST_DOTS,
        value_formatter=_short,
        x_value_formatter=lambda value: f"{value:.0f}",
    )
    chart.add(names[0], [{"value": (i, so_far), "label": name} for i, name, so_far, _ in drawn])
    chart.add(names[1], [{"value": (i, own), "label": name} for i, name, _, own in drawn])
    marked = [{"value": (i, own), "label": name} for i, name, _, own in drawn if name == worst]
    chart.add("marked", marked, stroke=False, show_dots=True, dots_size=8)
    return Plot(
        svg=_svg(chart, title, caption, anchor, last=["marked"]),
        caption=caption,
        legend=tuple(enumerate((*names, f"marked: {worst}") if marked else names)),
        kind="depth",
    )


def treemap(areas: Sequence[Area], series: Sequence[str], *, title: str, anchor: str) -> Plot | None:
    """Return bytes as areas, the larger ones with their numbers; None for less than two. The page has them in a table.

    Args:
        areas: of the parts of an artifact.
        series: all names of series, in the order of their colours.
        title: of the plot.
        anchor: the plot's id in the page.
    """
    import pygal

    shown = sorted((area for area in areas if area.size_bytes), key=lambda area: -area.size_bytes)
    if len(shown) < 2:
        return None
    total = sum(area.size_bytes for area in shown)

    def rectangle(area: Area) -> dict[str, Any]:
        number = f"{area.number}" if area.size_bytes >= _LEAST_LABELLED * total else ""
        label = f"{area.label}, {format_bytes(area.size_bytes)}"
        return {"value": area.size_bytes, "label": label, "formatter": lambda _: number}

    chart = _styled(pygal.Treemap, show_legend=False, print_values=True)
    for name in series:
        chart.add(name, [rectangle(area) for area in shown if area.series == name])
    shares = [(name, sum(area.size_bytes for area in shown if area.series == name)) for name in series]
    parts = ", ".join(f"{format_bytes(size)} in {name}" for name, size in shares if size)
    largest = f"{shown[0].label} (number {shown[0].number})"
    caption = f"{title}: {format_bytes(total)} of weights, {parts}. The largest is {largest}."
    used = tuple((i, name) for i, (name, size) in enumerate(shares) if size)
    return Plot(
        svg=_svg(chart, title, caption, anchor),
        caption=caption,
        legend=used if len(used) > 1 else (),
        kind="treemap",
    )


def _short(value: float) -> str:
    return f"{value:.6g}"


def _at(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile, as the verify step takes it."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _styled(kind: type[Graph], **options: Any) -> Graph:
    from pygal.style import Style

    style = Style(label_font_size=12, major_label_font_size=12, value_label_font_size=11, title_font_size=13)
    return kind(style=style, js=[], width=_WIDTH_PX, height=_HEIGHT_PX, margin=8, max_scale=6, **options)


def _svg(chart: Graph, title: str, caption: str, anchor: str, *, last: Sequence[str] = ()) -> str:
    """Return the drawing without its own style and scripts, named for screen readers, with names on hover.

    Args:
        chart: what to draw.
        title: its name.
        caption: what it shows.
        anchor: its id in the page.
        last: classes for the last series, which have colours of their own.
    """
    root = chart.render_tree()
    for parent in list(root.iter()):
        # pygal shows these by a script; browsers show a title without one
        told = [child.text or "" for child in parent if child.tag == "desc" and child.get("class") in _TOLD]
        for child in [child for child in parent if _is_dropped(child)]:
            parent.remove(child)
        if told and parent.get("class", "") != "":
            name = ElementTree.Element("title")
            name.text = ": ".join(part for part in told if part)
            parent.insert(0, name)
    for name in root.findall("title"):
        root.remove(name)
    for i, kind in enumerate(last, start=len(chart.raw_series) - len(last)):
        for group in root.iter("g"):
            if group.get("class", "").split()[:2] == ["series", f"serie-{i}"]:
                group.set("class", f"series {kind}")
    for tag, text in (("desc", caption), ("title", title)):
        element = ElementTree.Element(tag, id=f"{anchor}-{tag}")
        element.text = text
        root.insert(0, element)
    root.attrib.pop("id", None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{anchor}-title {anchor}-desc"})
    for element in root.iter():
        for key in _COORDINATES & set(element.keys()):
            # less than a tenth of a pixel is seen by nobody, and takes most of the bytes
            element.set(key, re.sub(r"\d+\.\d\d+", lambda number: f"{float(number[0]):.1f}", element.attrib[key]))
        if "tooltip-trigger" in element.get("class", ""):  # for pygal's own script
            element.attrib.pop("class")
    return ElementTree.tostring(root, encoding="unicode")


_TOLD = ("label", "value")


def _is_dropped(element: ElementTree.Element) -> bool:
    """Whether a part serves pygal's own scripts only; ElementTree's comments have a function for a tag."""
    if not isinstance(element.tag, str) or element.tag in _DROPPED:
        return True
    return "tooltip-overlay" in element.get("class", "")
