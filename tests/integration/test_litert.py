"""`--target android-arm64-litert` from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.lower.litert_environment import is_ready

from .conftest import Project, Run

TARGET = "android-arm64-litert"

ARGS = ("quarters.py:model", "--target", TARGET, "--out", "out", "--calibration-data", "calibration.npz")


@pytest.mark.slow
@pytest.mark.usefixtures("runtimes")
def test_a_bundle_is_made_checked_restored_and_refused_when_it_is_damaged(
    project: Project, package: Run, edgeq: Run
) -> None:
    if not is_ready():
        pytest.skip("LiteRT's converter is not installed; `edgeq package digits -t android-arm64-litert` installs it")
    args = (*ARGS, "--eval-data", "evaluation.npz", "--limit", "accuracy_drop=5pp", "--on", "host", "--json")
    done = package(*args, base=False, cache=True)
    assert done.code == 0, done.err
    (row,) = done.json["rows"]
    folder = project.root / row["path"]
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    assert (row["scheme"], manifest["layers"]["int8_macs"]) == ("static-int8", 1.0)
    assert {"parity", "int8_macs", "runtime", "outputs"} <= {gate["name"] for gate in row["gates"]}
    assert {entry["role"]: entry["path"] for entry in manifest["files"]} == {
        "artifact": "model.tflite",
        "golden": "golden.npz",
        "example": "run_example.py",
    }
    (again,) = package(*args, base=False, cache=True).json["rows"]
    assert (again["cached"], again["digest"]) == (True, row["digest"])

    example = subprocess.run(
        [sys.executable, "-I", folder / "run_example.py"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert (example.returncode, example.stdout.count("equal")) == (0, 4), example.stdout + example.stderr
    assert edgeq("verify", folder, "--quiet").code == 0
    found = edgeq("inspect", folder / "model.tflite", "--quiet", "--json").json
    assert (found["runtime"], found["size_bytes"]) == ("litert", row["size_bytes"])

    bare = project.root / "bare.tflite"
    shutil.copy(folder / "model.tflite", bare)
    bare.write_bytes(bare.read_bytes()[:1000])
    edgeq("inspect", bare, "--quiet").fails(2, "bare.tflite is not a valid LiteRT model: ")
    (folder / "model.tflite").write_bytes(bare.read_bytes())
    edgeq("verify", folder, "--quiet").fails(8, "model.tflite has 1000 bytes, but the manifest states")


def test_schemes_and_options_that_it_has_not_are_refused(package: Run) -> None:
    package(*ARGS, "--scheme", "qat-int8", base=False).fails(3, "does not support the scheme qat-int8")
    package(*ARGS, "--dynamic-batch", base=False).fails(3, "runs litert with one batch size per artifact")
