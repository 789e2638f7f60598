"""A bundle that was rejected exits with the code of its own gates, which its manifest does not keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeq.check.bundle import packaged_gates
from edgeq.core.manifest import parse_manifest

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
