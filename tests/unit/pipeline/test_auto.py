"""Which schemes `auto` tries on a target, in which order; the tries themselves are tested in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core.config import GateOptions, Job
from edgeq.core.targets import load_target
from edgeq.pipeline.auto import candidates


def tried(target: str, linear_macs: float, *limits: tuple[str, float], source: str = "") -> tuple[str, ...]:
    profile = load_target(target)
    job = Job(source=source, targets=(profile,), out=Path(), gates=GateOptions(limits=limits))  # type: ignore[arg-type]
    return candidates(profile, job, linear_macs)


@pytest.mark.parametrize(
    ("target", "linear_macs", "limits", "expected"),
    [
        ("linux-x86_64-x86", 0.02, (), ("static-int8", "qat-int8")),
        ("linux-x86_64-x86", 0.02, (("sqnr", 30.0),), ("static-int8", "mixed-int8", "qat-int8")),
        ("linux-x86_64-x86", 0.98, (("size", 1e6),), ("dynamic-int8", "static-int8", "qat-int8")),
        ("ios-arm64-coreml", 0.98, (("sqnr", 30.0),), ("fp16", "fp32", "weight-only-int8", "weight-only-palette4")),
    ],
)
def test_the_cheapest_comes_first(target, linear_macs, limits, expected):
    assert tried(target, linear_macs, *limits) == expected


@pytest.mark.parametrize(
    ("linear_macs", "expected"), [(0.02, ("static-int8",)), (0.98, ("dynamic-int8", "static-int8"))]
)
def test_an_onnx_file_has_only_the_schemes_that_start_from_one(linear_macs, expected):
    assert tried("linux-x86_64-ort", linear_macs, ("sqnr", 30.0), source="net.onnx") == expected
