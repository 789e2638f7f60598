"""Bundles of earlier releases must still verify: their hashes, their signature, their golden samples on this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.cli.main import run

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
BUNDLES = sorted(path.parent for path in GOLDEN.rglob("manifest.json"))


def test_there_are_golden_bundles():
    assert {path.name for path in BUNDLES} >= {"android-arm64-xnnpack", "android-arm64-qnnpack", "linux-x86_64-x86"}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_a_golden_bundle_still_verifies(bundle, capsys):
    assert run(["verify", str(bundle), "--quiet"]) == 0, capsys.readouterr().out
    assert "verdict: ok" in capsys.readouterr().out
