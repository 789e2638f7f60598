"""What --scheme auto tried and --compare made: in words, in JSON, on the page."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgeq.bundle.run_report import read_report, write_report
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import Interval
from edgeq.core.results.report import (
    Choice,
    Comparison,
    DataFacts,
    Gate,
    ModelResult,
    PackageResult,
    ProjectReport,
    RunReport,
    Source,
    Variant,
)
from edgeq.pipeline.reports import bundle_page, index_page, read_source
from edgeq.report import text
from edgeq.report.ci import to_markdown
from edgeq.report.html import attempts
from edgeq.report.json import PackageDocument, to_json
from edgeq.report.plots import Plot
from edgeq.report.text import render


def variant(scheme: str, size_bytes: int | None = None, latency_ms: float | None = None, **more: Any) -> Variant:
    p90_ms = None if latency_ms is None else 2 * latency_ms
    return Variant(scheme=scheme, size_bytes=size_bytes, latency_ms=latency_ms, latency_p90_ms=p90_ms, **more)


HOST = "than fp32 on this x86_64 host"


@pytest.mark.parametrize(
    ("own", "fp32", "speedup", "told"),
    [
        (
            100,
            400,
            (2.0, 1.9, 2.2),
            f"is 2.00 times faster {HOST} (95% interval 1.90 to 2.20) and is 4.00 times smaller",
        ),
        (
            100,
            400,
            (0.5, 0.4, 0.8),
            (
                f"is 2.00 times slower {HOST} (95% interval 1.25 to 2.50) and is 4.00 times smaller: its only gain is "
                "in size"
            ),
        ),
        (
            100,
            400,
            (0.97, 0.90, 1.02),
            f"is not significantly faster or slower {HOST} (0.97 times as fast, 95% interval 0.90 to 1.02)"
            " and is 4.00 times smaller",
        ),
        # as it is shown, the interval begins at 1.00
        (
            100,
            400,
            (1.03, 1.004, 1.06),
            f"is not significantly faster or slower {HOST} (1.03 times as fast, 95% interval 1.00 to 1.06)"
            " and is 4.00 times smaller",
        ),
        (
            500,
            400,
            (0.5, 0.5, 0.5),
            f"is 2.00 times slower {HOST} (95% interval 2.00 to 2.00) and is 1.25 times larger",
        ),
        (100, 400, None, "is 4.00 times smaller"),
    ],
)
def test_whether_int8_is_worth_it_is_said_in_words(own, fp32, speedup, told):
    interval = Interval(estimate=speedup[0], low=speedup[1], high=speedup[2]) if speedup else None
    found = Comparison(
        arch="x86_64", variants=(variant("static-int8", own, 1.0, speedup=interval), variant("fp32", fp32, 1.0))
    )
    assert text.compared(found)[-1] == f"static-int8 {told}"


def test_latencies_that_were_not_taken_in_turns_are_no_ground_for_a_word():
    found = Comparison(arch="x86_64", variants=(variant("static-int8", None, 1.0), variant("fp32", 400, 3.0)))
    assert text.compared(found) == [
        "static-int8 1.00 ms (p90 2.00 ms); fp32 400 B, 3.00 ms (p90 6.00 ms)",
        "static-int8: there are no measurements to compare",
    ]


def test_without_fp32_nothing_is_said_of_it():
    refused = variant("fp32", error="no kernel", exit_code=ExitCode.UNSUPPORTED)
    (line,) = text.compared(Comparison(arch="x86_64", variants=(variant("fp16", 100, 1.0), refused)))
    assert line == "fp16 100 B, 1.00 ms (p90 2.00 ms); fp32 no kernel"


def test_each_try_has_its_reasons():
    gate = Gate(
        name="sqnr", outcome="failed", limit=">= 30 dB", measured="20 dB", detail="", exit_code=ExitCode.ACCURACY
    )
    tried = (variant("static-int8", 100, failed=(gate,)), variant("qat-int8", error="nothing to train"))
    choice = Choice(linear_macs=0.01, tried=tried, chosen=0, untried=("fp32",))
    assert text.choice(choice).endswith(
        "none passed every gate; static-int8 comes closest; not tried, since they would fail the same gate: fp32"
    )
    assert text.choice_lines(choice) == [
        "static-int8: 100 B, refused: sqnr: limit >= 30 dB, measured 20 dB",
        "qat-int8: refused: nothing to train",
    ]


def test_reports_pages_and_json_hold_both(row: PackageResult) -> None:
    tried = (variant("static-int8", 100, 1.0, sqnr_db=float("inf")), variant("qat-int8", error="<b>no</b>"))
    own = variant("static-int8", 100, 1.0, speedup=Interval(estimate=3.0, low=2.9, high=3.25))
    full = dataclasses.replace(
        row,
        choice=Choice(linear_macs=0.25, tried=tried, chosen=0),
        compared=Comparison(arch="x86_64", variants=(own, variant("fp32", 400, 3.0))),
    )
    write_report(row.path, full)
    assert read_report(row.path) == full
    document = to_json(RunReport(rows=(full,), data=DataFacts()))
    PackageDocument.model_validate(document | {"installed": []})
    assert document["rows"][0]["auto"]["tried"][1]["error"] == "<b>no</b>"
    compared = document["rows"][0]["compared"]["variants"][0]
    assert compared["speedup"] == {"estimate": 3.0, "low": 2.9, "high": 3.25}
    assert compared["latency_p90_ms"] == 2.0
    told = f"static-int8 is 3.00 times faster {HOST} (95% interval 2.90 to 3.25) and is 4.00 times smaller"
    report = RunReport(rows=(full,), data=DataFacts())
    assert told in render(report, width=400)
    project = ProjectReport(models=(ModelResult(name="small", report=report),), app=())
    assert told in to_markdown(project).replace("\\", "")
    page = bundle_page(full, DataFacts()).decode()
    assert "refused: &lt;b&gt;no&lt;/b&gt;" in page
    assert told in page
    assert "for comparison, not judged" in page  # fp32 was not judged
    assert "<b>no</b>" not in page


def test_a_plot_has_every_scheme_that_was_tried(row: PackageResult) -> None:
    tried = (variant("static-int8", 100, sqnr_db=20.0), variant("fp16", 200, sqnr_db=60.0))
    found = dataclasses.replace(row, choice=Choice(linear_macs=0.0, tried=tried, chosen=0))
    page = bundle_page(found, DataFacts()).decode()
    assert "accuracy against size: 1 of 2 are on the Pareto front" in page
    assert "accuracy against latency" not in page  # that was measured for one of them only
    assert "fp16, android-arm64-xnnpack" in page
    assert "accuracy against size" in index_page((found,), DataFacts(), folder=row.path).decode()


def scored(scheme: str, size_bytes: int, score: float, width_pp: float) -> Variant:
    drop = 100 * (0.96 - score)
    interval = Interval(estimate=drop, low=drop - width_pp, high=drop + width_pp)
    return variant(scheme, size_bytes, 1.0, score=score, fp32_score=0.96, drop_pp=interval)


def with_choice(row: PackageResult, *tried: Variant) -> PackageResult:
    # the row's own figures stand for its scheme
    return dataclasses.replace(row, choice=Choice(linear_macs=0.0, tried=tried, chosen=0))


def plots_of(*rows: PackageResult) -> dict[str, Plot]:
    sources = [Source(row=row, manifest=read_source(row.path).manifest) for row in rows]
    return {plot.caption.partition(":")[2].split(":")[0].strip(): plot for plot in attempts(sources)}


def test_no_front_is_drawn_inside_the_noise(row: PackageResult) -> None:
    fidelity = dataclasses.replace(
        row.verified.fidelity,  # type: ignore[type-var]
        score=0.9545,
        fp32_score=0.96,
        metric="top1",
        drop_pp=Interval(estimate=0.55, low=-0.5, high=1.6),
    )
    own = dataclasses.replace(row, verified=dataclasses.replace(row.verified, fidelity=fidelity))
    noise = plots_of(with_choice(own, scored("fp16", 20_000, 0.9552, 1.0)))["accuracy against size"]
    assert 'class="series front"' not in noise.svg
    assert 'class="series spread"' in noise.svg
    assert noise.caption.startswith("digits: accuracy against size: 1 of 2 are on the Pareto front. What is not better")
    assert [cells[3:] for cells in noise.table.rows] == [("94.52 to 96.52", "no"), ("94.4 to 96.5", "yes")]
    clear = plots_of(with_choice(own, scored("fp16", 20_000, 0.99, 1.0)))["accuracy against size"]
    assert 'class="series front"' in clear.svg


def test_attempts_at_another_target_are_no_rivals_and_are_named(row: PackageResult) -> None:
    other = dataclasses.replace(row, target="linux-x86_64-x86")
    # each target has one attempt: there is nothing to choose from
    assert plots_of(row, other) == {}
    tried = variant("fp16", 20_000, 5.0, sqnr_db=60.0)
    plot = plots_of(with_choice(row, tried), with_choice(other, tried))["accuracy against size"]
    assert plot.caption == "digits: accuracy against size: 4 of 4 are on the Pareto front of their target."
    assert [name for _, name in plot.legend] == [
        "android-arm64-xnnpack, fp16",
        "android-arm64-xnnpack, static-int8",
        "linux-x86_64-x86, fp16",
        "linux-x86_64-x86, static-int8",
    ]


def test_a_time_of_another_kind_of_processor_is_said_to_be_one(row: PackageResult) -> None:
    plots = plots_of(with_choice(row, variant("fp16", 20_000, 5.0, sqnr_db=60.0)))
    assert [name for _, name in plots["accuracy against latency"].legend] == [
        "fp16 (timed on x86_64)",
        "static-int8 (timed on x86_64)",
    ]
    assert [name for _, name in plots["accuracy against size"].legend] == ["fp16", "static-int8"]
    timing = dataclasses.replace(row.verified.timing, arch="arm64")  # type: ignore[type-var]
    own = dataclasses.replace(row, verified=dataclasses.replace(row.verified, timing=timing))
    plot = plots_of(with_choice(own, variant("fp16", 20_000, 5.0, sqnr_db=60.0)))["accuracy against latency"]
    assert "timed on" not in str(plot.legend)
