"""The page is one file that fetches nothing, shows names as text, and can be read by everyone."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import edgeq.report
from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Layer, LayerSqnr, LayerSqnrs
from edgeq.core.results.report import DataFacts, Gate, ModelError, ModelResult, PackageResult, RunReport
from edgeq.pipeline.reports import page_of, read_run, read_source
from edgeq.report.json import to_json
from edgeq.report.plots import Point, is_best

CSS = (Path(edgeq.report.__file__).parent / "page.css").read_text()
NO_DATA = DataFacts()
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a page fetches, its ids, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def page(*rows: PackageResult, data: DataFacts = NO_DATA, **more: object) -> str:
    return page_of(rows, data, title="a run", **more).decode()


def test_a_page_fetches_nothing_and_runs_nothing(row):
    text = page(row, row)
    found = Page(text)
    assert found.stack == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_names_are_shown_as_text(row):
    evil = "<script>alert(1)</script>"
    layer = Layer(name=evil, op="linear", macs=1, weight_bytes=1, delegated=True)
    gate = Gate(name=evil, outcome="failed", limit=evil, measured=evil, detail=evil, exit_code=ExitCode.SIZE)
    checked = dataclasses.replace(row.checked, gates=(gate,), warnings=(evil,))
    text = page(dataclasses.replace(row, model=evil, layers=(layer,), checked=checked), data=DataFacts(skipped=(evil,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 7


def test_a_page_says_what_was_measured(row):
    text = page(row)
    for fact in (
        "10.0 kB",
        "9.00 kB",
        "97.90%",
        "31.2 dB",
        "3.21",
        "98.77%",
        "upper end 0.31 pp",
        row.digest,
        "a" * 64,
    ):
        assert fact in text
    assert "3 of 100 samples have another top-1 class than fp32" in text
    assert "zero → one" in text
    assert "one → class 5" in text
    assert text.count("data:image/webp;base64,") == 1
    assert 'class="kind-int8"' in text
    assert 'class="kind-float"' in text


def test_a_page_says_how_far_each_layer_is_from_float(row):
    assert "SQNR</th>" not in page(dataclasses.replace(row, layer_sqnrs=None))
    known = LayerSqnrs(
        samples=2,
        layers=(
            LayerSqnr(layer="conv", sqnr_db=12.25, own_db=12.5),
            LayerSqnr(layer="other", sqnr_db=30.0, own_db=float("inf")),
        ),
    )
    row = dataclasses.replace(row, layer_sqnrs=known)
    text = page(row)
    assert "on 2 calibration samples: the error starts at conv: 12.5 dB by itself, it reads the input." in text
    assert '<td class="number">12.2 dB<small>12.5 dB by itself</small></td>' in text
    assert text.count('<td class="number">not measured</td>') == 1  # the head, which it does not know
    document = to_json(RunReport(rows=(row,), data=NO_DATA))["rows"][0]["layer_sqnrs"]
    assert (document["start"], document["layers"][1]["own_db"]) == ("conv", "Infinity")


def test_layers_that_are_all_alike_are_blamed_together(row):
    layers = tuple(LayerSqnr(layer=f"l{i}", sqnr_db=40.0 - 5 * i, own_db=35.0 - i / 4) for i in range(4))
    found = LayerSqnrs(samples=1, layers=layers)
    assert found.start is None
    told = page(dataclasses.replace(row, layer_sqnrs=found))
    assert (
        "no layer stands out: the error builds up from layer to layer, most comes from l3 (34.2 dB by itself)" in told
    )


def test_every_plot_and_picture_has_words(row):
    fp32 = dataclasses.replace(row, scheme="fp32", size_bytes=40_000)
    tags = Page(page(row, fp32)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    plots = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(plots) == 3  # one of the schemes, and the latencies of each
    for attributes in plots:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert sum(tag == "figure" for tag, _ in tags) == len(plots)
    assert sum(tag == "summary" for tag, _ in tags) == len(plots) + 2  # a table each, and the provenance


def test_what_was_not_measured_is_said(row):
    nothing = dataclasses.replace(
        row.verified, timing=None, fidelity=None, parity=None, kernels=None, load_ms=None, flips=None
    )
    text = page(dataclasses.replace(row, verified=nothing, layers=()))
    assert "not measured" in text
    assert "<svg" not in text


def test_a_large_run_stays_below_two_megabytes(row):
    assert row.verified.flips is not None
    flip = dataclasses.replace(row.verified.flips.examples[0], thumbnail="A" * 8000)
    flips = dataclasses.replace(row.verified.flips, examples=(flip,) * 24)
    layers = tuple(
        Layer(name=f"block.{i}.attention.output.dense", op="linear", macs=i, weight_bytes=i, delegated=True)
        for i in range(1000)
    )
    large = dataclasses.replace(row, layers=layers, verified=dataclasses.replace(row.verified, flips=flips))
    text = page(*([large] * 10))
    assert len(text.encode()) < 2_000_000
    assert "700 smaller layers are left out" in text


def test_the_app_as_a_whole_is_judged_on_the_page(row):
    gate = Gate(
        name="size of the app for android-arm64",
        outcome="failed",
        limit="<= 1 B",
        measured="2 B",
        detail="",
        exit_code=ExitCode.SIZE,
    )
    text = page(row, row, app=(gate,))
    assert "size of the app for android-arm64" in text
    assert "the app as a whole failed" in text
    assert "<title>a run: the app as a whole failed</title>" in page(row, app=(gate,))


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_a_model_that_could_not_be_built_is_never_ok(row, n_rows):
    error = ModelError(what="no such thing: <b>", fix="write it", exit_code=ExitCode.USAGE)
    text = page(*([row] * n_rows), broken=(ModelResult(name="broken", report=None, error=error),))
    assert "<title>a run: 1 model could not be built</title>" in text
    assert '<p class="bad">1 model could not be built</p>' in text
    assert "no such thing: &lt;b&gt;" in text
    assert "write it" in text
    assert not Page(text).stack


def test_bundles_on_disk_are_read_back(row):
    report = read_run([row.path.parents[1]])
    assert [model.name for model in report.models] == ["digits"]
    assert report.rows == (row,)
    assert read_source(row.path).manifest.model.name == "digits"


def test_only_what_no_other_beats_is_on_the_front():
    points = [
        Point(series="s", label=name, x=x, y=y) for name, x, y in [("a", 1, 1), ("b", 2, 3), ("c", 3, 2), ("d", 1, 1)]
    ]
    assert [point.label for point in points if is_best(point, points)] == ["a", "b", "d"]


def palettes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    light, dark = (dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block)) for block in blocks)
    assert set(light) == set(dark)
    return [light, dark]


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["page", "card"])
@pytest.mark.parametrize("ink", ["ink", "soft", "ok", "bad", "int8", "float", "bar", "other"])
def test_text_has_the_contrast_of_wcag_aa(palette, ground, ink):
    high, low = sorted((luminance(palette[ink]), luminance(palette[ground])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5
