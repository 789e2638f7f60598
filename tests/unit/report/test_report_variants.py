"""What --scheme auto tried and --compare made: in words, in JSON, on the page."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgeq.artifacts import BuildReport, Choice, Comparison, DataFacts, Gate, Row, Variant
from edgeq.bundle.report import read_report, write_report
from edgeq.errors import ExitCode
from edgeq.pipeline.pages import page_of
from edgeq.report import words
from edgeq.report.as_json import to_json
from edgeq.report.document import PackageDocument


def variant(scheme: str, size_bytes: int | None = None, latency_ms: float | None = None, **more: Any) -> Variant:
    return Variant(scheme=scheme, size_bytes=size_bytes, latency_ms=latency_ms, **more)


@pytest.mark.parametrize(
    ("own", "fp32", "told"),
    [
        (
            (100, 2.0),
            (400, 4.0),
            "static-int8 is 2.00 times faster than fp32 on this x86_64 host and is 4.00 times",
        ),
        (
            (100, 4.0),
            (400, 2.0),
            "is 2.00 times slower than fp32 on this x86_64 host and is 4.00 times smaller: its",
        ),
        ((100, 2.0), (400, 2.05), "is about as fast as fp32 on this x86_64 host and is 4.00 times smaller"),
        ((500, 4.0), (400, 2.0), "is 2.00 times slower than fp32 on this x86_64 host and is 1.25 times larger"),
        ((100, None), (400, None), "static-int8 is 4.00 times smaller"),
        ((None, None), (400, None), "static-int8: nothing to compare was measured"),
    ],
)
def test_whether_int8_is_worth_it_is_said_in_words(own, fp32, told):
    found = Comparison(arch="x86_64", variants=(variant("static-int8", *own), variant("fp32", *fp32)))
    assert told in words.compared(found)[-1]


def test_without_fp32_nothing_is_said_of_it():
    refused = variant("fp32", error="no kernel", exit_code=ExitCode.UNSUPPORTED)
    (line,) = words.compared(Comparison(arch="x86_64", variants=(variant("fp16", 100, 1.0), refused)))
    assert line == "fp16 100 B, 1.00 ms; fp32 no kernel"


def test_each_try_has_its_reasons():
    gate = Gate(
        name="sqnr", outcome="failed", limit=">= 30 dB", measured="20 dB", detail="", exit_code=ExitCode.ACCURACY
    )
    tried = (variant("static-int8", 100, failed=(gate,)), variant("qat-int8", error="nothing to train"))
    choice = Choice(linear_macs=0.01, tried=tried, chosen=0, untried=("fp32",))
    assert words.choice(choice).endswith(
        "none passed every gate, static-int8 is the nearest; not tried, since it would fail alike: fp32"
    )
    assert words.choice_lines(choice) == [
        "static-int8: 100 B, refused: sqnr: limit >= 30 dB, measured 20 dB",
        "qat-int8: refused: nothing to train",
    ]


def test_reports_pages_and_json_hold_both(row: Row) -> None:
    tried = (variant("static-int8", 100, 1.0, sqnr_db=float("inf")), variant("qat-int8", error="<b>no</b>"))
    full = dataclasses.replace(
        row,
        choice=Choice(linear_macs=0.25, tried=tried, chosen=0),
        compared=Comparison(arch="x86_64", variants=(variant("static-int8", 100, 1.0), variant("fp32", 400, 3.0))),
    )
    write_report(row.path, full)
    assert read_report(row.path) == full
    document = to_json(BuildReport(rows=(full,), data=DataFacts()))
    PackageDocument.model_validate(document | {"installed": []})
    assert document["rows"][0]["auto"]["tried"][1]["error"] == "<b>no</b>"
    page = page_of((full,), DataFacts(), title="a run").decode()
    assert "refused: &lt;b&gt;no&lt;/b&gt;" in page
    assert "3.00 times faster than fp32" in page
    assert "<b>no</b>" not in page


def test_a_plot_has_every_scheme_that_was_tried(row: Row) -> None:
    tried = (variant("static-int8", 100, sqnr_db=20.0), variant("fp16", 200, sqnr_db=60.0))
    found = dataclasses.replace(row, choice=Choice(linear_macs=0.0, tried=tried, chosen=0))
    page = page_of((found,), DataFacts(), title="a run").decode()
    assert "size and accuracy of each scheme" in page
    assert "fp16, android-arm64-xnnpack" in page
