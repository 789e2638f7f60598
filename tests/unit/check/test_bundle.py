"""A bundle is held to its own gates, whose codes its manifest does not keep, and to its golden samples by channel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeq.check.bundle import golden_gate, packaged_gates
from edgeq.core.manifest import parse_manifest
from edgeq.core.results.report import GoldenSet
from edgeq.verify.golden import compare_golden

GOLDEN = Path(__file__).parents[2] / "golden" / "0.1.0" / "digits" / "android-arm64-xnnpack" / "manifest.json"


@pytest.mark.parametrize(
    ("name", "outcome", "code"),
    [
        ("runtime", "failed", 3),
        ("size", "failed", 4),
        ("play-base-module", "failed", 4),
        ("accuracy_drop", "failed", 5),
        ("search", "failed", 5),
        ("training", "failed", 5),
        ("instructions", "failed", 6),
        ("latency", "failed", 6),
        ("parity", "failed", 7),
        ("latency", "unverified", 7),
        ("instructions", "unverified", 7),
    ],
)
def test_the_code_of_a_gate_that_failed_when_it_was_packaged(name: str, outcome: str, code: int) -> None:
    raw = json.loads(GOLDEN.read_bytes())
    raw |= {"accepted": False, "gates": [{"name": name, "outcome": outcome, "limit": "", "detail": None}]}
    (gate,) = packaged_gates(parse_manifest(json.dumps(raw).encode()))
    assert (gate.name, gate.passed, gate.exit_code) == (f"packaged:{name}", False, code)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_channel_that_is_zero_on_a_device(noise: float) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = 640 * rng.random((4, 20, 4)), rng.random((4, 20, 1))
    outputs = (np.concatenate([boxes, scores], axis=2).astype(np.float32),)
    golden = GoldenSet(inputs=outputs, outputs=outputs, preprocessed=True, sqnr_floor_db=20.0)
    came = outputs[0].copy()
    came[..., 4] = noise * rng.standard_normal(came[..., 4].shape)
    compared = compare_golden(golden, GoldenSet(inputs=outputs, outputs=(came,), preprocessed=True, sqnr_floor_db=0))
    gate = golden_gate(compared)
    assert compared.sqnr_db > 50
    assert not gate.passed
    assert "lost: output 0, channel 4 (" in gate.detail
    assert golden_gate(compare_golden(golden, golden)).passed
