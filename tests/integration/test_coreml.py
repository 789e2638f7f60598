"""A Core ML target as a user meets it on Linux: made, never run, and never called verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import Project, Run

pytestmark = pytest.mark.slow

COREML = "ios-arm64-coreml"
COMMAND = ("quarters.py:model", "--target", COREML, "--out", "out", "--eval-data", "evaluation.npz")
ALLOW = ("--allow-unmeasured", "parity", "--allow-unmeasured", "outputs")


def test_unverified_unless_allowed(edgeq: Run, project: Project) -> None:
    result = edgeq("package", *COMMAND, "--json", "-q")
    assert result.code == 7
    assert {name: result.gate(name)["outcome"] for name in ("parity", "outputs", "graph", "delegated_macs")} == {
        "parity": "unverified",
        "outputs": "unverified",
        "graph": "ok",
        "delegated_macs": "ok",
    }
    assert (project.out / "rejected" / "quarters" / COREML).is_dir()

    allowed = edgeq("package", *COMMAND, *ALLOW, "--json", "-q")
    assert allowed.code == 0, allowed.err
    seen = allowed.json["rows"][0]["verified"]
    assert [seen[key] for key in ("fidelity", "parity", "timing", "load_ms", "emulation")] == [None] * 5
    assert seen["graph_only"]["fidelity"]["score"] > 0.9
    manifest = project.manifest(COREML)
    assert (manifest["accuracy"], manifest["parity"], manifest["verified_on"]) == (None, None, "nothing")
    assert manifest["graph_accuracy"]["samples"] == 100
    assert manifest["golden"]["made_by"] == "graph"
    assert manifest["scheme"] == "fp16"
    assert manifest["provenance"]["tools"]["coremltools"]

    bundle = project.out / "quarters" / COREML
    verified = edgeq("verify", bundle, "--json", "-q")
    assert verified.code == 7
    assert edgeq("verify", bundle, "-q", "--allow-unmeasured", "outputs").code == 0
    edgeq("verify", bundle, "--on", "emulator").fails(3, "cannot be emulated", "Apple")

    app = project.root / "app"
    (app / "Demo.xcodeproj").mkdir(parents=True)
    assert edgeq("install", bundle, "--app", app).code == 0
    place = app / "Models" / "quarters" / COREML
    assert read_bundle(place).digest == read_bundle(bundle).digest


def test_a_cpu_to_emulate_is_refused(edgeq: Run) -> None:
    edgeq("package", *COMMAND, "--cpu", "cortex-a53").fails(2, "--cpu")


def test_what_coremltools_is_missing_for(edgeq: Run, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeq.lower import coreml

    monkeypatch.setattr(coreml.importlib.util, "find_spec", lambda _name: None)
    edgeq("package", *COMMAND).fails(9, "coremltools is missing")
    assert not Path(project.out, "quarters").exists()
