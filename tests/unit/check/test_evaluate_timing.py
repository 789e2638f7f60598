"""A latency that was measured on a busy machine is said to be one."""

from __future__ import annotations

import dataclasses

import pytest

from edgeq.check.evaluate import timing_warnings
from edgeq.core.results.measured import Timing

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
    (warning,) = timing_warnings(dataclasses.replace(CALM, **change))  # type: ignore[arg-type]
    assert said in warning


@pytest.mark.parametrize(
    "timing", [None, CALM, dataclasses.replace(CALM, load=None), dataclasses.replace(CALM, load=9, gpu="H200")]
)
def test_a_calm_machine_and_a_gpu_need_no_warning(timing: Timing | None) -> None:
    assert timing_warnings(timing) == ()
