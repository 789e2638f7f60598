"""`--target linux-x86_64-openvino` from the command line: two files that are one artifact, in every command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Project, Run

TARGET = "linux-x86_64-openvino"

ARGS = ("quarters.py:model", "--target", TARGET, "--out", "out", "--calibration-data", "calibration.npz")


@pytest.mark.slow
def test_a_bundle_is_made_checked_restored_and_refused_when_it_is_damaged(
    project: Project, package: Run, edgeq: Run
) -> None:
    schemes = [part for scheme in ("static-int8", "weight-only-int8", "fp16", "fp32") for part in ("--scheme", scheme)]
    args = (*ARGS, "--eval-data", "evaluation.npz", *schemes, "--limit", "accuracy_drop=5pp", "--json")
    done = package(*args, base=False, cache=True)
    assert done.code == 0, done.err
    rows = {row["scheme"]: row for row in done.json["rows"]}
    manifests = {name: json.loads(Path(row["path"], "manifest.json").read_text()) for name, row in rows.items()}
    shares = {name: manifest["layers"]["int8_macs"] for name, manifest in manifests.items()}
    assert shares == {"static-int8": 1.0, "weight-only-int8": 0.0, "fp16": 0.0, "fp32": 0.0}
    gates = {name: {gate["name"] for gate in row["gates"]} for name, row in rows.items()}
    assert {"parity", "int8_macs", "runtime", "outputs"} <= gates["static-int8"]
    assert "int8_weights" in gates["weight-only-int8"]
    assert "half_weights" in gates["fp16"]
    assert "equivalence" in gates["fp32"]

    folder = project.root / rows["static-int8"]["path"]
    files = {entry["role"]: entry for entry in manifests["static-int8"]["files"]}
    assert {role: entry["path"] for role, entry in files.items()} == {
        "artifact": "model.xml",
        "weights": "model.bin",
        "golden": "golden.npz",
        "example": "run_example.py",
    }
    assert rows["static-int8"]["size_bytes"] == sum(files[role]["size_bytes"] for role in ("artifact", "weights"))
    again = package(*args, base=False, cache=True).json["rows"]
    assert all(row["cached"] for row in again)
    assert [row["digest"] for row in again] == [row["digest"] for row in done.json["rows"]]

    example = subprocess.run(
        [sys.executable, "-I", folder / "run_example.py"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert (example.returncode, example.stdout.count("equal")) == (0, 4), example.stdout + example.stderr
    assert edgeq("verify", folder, "--quiet").code == 0
    found = edgeq("inspect", folder / "model.xml", "--quiet", "--json").json
    assert (found["runtime"], found["size_bytes"]) == ("openvino", rows["static-int8"]["size_bytes"])

    weights = folder / "model.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    edgeq("verify", folder, "--quiet").fails(8, "model.bin is not the file that the manifest lists")
    bare = project.root / "bare.xml"
    shutil.copy(folder / "model.xml", bare)
    edgeq("inspect", bare, "--quiet").fails(2, "bare.xml is not a valid OpenVINO model: Empty weights data")
    bare.write_bytes(bare.read_bytes()[:3000])
    edgeq("inspect", bare, "--quiet").fails(2, "bare.xml is not a valid OpenVINO model: ")
    bare.unlink()


def test_schemes_and_sources_that_it_has_not_are_refused(package: Run) -> None:
    package(*ARGS, "--scheme", "dynamic-int8", base=False).fails(3, "does not support the scheme dynamic-int8")
    package(*ARGS, "--dynamic-batch", base=False).fails(3, "runs openvino with one batch size per artifact")
