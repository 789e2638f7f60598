"""Without torch and ExecuTorch bundles are read and installed; what would run them says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.core.system import install_command

# as in an environment that has none of them
BARE = """
import sys

ABSENT = {"torch", "torchvision", "torchao", "executorch", "onnx", "onnxruntime", "sklearn", "numpy", "PIL"}

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ABSENT else found(name, *rest)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from edgeq.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def edgeq(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_is_installed_and_inspected(bundle: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "build.gradle").write_text("plugins { id 'com.android.application' }")
    for args in (("install", bundle, "--app", app, "--json"), ("inspect", bundle, "--json")):
        done = edgeq(*args)
        assert done.returncode == 0, done.stderr
    assert (app / "src/main/assets/models/digits/android-arm64-xnnpack/model.pte").is_file()


@pytest.mark.parametrize(
    "args", [("ota", "--help"), ("keys", "--help"), ("targets", "list"), ("doctor", "--help"), ("--version",)]
)
def test_what_needs_no_artifact_works(args: tuple[str, ...]) -> None:
    done = edgeq(*args)
    assert done.returncode == 0, done.stderr


def test_a_bundle_is_verified_without_being_run(bundle: Path) -> None:
    done = edgeq("verify", bundle)
    assert done.returncode == 9, done.stderr
    assert "the files are as listed, but were not run: the executorch runtime needs torch" in done.stderr
    assert f"{install_command('executorch')}; `edgeq verify --no-run` checks the files" in done.stderr
    done = edgeq("verify", bundle, "--no-run", "--limit", "size=1MB")
    assert done.returncode == 0, done.stderr
    assert "note: nothing was run: the golden samples were not compared" in done.stdout
    done = edgeq("verify", bundle, "--no-run", "--limit", "size=1kB", "--limit", "latency=1s")
    assert done.returncode == 4, done.stderr
    assert "failed: size, latency" in done.stdout
    artifact = bundle / "model.pte"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert edgeq("verify", bundle, "--no-run").returncode == 8


@pytest.mark.parametrize("args", [("--on", "emulator"), ("--eval-data", "x.npz"), ("--write-verdict", "v.json")])
def test_what_runs_the_artifact_is_no_part_of_no_run(bundle: Path, args: tuple[str, ...]) -> None:
    done = edgeq("verify", bundle, "--no-run", *args)
    assert done.returncode == 2
    assert f"{args[0]}" in done.stderr
    assert "cannot be combined with --no-run" in done.stderr


def test_packaging_says_what_is_missing() -> None:
    done = edgeq("package", "digits", "-t", "linux-x86_64-xnnpack", "--scheme", "fp32", "--json", "--no-cache", "-q")
    assert done.returncode == 9, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["what"] == "the executorch runtime needs torch, torchao, executorch, which are not installed"
    assert error["fix"] == install_command("executorch")
    assert "Traceback" not in done.stderr
