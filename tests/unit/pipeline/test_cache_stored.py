"""What of a run's result is kept for the next one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import Cost, LatencyPrediction
from edgeq.core.results.report import CheckReport, DataFacts
from edgeq.pipeline import cache
from pipeline.finished import FAILED, made


@pytest.mark.parametrize(
    ("name", "outcome", "code", "kept"),
    [
        ("latency", "failed", ExitCode.LATENCY, False),
        ("load", "failed", ExitCode.LATENCY, False),
        ("peak_memory", "failed", ExitCode.LATENCY, False),
        ("latency", "ok", ExitCode.LATENCY, True),
        ("latency", "unverified", ExitCode.VERIFICATION, True),
        ("size", "failed", ExitCode.SIZE, True),
        ("instructions", "failed", ExitCode.LATENCY, True),
    ],
)
def test_a_time_that_broke_its_limit_on_a_busy_machine_is_measured_again(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, outcome: str, code: int, kept: bool
) -> None:
    written = []
    monkeypatch.setattr(cache, "store", lambda key, *_: written.append(key))
    row = made(item, tmp_path / "bundle", "1")
    gate = dataclasses.replace(FAILED, name=name, outcome=outcome, exit_code=code)
    row = dataclasses.replace(row, checked=CheckReport(gates=(gate,)))
    assert cache.stored({"key": (row, DataFacts())}, {}) == {"key": (row, DataFacts())}
    assert written == (["key"] if kept else [])


def test_a_predicted_latency_stays_what_it_is(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(cache, "store", lambda key, *_: written.append(key))
    row = made(item, tmp_path / "bundle", "1")
    told = LatencyPrediction(**{field.name: 0 for field in dataclasses.fields(LatencyPrediction)})
    verified = dataclasses.replace(row.verified, cost=Cost(counts=(), prediction=told))
    gate = dataclasses.replace(FAILED, name="latency", exit_code=ExitCode.LATENCY)
    row = dataclasses.replace(row, verified=verified, checked=CheckReport(gates=(gate,)))
    cache.stored({"key": (row, DataFacts())}, {})
    assert written == ["key"]
