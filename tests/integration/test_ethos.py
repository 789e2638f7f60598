"""Ethos-U as a user meets it: made here, judged by TOSA's reference model, and never called run on an NPU."""

from __future__ import annotations

import json

import pytest

from .conftest import Project, Run

pytestmark = pytest.mark.slow

U55 = "cortex-m-ethos-u55"
COMMAND = (
    "package",
    "quarters.py:model",
    "-t",
    U55,
    "-o",
    "out",
    "--calibration-data",
    "calibration.npz",
    "--eval-data",
)
LIMITS = ("--limit", "accuracy_drop=2pp", "--limit", "sram=4kB", "--limit", "cycles=1Mcycles", "--limit", "size=8kB")


def test_a_microcontrollers_npu(edgeq: Run, project: Project) -> None:
    result = edgeq(*COMMAND, "evaluation.npz", *LIMITS, "--json", "-q")
    assert result.code == 0, result.err
    assert [result.gate(name)["outcome"] for name in ("sram", "cycles", "parity", "int8_macs")] == ["ok"] * 4
    row = result.json["rows"][0]
    assert any("not run on an Ethos-U" in warning for warning in row["warnings"])
    assert row["verified"]["npu"]["cycles"] > 0
    manifest = project.manifest(U55)
    assert manifest["verified_on"].endswith("TOSA reference model of tosa-tools 2026.5.0")
    assert manifest["npu"] == row["verified"]["npu"] | {"cpu_operators": manifest["npu"]["cpu_operators"]}
    assert manifest["provenance"]["tools"]["ethos-u-vela"] == "5.1.0"
    assert [(one["path"], one["role"]) for one in manifest["files"]][-1] == ("reference.zip", "reference")

    # from the cache: the same bundle, judged by other limits
    again = edgeq(*COMMAND, "evaluation.npz", "--limit", "cycles=100cycles", "--json", "-q")
    assert (again.code, again.json["rows"][0]["cached"], again.gate("cycles")["outcome"]) == (6, True, "failed")

    bundle = project.out / "quarters" / U55
    if not bundle.exists():
        assert edgeq(*COMMAND, "evaluation.npz", *LIMITS, "-q").code == 0
    verified = edgeq("verify", bundle, "--json", "-q", "--limit", "sram=1kB")
    assert verified.code == 6
    gates = {gate["name"]: gate["outcome"] for gate in verified.json["gates"]}
    assert (gates["golden"], gates["sram"], gates["run"]) == ("ok", "failed", "ok")
    edgeq("verify", bundle, "--on", "emulator").fails(3, "needs cortex-m")


def test_a_scheme_that_it_has_no_arithmetic_for_is_refused(edgeq: Run) -> None:
    edgeq(*COMMAND, "evaluation.npz", "--scheme", "fp16").fails(3, "fp16", "static-int8")


def test_layers_are_not_ranked_for_an_npu(edgeq: Run) -> None:
    edgeq("sensitivity", "digits", "-t", U55).fails(3, "cannot rank the layers", "linux-arm64-xnnpack")


def test_doctor_names_the_one_command(edgeq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeq.cli import doctor

    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tosa-tools" else found(name))
    findings = {one["name"]: one for one in json.loads(edgeq("doctor", "--json").out)["findings"]}
    assert (findings[U55]["ok"], findings[U55]["fix"]) == (
        False,
        "pip install --no-deps ethos-u-vela==5.1.0 tosa-tools==2026.5.0 ml_dtypes",
    )
