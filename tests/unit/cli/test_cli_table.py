"""The closing table is whole at every width, says who failed and by how much, and is stable as JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from edgeq.core.errors import ExitCode
from edgeq.core.results.model import Layer, LayerSqnr, LayerSqnrs
from edgeq.report.json import to_json
from edgeq.report.text import next_steps, render, share, size

from .conftest import make_gate, make_row

FIGURES = (
    "3.74 MB",
    "3.31 MB",
    "98.50%, fp32 98.83%",
    "drop 0.33 pp (-0.12 to 0.79)",
    "SQNR 27.5 dB",
    "SQNR infinite (equal)",
    "99.66%",
    "1.23 / 1.51 ms",
    "host x86_64",
    "not measured",
)


@pytest.mark.parametrize("width", [80, 100, 120, 160, 240])
def test_no_figure_is_cut_and_no_line_is_too_long(mixed, width):
    text = render(mixed, width=width)
    for figure in FIGURES:
        assert figure in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_wide_terminal_has_a_row_for_each_target(mixed):
    lines = render(mixed, width=160).splitlines()
    assert re.match(
        r"target +scheme +size +download +accuracy +agreement +int8 MACs +latency p50 / p90 +verdict", lines[0]
    )
    assert sum(line.startswith(("android-", "linux-", "ios-")) for line in lines) == 4


@pytest.mark.parametrize("width", [80, 120])
def test_several_rows_are_compared_under_each_other(mixed, width):
    lines = render(mixed, width=width).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("target, scheme"))
    assert lines[start].split() == ["target,", "scheme", "size", "drop", "worst", "SQNR", "p50", "verdict"]
    table = [line.split() for line in lines[start + 2 : start + 12]]
    assert table[0] == ["android-arm64-xnnpack", "3.74", "MB", "0.33", "pp", "31.2", "dB", "1.23", "ms", "ok"]
    assert ["linux-x86_64-fbgemm", "3.74", "MB", "-", "27.5", "dB", "1.23", "ms", "ok"] in table
    assert ["ios-arm64-xnnpack", "3.74", "MB", "-", "equal", "-", "ok"] in table
    failed = next(line for line in table if line and line[0] == "android-arm64-qnnpack")
    assert failed[-2:] == ["failed:", "size"]
    assert lines[-1].startswith("bundle: out/")  # the paths come last


def test_a_busy_host_is_one_line_for_all_bundles_without_a_limit_on_latency(mixed):
    def busy(row, *, judged):
        timing = replace(row.verified.timing, load=6.0)
        warnings = (timing.warning,) if judged else ()
        return replace(
            row, verified=replace(row.verified, timing=timing), checked=replace(row.checked, warnings=warnings)
        )

    calm, timed = mixed.rows[0], [row for row in mixed.rows if row.verified.timing is not None]
    assert "this host was busy" not in render(mixed, width=240)
    rows = (busy(calm, judged=True), *(busy(row, judged=False) for row in timed[1:]))
    told = [line for line in render(replace(mixed, rows=rows), width=400).splitlines() if "host was busy" in line]
    assert [line.partition(" ")[0] for line in told] == ["warning:", "note:"]
    assert f"while it timed {len(timed) - 1} of {len(timed)} bundles: latencies may be too high" in told[1]


def test_one_row_is_not_compared(passing):
    assert "target, scheme" not in render(passing, width=80)


def layered(row, **change):
    layers = tuple(
        Layer(name=name, op="linear", macs=1, weight_bytes=size, delegated=True)
        for name, size in (("fc", 1000), ("head", 9000))
    )
    errors = LayerSqnrs(
        samples=8,
        layers=(LayerSqnr(layer="fc", sqnr_db=9.0, own_db=8.5), LayerSqnr(layer="head", sqnr_db=8.0, own_db=30.0)),
    )
    return replace(row, layers=layers, layer_sqnrs=errors, size_bytes=20_000, **change)


def test_a_failed_row_says_what_its_own_measurements_suggest():
    gate = make_gate("accuracy_drop", "failed", ExitCode.ACCURACY)
    failed = layered(make_row("android-arm64-xnnpack", gate))
    other = replace(make_row(), scheme="fp16")
    elsewhere = replace(make_row("ios-arm64-xnnpack"), scheme="fp32")
    assert next_steps(failed, (failed, other, elsewhere)) == [
        "--scheme fp16 passed every gate here: 3.74 MB, drop 0.33 pp (-0.12 to 0.79)",
        "--keep-fp32 fc keeps the layer with the most error of its own (8.5 dB) in float: +3.00 kB, +15%",
    ]
    large = layered(make_row("android-arm64-xnnpack", make_gate(outcome="failed")))
    assert next_steps(large, (large,)) == ["the largest layer is head: 9.00 kB of 20.0 kB"]


def test_nothing_is_suggested_without_a_measurement():
    failed = make_row("android-arm64-xnnpack", make_gate("accuracy_drop", "failed", ExitCode.ACCURACY))
    assert next_steps(failed, (failed,)) == []
    assert next_steps(make_row(), ()) == []


def test_a_time_of_a_phone_is_to_be_measured_on_one():
    gate = make_gate("latency", "unverified", ExitCode.VERIFICATION)
    (line,) = next_steps(make_row("android-arm64-xnnpack", gate), ())
    assert "edgeq verify out/rejected/mobilenet_v2/android-arm64-xnnpack --on adb --write-verdict" in line


def test_very_narrow_still_breaks_between_words(mixed):
    text = render(mixed, width=40)
    assert "3.74 MB" in text
    assert "out/rejected/mobilenet_v2/android-arm64-qnnpack" in text


def test_what_failed_and_by_how_much(mixed):
    text = render(mixed, width=200)
    assert "failed: android-arm64-qnnpack static-int8: size: limit <= 3.00 MB, measured 3.74 MB: +740.0 kB" in text
    assert "unverified: android-arm64-qnnpack static-int8: latency: limit <= 40.00 ms, not measured: no timing" in text
    assert "failed: size" in text
    assert "and 1 more" in text
    assert "(random weights, cached)" in text
    assert "rejected: out/rejected/mobilenet_v2/android-arm64-qnnpack" in text
    assert text.count("not 16 KB-aligned") == 1
    assert "data: too-few-samples: 24 calibration samples, 128 were asked for" in text
    assert "data: 3 samples left out" in text


def test_no_colour_codes_where_there_is_no_terminal(mixed):
    assert "\x1b" not in render(mixed)


def test_a_share_never_rounds_up_to_all():
    assert share(1.0) == "100.00%"
    assert share(0.99999) == "99.99%"
    assert share(0.5) == "50.00%"
    assert share(math.nan) == "nan"


def test_json_is_strict_and_its_keys_are_stable(mixed):
    document = json.loads(json.dumps(to_json(mixed), allow_nan=False))
    assert document["schema_version"] == 1
    assert document["exit_code"] == 4
    assert set(document) == {"schema_version", "exit_code", "rows", "refused", "data"}
    first = document["rows"][0]
    assert set(first) == {
        "model", "target", "scheme", "path", "digest", "passed", "exit_code", "weights", "cached", "size_bytes",
        "download_bytes", "fp32_bytes", "delegated_macs", "verified", "gates", "warnings", "seconds", "reuse", "search",
        "auto", "fastest", "compared", "layer_sqnrs", "default", "zeros",
    }  # fmt: skip
    assert set(first["verified"]) == {
        "host", "parity", "fidelity", "timing", "int8_macs", "int8_macs_unmatched", "peak_memory_bytes", "load_ms",
        "findings", "flips", "emulation", "not_emulated", "stand_in", "graph_only", "cost",
    }  # fmt: skip
    assert set(first["verified"]["fidelity"]) == {
        "samples", "inputs", "sqnr_db", "cosine", "max_abs", "top1_agreement", "metric", "fp32_score", "score",
        "drop_pp", "chance_score", "mismatch_drop_pp", "agreements", "by_labels", "classes", "distinct", "worst_output",
        "groups", "indices", "lost", "perplexity", "tied", "won",
    }  # fmt: skip
    timing = {"p50_ms", "p90_ms", "runs", "warmup", "threads", "arch", "gpu", "cpu", "latencies_ms", "tries", "load"}
    assert set(first["verified"]["timing"]) == timing
    assert set(first["gates"][0]) == {"name", "outcome", "passed", "limit", "measured", "detail", "exit_code"}


def test_json_has_words_for_what_it_has_no_numbers_for(mixed):
    first = mixed.rows[0]
    fidelity = replace(first.verified.fidelity, sqnr_db=math.nan, cosine=-math.inf)
    odd = replace(mixed, rows=(replace(first, verified=replace(first.verified, fidelity=fidelity)),))
    verified = to_json(odd)["rows"][0]["verified"]
    assert verified["parity"]["sqnr_db"] == "Infinity"
    assert verified["fidelity"]["sqnr_db"] == "NaN"
    assert verified["fidelity"]["cosine"] == "-Infinity"


def test_the_size_is_told_against_fp32_both_ways(passing):
    (row,) = passing.rows
    assert size(row) == "3.74 MB\n26.7% of fp32"
    small = replace(row, size_bytes=4_200, fp32_bytes=1_000)
    assert size(small) == "4.20 kB\n4.20 times the fp32 weights"
