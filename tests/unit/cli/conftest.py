"""Hand-made results of a run, and an `edgeq.pipeline` that returns them: the real one loads torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeq.core.config import Job, Progress
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import Fidelity, Interval, KernelShare, Parity, Timing, VerifyReport
from edgeq.core.results.report import CheckReport, DataFacts, DataFinding, Gate, PackageResult, RunReport
from edgeq.pipeline.preflight import preflight


def make_gate(name: str = "size", outcome: str = "ok", code: ExitCode = ExitCode.SIZE) -> Gate:
    return Gate(
        name=name,
        outcome=outcome,  # type: ignore[arg-type]
        limit="<= 3.00 MB",
        measured="3.74 MB",
        detail="+740.0 kB (740,000 B) over",
        exit_code=code,
    )


def labelled() -> Fidelity:
    return Fidelity(
        samples=599,
        inputs="evaluation",
        sqnr_db=31.24,
        cosine=0.9996,
        max_abs=0.21,
        top1_agreement=0.9966,
        metric="top1",
        fp32_score=0.9883,
        score=0.9850,
        drop_pp=Interval(estimate=0.33, low=-0.12, high=0.79),
    )


def unlabelled(sqnr_db: float = 27.5) -> Fidelity:
    return Fidelity(samples=32, inputs="random", sqnr_db=sqnr_db, cosine=0.99, max_abs=0.1, top1_agreement=None)


def verified(fidelity: Fidelity | None) -> VerifyReport:
    return VerifyReport(
        host="x86_64 Linux, 2 threads",
        parity=Parity(samples=32, max_abs=0.0, max_steps=0.0, sqnr_db=math.inf, differing=0.0),
        fidelity=fidelity,
        timing=Timing(p50_ms=1.234, p90_ms=1.507, runs=100, warmup=10, threads=2, arch="x86_64"),
        kernels=KernelShare(int8_macs=0.99996, kernels=("qc8_gemm",)),
        peak_memory_bytes=12_300_000,
        load_ms=4.2,
        outputs=(),
        findings=(),
    )


def make_row(target: str = "android-arm64-xnnpack", *gates: Gate, fidelity: Fidelity | None = None) -> PackageResult:
    checked = CheckReport(gates=gates or (make_gate(),), warnings=("pytorch_android_lite is not 16 KB-aligned",))
    rejected = "rejected/" if checked.exit_code else ""
    return PackageResult(
        model="mobilenet_v2",
        target=target,
        scheme="static-int8",
        path=Path(f"out/{rejected}mobilenet_v2/{target}"),
        digest="ab" * 32,
        size_bytes=3_741_234,
        download_bytes=3_312_345,
        fp32_bytes=14_024_000,
        verified=verified(fidelity or labelled()),
        checked=checked,
        delegated_macs=0.998,
        weights="file",
        seconds={"load": 1.0},
    )


@pytest.fixture
def passing() -> RunReport:
    return RunReport(rows=(make_row(),), data=DataFacts())


@pytest.fixture
def mixed() -> RunReport:
    """One row that passed, one from the cache on random weights, one that failed two gates, one never timed."""
    untimed_gate = replace(
        make_gate("latency", "unverified", ExitCode.VERIFICATION),
        limit="<= 40.00 ms",
        measured="not measured",
        detail="no timing",
    )
    failed = make_row("android-arm64-qnnpack", make_gate(outcome="failed"), untimed_gate)
    cached = replace(make_row("linux-x86_64-fbgemm", fidelity=unlabelled()), cached=True, weights="random")
    untimed = make_row("ios-arm64-xnnpack", fidelity=unlabelled(math.inf))
    untimed = replace(untimed, verified=replace(untimed.verified, timing=None, kernels=None), fp32_bytes=0)
    findings = (DataFinding(name="too-few-samples", message="24 calibration samples, 128 were asked for"),)
    return RunReport(rows=(make_row(), cached, failed, untimed), data=DataFacts(findings=findings, excluded_shared=3))


class FakePipeline:
    """Stands in for `edgeq.pipeline`: keeps the jobs it was given, and does what `act` says."""

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self.jobs: list[Job] = []
        self.act: Callable[[], None] = lambda: None

    def build(self, job: Job, progress: Progress) -> RunReport:
        preflight(job)
        self.jobs.append(job)
        with progress.task("lowering android-arm64-xnnpack", total=2) as task:
            task.advance()
            self.act()
            task.advance()
        return self.report


@pytest.fixture
def pipeline(passing: RunReport, monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline(passing)
    monkeypatch.setattr("edgeq.pipeline.package.package", fake.build)
    return fake


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one: no edgeq.toml of this repository's may be read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def android_app(tmp_path: Path) -> Path:
    app = tmp_path / "app-android"
    app.mkdir()
    (app / "build.gradle.kts").write_text('plugins { id("com.android.application") }')
    return app


@pytest.fixture
def edgeq(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command line in a process of its own."""
    root = Path(__file__).parents[3]

    def call(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "80", **variables}
        return subprocess.run(
            [sys.executable, "-m", "edgeq", *args], capture_output=True, text=True, env=environment, check=False
        )

    return call
