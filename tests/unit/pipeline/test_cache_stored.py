"""What of a run's result is kept for the next one."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import numpy as np
import pytest
from adversarial.judged import report_of
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.run_report import read_report
from edgeq.core.config import GateOptions, Job
from edgeq.core.errors import ExitCode
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.measured import Cost, LatencyPrediction, Timing
from edgeq.core.results.report import CheckReport, DataFacts
from edgeq.core.targets import load_target
from edgeq.pipeline import cache
from edgeq.pipeline.plan import BuildUnit
from edgeq.pipeline.publish import write_reports, write_result
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
    """Of a scheme that was searched by its limits: others are kept whatever their times, and judged when looked up."""
    written = []
    monkeypatch.setattr(cache, "store", lambda key, *_: written.append(key))
    row = made(item, tmp_path / "bundle", "1")
    gate = dataclasses.replace(FAILED, name=name, outcome=outcome, exit_code=code)
    row = dataclasses.replace(row, scheme="mixed-int8", checked=CheckReport(gates=(gate,)))
    assert cache.stored({"key": (row, DataFacts())}, {}) == {"key": (row, DataFacts())}
    assert written == (["key"] if kept else [])
    cache.stored({"other": (dataclasses.replace(row, scheme="fp32"), DataFacts())}, {})
    assert written[-1] == "other"


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        GateOptions(),
        GateOptions(limits=(("size", 1.0),)),
        GateOptions(limits=(("accuracy_drop", 1.0), ("download", 1e9)), limit_on="point"),
        GateOptions(limits=(("sqnr", 0.0), ("agreement", 90.0), ("delta", 1.0))),
        GateOptions(limits=(("latency", 1e9),), allow_unmeasured=("device", "latency", "int8_macs")),
        GateOptions(store_limits=("play-base-module",), app_size_bytes=10**9),
    ],
)
def test_kept_measurements_give_the_verdict_of_a_run_with_these_limits(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: GateOptions, *, is_lost: bool
) -> None:
    """With a channel that int8 lost too, for which the floor has advice."""
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    if is_lost:
        boxes = np.random.default_rng(0).uniform(0, 1, (64, 5)).astype(np.float32) * [640, 640, 640, 640, 1]
        lost = report_of([boxes], [boxes * [1, 1, 1, 1, 0]])
        verified = dataclasses.replace(item.artifact.verified, fidelity=lost.fidelity)
        item = changed(item, artifact=dataclasses.replace(item.artifact, verified=verified))
    job = Job(source="digits", targets=(item.target,), name="digits")
    unit = BuildUnit(target=item.target, scheme="static-int8", key="ab")
    before = GateOptions(limits=(("size", 2.0), ("accuracy_drop", 5.0)), allow_unmeasured=("parity",))
    kept = write_result(unit, item.artifact, item.inputs, dataclasses.replace(job, gates=before), tmp_path / "kept")
    cache.stored({"ab": (write_reports(kept, DataFacts()), DataFacts())}, {})
    row, _ = cache.restore([unit], tmp_path / "work", options)["ab"]
    fresh = write_result(unit, item.artifact, item.inputs, dataclasses.replace(job, gates=options), tmp_path / "fresh")
    assert row.checked == fresh.checked
    advised = any("--keep-fp32" in gate.detail for gate in row.gates)
    assert advised == (is_lost and ("sqnr", 0.0) not in options.limits)
    assert (row.digest, row.download_bytes, row.cached) == (fresh.digest, fresh.download_bytes, True)
    assert read_bundle(row.path).digest == fresh.digest
    assert read_report(row.path).checked == fresh.checked


def test_a_kept_time_that_breaks_the_limit_of_now_is_measured_again(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    target = load_target("linux-x86_64-xnnpack")
    job = Job(source="digits", targets=(target,), name="digits")
    timing = Timing(p50_ms=4.0, p90_ms=5.0, runs=100, warmup=1, threads=1, arch=platform.machine())
    artifact = dataclasses.replace(item.artifact, verified=dataclasses.replace(item.artifact.verified, timing=timing))
    unit = BuildUnit(target=target, scheme="static-int8", key="ab")
    row = write_result(unit, artifact, item.inputs, job, tmp_path / "kept")
    cache.stored({"ab": (write_reports(row, DataFacts()), DataFacts())}, {})
    assert cache.restore([unit], tmp_path / "a", GateOptions(limits=(("latency", 4.9),))) == {}
    assert "ab" in cache.restore([unit], tmp_path / "b", GateOptions(limits=(("latency", 5.0),)))


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
