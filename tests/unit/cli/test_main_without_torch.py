"""Without torch and ExecuTorch bundles are read and installed; what would run them says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# as in an environment that has none of them
BARE = """
import sys

ABSENT = {"torch", "torchvision", "torchao", "executorch", "onnx", "onnxruntime", "sklearn"}

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


def test_packaging_says_what_is_missing() -> None:
    done = edgeq("package", "digits", "-t", "linux-x86_64-xnnpack", "--scheme", "fp32", "--json", "--no-cache", "-q")
    assert done.returncode == 9, done.stderr
    assert "is not installed here" in json.loads(done.stdout)["error"]["what"]
    assert "Traceback" not in done.stderr
