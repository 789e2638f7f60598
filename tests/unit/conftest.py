"""What the bundle, its readers and the installer are tested with: the facts of one small, invented model."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.artifacts import (
    BundleInput,
    CheckReport,
    DataFacts,
    DataFinding,
    Fidelity,
    Gate,
    GoldenSet,
    Interval,
    KernelShare,
    Layer,
    LoadedModel,
    LoweredModel,
    Parity,
    TensorSpec,
    Timing,
    VerifyReport,
)
from edgeq.bundle.writer import write_bundle
from edgeq.errors import ExitCode
from edgeq.preprocess import PRESETS
from edgeq.target import load_target


@pytest.fixture(scope="session")
def item(tmp_path_factory: pytest.TempPathFactory) -> BundleInput:
    path = tmp_path_factory.mktemp("artifact") / "model.pte"
    path.write_bytes(np.random.default_rng(0).bytes(5000) + bytes(5000))
    return BundleInput(
        model=LoadedModel(
            name="digits",
            kind="module",
            model=None,
            inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224)),),
            weights="file",
            fp32_bytes=40_000,
            source_sha256="a" * 64,
        ),
        model_version="1",
        target=load_target("android-arm64-xnnpack"),
        scheme="static-int8",
        lowered=_lowered(path),
        verified=_verified(),
        checked=CheckReport(
            gates=(
                gate("size", ExitCode.SIZE, detail="10 kB of 1 MB"),
                gate("accuracy_drop", ExitCode.ACCURACY, detail="upper end 0.31 pp"),
                gate("latency", ExitCode.LATENCY, detail="p50 3.21 ms"),
            )
        ),
        labels=("zero", "one"),
        preprocess=PRESETS["imagenet"],
        golden=GoldenSet(
            inputs=(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),),
            outputs=(np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2),),
            preprocessed=False,
            sqnr_floor_db=30.0,
        ),
        data=DataFacts(
            calibration_sha256="b" * 64, calibration_samples=128, findings=(DataFinding(name="few", message="/home/x"),)
        ),
        seed=0,
        tools={"torch": "2.15.0", "executorch": "1.5.1"},
    )


@pytest.fixture
def bundle(item: BundleInput, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(item, folder)
    return folder


def gate(name: str, code: ExitCode, detail: str = "", outcome: str = "ok") -> Gate:
    return Gate(name=name, outcome=outcome, limit="a limit", measured="a value", detail=detail, exit_code=code)


def _lowered(path: Path) -> LoweredModel:
    return LoweredModel(
        path=path,
        runtime="executorch",
        runtime_version="1.5.1",
        bytecode_version=None,
        passes=("fuse", "delegate"),
        operators=("aten::add.out",),
        undelegated=("aten::mul.out", "aten::add.out", "aten::mul.out"),
        layers=(
            Layer(name="conv", op="convolution", macs=900, weight_bytes=90, delegated=True),
            Layer(name="head", op="linear", macs=100, weight_bytes=10, delegated=False),
        ),
        delegate_calls=1,
        delegated_macs=0.9,
    )


def _verified() -> VerifyReport:
    return VerifyReport(
        host="host x86_64",
        parity=Parity(samples=8, max_abs=0.0, max_steps=0.0, sqnr_db=float("inf"), differing=0.0),
        fidelity=Fidelity(
            samples=100,
            inputs="evaluation",
            sqnr_db=31.23456,
            cosine=0.99987,
            max_abs=0.0123456,
            top1_agreement=0.99,
            metric="top-1",
            fp32_score=0.98,
            score=0.979,
            drop_pp=Interval(estimate=0.1, low=-0.2, high=0.31),
        ),
        timing=Timing(p50_ms=3.21, p90_ms=4.5, runs=50, warmup=5, threads=2, arch="x86_64"),
        kernels=KernelShare(int8_macs=0.987654, kernels=("conv_int8",)),
        peak_memory_bytes=12_345_678,
        load_ms=1.5,
        outputs=(TensorSpec(name="output0", dtype="float32", shape=(1, 2)),),
        findings=(),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB; the test is skipped where nothing may be mounted."""
    place = tmp_path / "small_disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
