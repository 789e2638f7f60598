"""One small lowered model and its verification, with only what a test is about said."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from edgeq.core.results.measured import Fidelity, Interval, KernelShare, Parity, Timing, VerifyReport
from edgeq.core.results.model import LoweredModel, TensorSpec
from edgeq.core.targets import TargetProfile, load_target

_FILES = tempfile.TemporaryDirectory()


def target(name="android-arm64-xnnpack", **changes) -> TargetProfile:
    return TargetProfile.model_validate(load_target(name).model_dump() | changes)


def lowered(
    runtime="executorch", version="1.5.1", bytecode=None, operators=("aten::add.out",), delegated=1.0
) -> LoweredModel:
    return LoweredModel(
        path=Path("model.pte"),
        runtime=runtime,
        runtime_version=version,
        bytecode_version=bytecode,
        passes=(),
        operators=operators,
        undelegated=(),
        layers=(),
        delegated_macs=delegated,
    )


def sized(model: LoweredModel, size_bytes: int) -> LoweredModel:
    """Return the model with a file of that size."""
    path = Path(_FILES.name) / f"model-{size_bytes}.pte"
    path.write_bytes(bytes(size_bytes))
    return dataclasses.replace(model, path=path)


def parity(samples=32, max_steps=1.0, sqnr_db=40.0) -> Parity:
    return Parity(samples=samples, max_abs=0.1, max_steps=max_steps, sqnr_db=sqnr_db, differing=0.25)


def fidelity(drop=None) -> Fidelity:
    inputs = "evaluation" if drop else "random"
    return Fidelity(samples=32, inputs=inputs, sqnr_db=30.0, cosine=1.0, max_abs=0.1, top1_agreement=1.0, drop_pp=drop)


def interval(estimate, low, high) -> Interval:
    return Interval(estimate=estimate, low=low, high=high)


def timing(p90_ms=12.0, arch="x86_64") -> Timing:
    return Timing(p50_ms=10.0, p90_ms=p90_ms, runs=50, warmup=5, threads=2, arch=arch)


def kernels(share=1.0, why="") -> KernelShare:
    return KernelShare(int8_macs=share, kernels=("Convolution (NHWC, QC8) IGEMM",), why_unmatched=why)


PARITY, FIDELITY, TIMING, KERNELS = parity(), fidelity(), timing(), kernels()
OUTPUTS = (TensorSpec(name="output0", dtype="float32", shape=(1, 10)),)


def verified(
    parity=PARITY,
    fidelity=FIDELITY,
    timing=TIMING,
    kernels=KERNELS,
    peak_memory_bytes=1000,
    load_ms=5.0,
    outputs=OUTPUTS,
    findings=(),
) -> VerifyReport:
    return VerifyReport(
        host="x86_64 host",
        parity=parity,
        fidelity=fidelity,
        timing=timing,
        kernels=kernels,
        peak_memory_bytes=peak_memory_bytes,
        load_ms=load_ms,
        outputs=outputs,
        findings=findings,
    )
