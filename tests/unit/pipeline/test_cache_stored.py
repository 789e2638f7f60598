"""What of a run's result is kept for the next one."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable
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
from edgeq.core.system import processor_kind
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
    row, _ = cache.restore([unit], tmp_path / "work", dataclasses.replace(job, gates=options))["ab"]
    fresh = write_result(unit, item.artifact, item.inputs, dataclasses.replace(job, gates=options), tmp_path / "fresh")
    assert row.checked == fresh.checked
    advised = any("--keep-fp32" in gate.detail for gate in row.gates)
    assert advised == (is_lost and ("sqnr", 0.0) not in options.limits)
    assert (row.digest, row.download_bytes, row.cached) == (fresh.digest, fresh.download_bytes, True)
    assert read_bundle(row.path).digest == fresh.digest
    assert read_report(row.path).checked == fresh.checked


@pytest.fixture
def timed(
    item: BundleInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[str], None], Callable[..., str | None]]:
    """Keep a result with times of a kind of machine, and tell whether it is restored for a job with these limits."""
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    target = load_target("linux-x86_64-xnnpack")
    unit = BuildUnit(target=target, scheme="static-int8", key="ab")
    job = Job(source="digits", targets=(target,), name="digits")

    def keep(cpu: str) -> None:
        timing = Timing(p50_ms=4.0, p90_ms=5.0, runs=100, warmup=1, threads=1, arch=platform.machine(), cpu=cpu)
        verified = dataclasses.replace(item.artifact.verified, timing=timing)
        artifact = dataclasses.replace(item.artifact, verified=verified)
        row = write_result(unit, artifact, item.inputs, job, tmp_path / f"kept-{cpu[:3]}")
        cache.stored({"ab": (write_reports(row, DataFacts()), DataFacts())}, {})

    def restored(**limits: float) -> str | None:
        gates = GateOptions(limits=tuple(limits.items()))  # type: ignore[arg-type]
        work = Path(tempfile.mkdtemp(dir=tmp_path))
        found = cache.restore([unit], work, dataclasses.replace(job, gates=gates, source="elsewhere/net.py:digits"))
        if not found:
            return None
        row, _ = found["ab"]
        assert row.source == read_report(row.path).source == "elsewhere/net.py:digits"
        return row.verified.timing.cpu

    return keep, restored


def test_a_kept_time_that_breaks_the_limit_of_now_is_measured_again(timed) -> None:
    keep, restored = timed
    keep(processor_kind())
    assert restored(latency=4.9) is None
    assert restored(latency=5.0) == processor_kind()


def test_a_time_of_another_kind_of_machine_is_shown_and_never_judged(timed) -> None:
    keep, restored = timed
    keep("Other, 64 cores")
    assert restored() == restored(size=1e9) == "Other, 64 cores"
    assert restored(latency=5.0) is None
    keep(processor_kind())  # beside the other one, and before it
    assert restored() == restored(latency=5.0) == processor_kind()


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
