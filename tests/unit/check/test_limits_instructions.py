from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.check.limits import Measured, instruction_gates, limit_gate
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import Cost, CountReport, Counts, LatencyPrediction

from .gate_builders import verified

SHIPPED = Path("shipped")


def counted(**instructions):
    return tuple(
        CountReport(cpu=name.replace("_", "-"), total=Counts(scalar=count)) for name, count in instructions.items()
    )


def with_cost(counts, shipped=(), prediction=None):
    return dataclasses.replace(verified(), cost=Cost(counts=counts, shipped=shipped, prediction=prediction))


def test_without_a_shipped_bundle_there_is_no_gate():
    assert instruction_gates(None, with_cost(counted(cortex_a53=100))) == ()


@pytest.mark.parametrize(("now", "outcome"), [(1100, "ok"), (1101, "failed"), (10, "ok")])
def test_a_tenth_more_than_the_shipped_model_passes(now, outcome):
    report = with_cost(counted(cortex_a53=now), counted(cortex_a53=1000))
    (gate,) = instruction_gates(SHIPPED, report)
    assert (gate.outcome, gate.exit_code) == (outcome, ExitCode.LATENCY)


def test_the_worst_core_counts_and_is_named():
    report = with_cost(counted(cortex_a53=900, cortex_a76=1500), counted(cortex_a53=1000, cortex_a76=1000))
    (gate,) = instruction_gates(SHIPPED, report)
    assert gate.outcome == "failed"
    assert "1.500 x on cortex-a76" in gate.measured
    assert "cortex-a53: 900 against 1,000" in gate.detail


@pytest.mark.parametrize("report", [verified(), with_cost(counted(cortex_a72=5)), with_cost((), counted(cortex_a53=5))])
def test_what_could_not_be_counted_is_unverified(report):
    (gate,) = instruction_gates(SHIPPED, report)
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)


def latency_gate(limit_ms, report):
    return limit_gate(
        "latency",
        limit_ms,
        Measured(
            size_bytes=1,
            download_bytes=1,
            verified=report,
            limit_on="interval",
            host_arch="x86_64",
            target_arch="arm64",
            target_platform="android",
            threads=2,
        ),
    )


def test_a_predicted_latency_is_judged_by_its_upper_end_and_never_called_measured():
    told = LatencyPrediction(
        device="raspberry-pi-4", threads=2, estimate_ms=30.0, low_ms=20.0, high_ms=45.0, extrapolated=False
    )
    report = with_cost(counted(cortex_a72=5), prediction=told)
    gate = latency_gate(44.9, report)
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.LATENCY)
    assert gate.measured.startswith("predicted 45")
    assert "raspberry-pi-4" in gate.detail
    assert "not measured" in gate.detail
    assert latency_gate(45.0, report).outcome == "ok"


def test_without_a_prediction_the_hosts_time_says_nothing_of_a_phone():
    assert latency_gate(1000.0, with_cost(counted(cortex_a72=5))).outcome == "unverified"
