"""A latency that was measured on a busy machine is said to be one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bundle_items import artifact, inputs

from edgeq.check.evaluate import check, check_again
from edgeq.core.config import GateOptions
from edgeq.core.results.measured import Timing
from edgeq.core.results.report import PackageResult

from .gate_builders import lowered, sized, target, verified

CALM = Timing(p50_ms=0.17, p90_ms=0.2, runs=100, warmup=10, threads=1, arch="x86_64", load=0.4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"p90_ms": 10.39, "tries": 3},
            "the fastest of 3 tries: this host was busy while it was measured (the p90 is 61.1",
        ),
        ({"load": 6.0}, "(6.0 processes per core wanted to run)"),
        ({"load": 6.0, "p90_ms": 0.3}, "(the p90 is 1.8 times the p50 and 6.0 processes per core wanted to run)"),
    ],
)
def test_what_was_seen_of_the_load_is_said(change: dict[str, float], said: str) -> None:
    assert said in dataclasses.replace(CALM, **change).warning  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "timing", [CALM, dataclasses.replace(CALM, load=None), dataclasses.replace(CALM, load=9, gpu="H200")]
)
def test_a_calm_machine_and_a_gpu_need_no_warning(timing: Timing) -> None:
    assert timing.warning == ""


SMALL = GateOptions(limits=(("size", 2000.0),))
FAST = GateOptions(limits=(("size", 2000.0), ("latency", 50.0)))


@pytest.mark.parametrize(
    ("options", "other", "is_warned"),
    [(SMALL, FAST, False), (FAST, SMALL, True), (dataclasses.replace(FAST, latency_on="predicted"), SMALL, False)],
)
def test_a_busy_host_is_warned_of_where_its_latency_is_judged(
    options: GateOptions, other: GateOptions, is_warned: bool, tmp_path: Path
) -> None:
    busy = dataclasses.replace(verified(), timing=dataclasses.replace(CALM, load=6.0))
    made = artifact(sized(lowered(), 1000), busy)
    other = dataclasses.replace(other, latency_on=options.latency_on)  # of the cache's key: no kept result has another

    def judged(by: GateOptions) -> PackageResult:
        checked = check(made, inputs(), target(), "static-int8", by, download_bytes=900)
        return PackageResult(
            model="digits",
            target="android-arm64-xnnpack",
            scheme="static-int8",
            path=tmp_path,
            digest="0" * 64,
            size_bytes=1000,
            download_bytes=900,
            fp32_bytes=4000,
            verified=busy,
            checked=checked,
            delegated_macs=1.0,
            weights="file",
        )

    said = judged(options).checked.warnings
    assert any("this host was busy" in text for text in said) == is_warned
    # of a kept result the warnings are those of a new one
    assert check_again(judged(other), target(), options, download_bytes=900).warnings == said
