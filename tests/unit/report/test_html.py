"""The page is one file that fetches nothing, shows names as text, and can be read by everyone."""

from __future__ import annotations

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import edgeq.report
from edgeq.bundle.run_report import write_report
from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Layer, LayerSqnr, LayerSqnrs
from edgeq.core.results.report import (
    Comparison,
    DataFacts,
    Gate,
    ModelError,
    ModelResult,
    PackageResult,
    RunReport,
    variant_of,
)
from edgeq.pipeline.reports import bundle_page, index_page, read_run, read_source, write_bundle_page, write_index
from edgeq.report.json import to_json
from edgeq.report.plots import Point, pareto_fronts

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


def read(html: bytes) -> str:
    """Return a page without what says where its lines may break."""
    return html.decode().replace("\N{NO-BREAK SPACE}", " ").replace("<wbr>", "")


def page(row: PackageResult, data: DataFacts = NO_DATA) -> str:
    return read(bundle_page(row, data))


def index(*rows: PackageResult, folder: Path = Path(), **more: object) -> str:
    return read(index_page(rows, NO_DATA, folder=folder, **more))


@pytest.mark.parametrize("made", [page, index])
def test_a_page_fetches_nothing_and_runs_nothing(row, made):
    text = made(row)
    found = Page(text)
    assert found.stack == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#") or made is index
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
    cards = index(dataclasses.replace(row, model=evil, checked=checked))
    assert "<script" not in cards
    assert cards.count("&lt;script&gt;") >= 3


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


def test_layers_are_sorted_by_their_error_and_the_guilty_one_is_marked(row):
    assert "SQNR by itself</th>" not in page(dataclasses.replace(row, layer_sqnrs=None))
    conv, head = row.layers
    layers = (conv, dataclasses.replace(conv, name="other"), head)
    known = LayerSqnrs(
        samples=2,
        layers=(
            LayerSqnr(layer="conv", sqnr_db=32.25, own_db=32.5),
            LayerSqnr(layer="other", sqnr_db=12.0, own_db=13.0),
        ),
    )
    row = dataclasses.replace(row, layers=layers, layer_sqnrs=known)
    text = page(row)
    assert "on 2 calibration samples: the error starts at other: 13.0 dB by itself" in text
    table = text[text.index('<table class="layers">') :]
    names = re.findall(r'<th scope="row" class="name">([a-z]+)', table)
    assert names == ["other", "conv", "head"]  # what is not known comes last
    (marked,) = re.findall(r'<tr data-kind="[^"]+" class="worst"><td>(\d)</td>.*?class="mark">([^<]*)<', table)
    assert marked == ("2", "the error starts here")
    assert table.count("not measured") == 2
    depth = re.findall(r"<title>(\w+): (\d): ([\d.]+)</title>", text)
    assert ("other", "2", "13") in depth, depth  # the number of the table
    document = to_json(RunReport(rows=(row,), data=NO_DATA))["rows"][0]["layer_sqnrs"]
    assert (document["start"], document["layers"][1]["own_db"]) == ("other", 13.0)


def test_both_scores_of_a_changed_prediction_are_shown(row):
    assert row.verified.flips is not None
    assert "Below each sample" not in page(row)  # an older report has none
    flip = dataclasses.replace(row.verified.flips.examples[0], fp32_scores=(2.5, 1.25), artifact_scores=(1.5, 1.75))
    flips = dataclasses.replace(row.verified.flips, examples=(flip,))
    text = page(dataclasses.replace(row, verified=dataclasses.replace(row.verified, flips=flips)))
    assert "zero: 2.5 → 1.5" in text
    assert "one: 1.25 → 1.75" in text


def test_the_gates_that_failed_come_first_with_what_was_asked(row):
    gates = (
        Gate(name="parity", outcome="ok", limit="<= 1 step", measured="0 steps", detail="", exit_code=ExitCode.OK),
        Gate(
            name="size", outcome="failed", limit="<= 9.00 kB", measured="10.0 kB", detail="", exit_code=ExitCode.SIZE,
            bound=9000.0,
        ),
    )  # fmt: skip
    text = page(dataclasses.replace(row, checked=dataclasses.replace(row.checked, gates=gates)))
    assert (
        "<title>digits for android-arm64-xnnpack, static-int8: rejected: 1 of 2 gates failed: size (exit code 4)"
        in text
    )
    assert text.index("<strong>size</strong> failed") < text.index('<table class="summary">')
    listed = text[text.index('id="gates"') :]
    assert listed.index("size <span") < listed.index("parity <span")
    assert "the largest layer is" in text


def test_the_shipped_model_stands_beside_the_new_one(row):
    assert "shipped model" not in page(row)
    shipped = dataclasses.replace(variant_of(row), size_bytes=12_345)
    row = dataclasses.replace(row, shipped=shipped)
    write_report(row.path, row)
    assert read_source(row.path).row.shipped == shipped
    assert "shipped model: 12.3 kB" in page(row)


def test_an_outlier_is_named_and_squeezes_nothing(row):
    assert row.verified.timing is not None
    runs = (*(0.1 + i / 1000 for i in range(29)), 7.8)
    timing = dataclasses.replace(row.verified.timing, latencies_ms=runs)
    text = page(dataclasses.replace(row, verified=dataclasses.replace(row.verified, timing=timing)))
    assert "1 outlier is outside the plot: 7.8 ms (run 30)" in text
    svg = text[text.index('id="latency-plot-title"') :]
    (height,) = re.findall(r'<rect x="[^"]+" y="[^"]+" height="([\d.]+)"', svg[: svg.index("</svg>")])
    assert float(height) > 40  # of 220: the box of the quartiles


def test_layers_that_are_all_alike_are_blamed_together(row):
    layers = tuple(LayerSqnr(layer=f"l{i}", sqnr_db=40.0 - 5 * i, own_db=35.0 - i / 4) for i in range(4))
    found = LayerSqnrs(samples=1, layers=layers)
    assert found.start is None
    told = page(dataclasses.replace(row, layer_sqnrs=found))
    assert (
        "no layer stands out: the error builds up from layer to layer, most comes from l3 (34.2 dB by itself)" in told
    )


@pytest.mark.parametrize("made", [page, index])
def test_every_plot_and_picture_has_words(row, made):
    fp32 = dataclasses.replace(row, scheme="fp32", size_bytes=40_000)
    compared = Comparison(arch="x86_64", variants=(variant_of(row), variant_of(fp32)))
    text = index(row, fp32) if made is index else page(dataclasses.replace(row, compared=compared))
    tags = Page(text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    plots = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(plots) == (2 if made is index else 4)  # size and latency of the schemes; bytes, latencies of one
    for attributes in plots:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert sum(tag == "figure" for tag, _ in tags) == len(plots)


def test_what_was_not_measured_is_said(row):
    nothing = dataclasses.replace(
        row.verified, timing=None, fidelity=None, parity=None, kernels=None, load_ms=None, flips=None
    )
    text = page(dataclasses.replace(row, verified=nothing, layers=()))
    assert "not measured" in text
    assert "<svg" not in text


def test_a_large_page_stays_below_300_kilobytes(row):
    assert row.verified.flips is not None
    flip = dataclasses.replace(row.verified.flips.examples[0], thumbnail="A" * 8000)
    flips = dataclasses.replace(row.verified.flips, examples=(flip,) * 24)
    names = [f"block.{i}.attention.output.dense" for i in range(1000)]
    layers = tuple(
        Layer(name=name, op="linear", macs=i, weight_bytes=i, delegated=True) for i, name in enumerate(names)
    )
    sqnrs = tuple(LayerSqnr(layer=name, sqnr_db=40.0 - i / 50, own_db=30.0) for i, name in enumerate(names))
    verified = dataclasses.replace(row.verified, flips=flips)
    large = dataclasses.replace(row, layers=layers, layer_sqnrs=LayerSqnrs(samples=2, layers=sqnrs), verified=verified)
    text = page(large)
    assert len(text.encode()) < 300_000
    assert "850 layers with less error are left out" in text
    assert len(index(*([large] * 100)).encode()) < 300_000


def test_the_app_as_a_whole_is_judged_on_the_page(row):
    gate = Gate(
        name="size of the app for android-arm64",
        outcome="failed",
        limit="<= 1 B",
        measured="2 B",
        detail="",
        exit_code=ExitCode.SIZE,
    )
    text = index(row, app=(gate,))
    assert "size of the app for android-arm64" in text
    assert "<title>digits, 1 bundle: the app as a whole failed</title>" in text


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_a_model_that_could_not_be_built_is_never_ok(row, n_rows):
    error = ModelError(what="no such thing: <b>", fix="write it", exit_code=ExitCode.USAGE)
    text = index(*([row] * n_rows), broken=(ModelResult(name="broken", report=None, error=error),))
    assert ": 1 model could not be built</title>" in text
    assert '<p class="verdict bad">1 model could not be built</p>' in text
    assert "no such thing: &lt;b&gt;" in text
    assert "write it" in text
    assert not Page(text).stack


def test_an_index_links_to_the_pages_and_keeps_bundles_of_earlier_runs(row, tmp_path):
    assert 'href="digits' not in index(row, folder=tmp_path)  # it has no page yet
    write_bundle_page(row, NO_DATA)
    assert 'href="digits/android-arm64-xnnpack/report.html"' in index(row, folder=tmp_path)
    other = tmp_path / "other model" / "android-arm64-xnnpack"
    shutil.copytree(row.path, other)
    torn = tmp_path / "torn" / "android-arm64-xnnpack"
    shutil.copytree(row.path, torn)
    (torn / "report.json").write_text("{")
    write_index(tmp_path, (row,), NO_DATA)
    text = (tmp_path / "report.html").read_text()
    assert not Page(text).stack
    now, _, before = text.partition('id="earlier"')
    assert "digits/android-arm64-xnnpack/report.html" in now
    assert 'href="other%20model/android-arm64-xnnpack/report.html"' in before
    assert f"{torn}</dt>" in before
    assert "<title>digits, 1 bundle: ok</title>" in now


def test_bundles_on_disk_are_read_back(row):
    report = read_run([row.path.parents[1]])
    assert [model.name for model in report.models] == ["digits"]
    assert report.rows == (row,)
    assert read_source(row.path).manifest.model.name == "digits"


def test_only_what_no_other_beats_is_on_the_front():
    points = [
        Point(series="s", label=name, x=x, y=y, low=y, high=y)
        for name, x, y in [("a", 1, 1), ("b", 2, 3), ("c", 3, 2), ("d", 1, 1)]
    ]
    assert [[point.label for point in front] for front in pareto_fronts(points)] == [["a", "d", "b"]]


def test_what_is_dearer_is_on_the_front_only_beyond_the_noise_and_among_its_own_target() -> None:
    points = [
        Point(series="s", label=label, x=x, y=y, low=y - 1, high=y + 1, rivals=rivals)
        for label, x, y, rivals in [
            ("cheap", 1, 90, "phone"),
            ("no better", 2, 91.5, "phone"),
            ("better", 3, 92.5, "phone"),
            ("server", 9, 80, "server"),
        ]
    ]
    fronts = [[point.label for point in front] for front in pareto_fronts(points)]
    assert fronts == [["cheap", "better"], ["server"]]


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
