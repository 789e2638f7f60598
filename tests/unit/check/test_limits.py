from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.check.limits import Measured, limit_gate
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import DeviceMeasures, DriftReport, OutputDrift, Perplexity
from edgeq.core.schemes import LIMITS, parse_limit

from .gate_builders import fidelity, interval, timing, verified


def measured(report=None, limit_on="interval", host="x86_64", target="x86_64", platform="linux"):
    return Measured(
        size_bytes=3_740_000,
        download_bytes=3_000_000,
        verified=report or verified(),
        limit_on=limit_on,
        host_arch=host,
        target_arch=target,
        target_platform=platform,
        threads=2,
        sram_bytes=40_000,
        cycles=100_000,
    )


DROP = fidelity(drop=interval(0.2, -0.1, 0.6))


@pytest.mark.parametrize(
    ("name", "limit", "report", "code"),
    [
        ("size", 3_740_000, None, ExitCode.SIZE),
        ("download", 3_000_000, None, ExitCode.SIZE),
        ("accuracy_drop", 0.6, verified(fidelity=DROP), ExitCode.ACCURACY),
        ("latency", 12.0, None, ExitCode.LATENCY),
        ("peak_memory", 1000, None, ExitCode.LATENCY),
        ("load", 5.0, None, ExitCode.LATENCY),
        ("sram", 40_000, None, ExitCode.LATENCY),
        ("cycles", 100_000, None, ExitCode.LATENCY),
    ],
)
def test_the_measured_value_itself_is_the_least_limit_that_passes(name, limit, report, code):
    assert limit_gate(name, limit, measured(report)).outcome == "ok"
    broken = limit_gate(name, math.nextafter(limit, 0), measured(report))
    assert (broken.name, broken.outcome, broken.exit_code) == (name, "failed", code)


@pytest.mark.parametrize("name", ["sram", "cycles"])
def test_only_vela_measures_an_npu(name):
    gate = limit_gate(name, 1e9, dataclasses.replace(measured(), sram_bytes=None, cycles=None))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert "Ethos-U" in gate.detail


def test_latency_is_the_p90_not_the_median():
    report = verified(timing=timing(p90_ms=30.0))
    assert report.timing.p50_ms < 20 < report.timing.p90_ms
    assert limit_gate("latency", 20.0, measured(report)).outcome == "failed"


def test_the_drop_is_judged_by_the_upper_end_unless_the_point_is_asked_for():
    report = verified(fidelity=DROP)
    assert limit_gate("accuracy_drop", 0.5, measured(report)).outcome == "failed"
    assert limit_gate("accuracy_drop", 0.5, measured(report, limit_on="point")).outcome == "ok"


def test_a_drop_of_nan_fails():
    report = verified(fidelity=fidelity(drop=interval(math.nan, math.nan, math.nan)))
    assert limit_gate("accuracy_drop", 100.0, measured(report)).outcome == "failed"


@pytest.mark.parametrize("report", [verified(fidelity=None), verified(fidelity=fidelity())])
def test_without_a_score_the_drop_is_unverified(report):
    gate = limit_gate("accuracy_drop", 0.5, measured(report))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert "--eval-data" in gate.detail


@pytest.mark.parametrize("name", ["latency", "peak_memory", "load"])
def test_a_measurement_on_another_architecture_does_not_count(name):
    gate = limit_gate(name, 1e9, measured(target="arm64"))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert "measured on x86_64 is not valid for arm64" in gate.detail


def test_latency_goes_by_what_it_was_timed_on():
    report = verified(timing=timing(arch="aarch64"))
    assert limit_gate("latency", 40.0, measured(report, host="x86_64", target="arm64")).outcome == "ok"
    assert limit_gate("latency", 40.0, measured(report, host="x86_64", target="x86_64")).outcome == "unverified"


def test_an_architecture_by_its_other_name_is_the_same():
    assert limit_gate("load", 40.0, measured(host="AMD64", target="x86_64")).outcome == "ok"
    assert limit_gate("load", 40.0, measured(host="aarch64", target="arm64")).outcome == "ok"


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("latency", verified(timing=None)),
        ("peak_memory", verified(peak_memory_bytes=None)),
        ("load", verified(load_ms=None)),
    ],
)
def test_what_was_not_measured_is_unverified(name, report):
    gate = limit_gate(name, 1e9, measured(report))
    assert gate.outcome == "unverified"
    assert "did not measure it" in gate.detail


def test_zero_is_a_measurement():
    assert limit_gate("load", 1.0, measured(verified(load_ms=0.0))).outcome == "ok"


@pytest.mark.parametrize("platform", ["android", "ios"])
@pytest.mark.parametrize("name", ["latency", "peak_memory", "load"])
def test_an_arm64_host_measures_for_no_phone(name, platform):
    report = verified(timing=timing(arch="arm64"))
    gate = limit_gate(name, 1e12, measured(report, host="aarch64", target="arm64", platform=platform))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert "phone" in gate.detail
    server = measured(report, host="aarch64", target="arm64")
    assert limit_gate(name, 1e12, server).outcome == "ok"


OF_PACKAGE = tuple(name for name, kind in LIMITS.items() if kind.measured_by == "package" and not kind.at_least)
UNITS = {
    "bytes": ("B", "kB", "MB", "MiB", "GB"),
    "ms": ("us", "ms", "s"),
    "pp": ("pp", "%"),
    "%": ("%",),
    "dB": ("dB",),
    "cycles": ("cycles", "kcycles", "Mcycles"),
}


def grown(growth_db):
    """An output whose SQNR falls to 0 dB by so much."""
    return OutputDrift(
        output=0,
        is_state=False,
        sqnr_db=(growth_db, growth_db, growth_db / 2, 0.0),
        start_effect_db=None,
        effect_db=None,
        motion=None,
        offset=None,
        untracked=None,
        reach=1.0,
        fp32_reach=1.0,
    )


def valued(name, value):
    """What is held to the limits where the value of one of them is `value`, and all others are 0."""
    rise = Perplexity(fp32=9.0, artifact=9.0, rise_pct=interval(0.0, 0.0, value if name == "perplexity" else 0.0))
    drop = fidelity(drop=interval(0.0, 0.0, value if name == "accuracy_drop" else 0.0))
    report = verified(
        fidelity=dataclasses.replace(drop, perplexity=rise),
        timing=timing(p90_ms=value if name == "latency" else 0.0),
        peak_memory_bytes=value if name == "peak_memory" else 0,
        load_ms=value if name == "load" else 0.0,
    )
    drift = DriftReport(steps=1000, inputs=250, outputs=(grown(value if name == "drift" else 0.0),))
    report = dataclasses.replace(report, drift=drift)
    sizes = {f"{one}_bytes": value if name == one else 0 for one in ("size", "download", "sram")}
    return dataclasses.replace(measured(report), **sizes, cycles=value if name == "cycles" else 0)


@given(data=st.data(), name=st.sampled_from(OF_PACKAGE), number=st.integers(1, 10**6), part=st.integers(0, 999))
def test_one_less_exact_and_one_more_of_any_limit_that_people_write(data, name, number, part):
    dimension = LIMITS[name].dimension
    number %= 100 if dimension in ("pp", "%") else 10**7  # of more points there are none
    text = f"{name}={number}.{part:03d}{data.draw(st.sampled_from(UNITS[dimension]))}"
    _, limit = parse_limit(text)
    whole = math.floor(limit)
    # bytes are whole: the most that passes is the limit rounded down; of times and points every bit counts
    steps = (whole - 1, whole, whole + 1) if dimension == "bytes" else (math.nextafter(limit, 0), limit, math.inf)
    last = steps[-1] if dimension == "bytes" else math.nextafter(limit, math.inf)
    outcomes = [limit_gate(name, limit, valued(name, value)).outcome for value in (*steps[:2], last)]
    assert outcomes == ["ok", "ok", "failed"], text


def device(**changes):
    facts = {"device": "Pixel 9 (adb)", "platform": "android", "os": "Android 16", "arch": "arm64", "cores": 8}
    facts |= {"is_virtual": False, "runtime": "executorch 1.5.1", "threads": 2, "warmup": 5, "runs": 50}
    facts |= {"p50_ms": 8.0, "p90_ms": 12.0}
    return DeviceMeasures(**(facts | {"load_ms": 5.0, "peak_memory_bytes": 1000} | changes))


@pytest.mark.parametrize(("name", "limit"), [("latency", 12.0), ("load", 5.0), ("peak_memory", 1000)])
def test_a_phones_own_figures_count_for_it(name, limit):
    report = dataclasses.replace(verified(), device=device())
    phone = measured(report, target="arm64", platform="android")
    assert limit_gate(name, limit, phone).outcome == "ok"
    assert limit_gate(name, math.nextafter(limit, 0), phone).outcome == "failed"


@pytest.mark.parametrize(
    "changes",
    [{"platform": "linux"}, {"arch": "x86_64"}, {"is_virtual": True}, {"platform": "macos"}, {"load_ms": None}],
)
def test_another_kind_of_device_does_not_settle_a_limit(changes):
    report = dataclasses.replace(verified(), device=device(**changes))
    gate = limit_gate("load", 1e9, measured(report, target="arm64", platform="android"))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)


def test_size_and_accuracy_are_never_a_devices():
    report = dataclasses.replace(verified(fidelity=DROP), device=device())
    phone = measured(report, target="arm64", platform="android")
    assert limit_gate("size", 3_739_999, phone).outcome == "failed"
    assert limit_gate("accuracy_drop", 0.5, phone).outcome == "failed"
