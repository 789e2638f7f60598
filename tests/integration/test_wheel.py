"""A wheel of edgeq without any extra: small, whole, and of use far from the checkout that it was made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UV = ROOT / ".uv/bin/uv"  # which scripts/setup brings
BUNDLE = "digits/android-arm64-xnnpack"
MOST_BYTES = 100_000_000


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that holds the wheel and what it depends on, and a folder to work in."""
    folder = tmp_path_factory.mktemp("wheel")
    venv = folder / "venv"
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([UV, "pip", "install", "--quiet", "--python", venv / "bin/python", wheel], check=True)
    shutil.copytree(ROOT / "tests/golden/0.1.0", folder / "out")
    return folder


def edgeq(bare: Path, *args: str, code: int = 0, python: Path | None = None) -> str:
    """Run a command of the wheel, or of the edgeq that `python` has, and return what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python or bare / "venv/bin/python", "-m", "edgeq", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bare, env=environment)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_it_is_small_and_holds_nothing_heavy(bare: Path) -> None:
    files = [path for path in (bare / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    (packages,) = (bare / "venv/lib").glob("python3*/site-packages")
    assert {"torch", "numpy", "PIL", "pip"}.isdisjoint(path.name for path in packages.iterdir())


def test_it_reads_installs_and_reports(bare: Path) -> None:
    assert "Package a trained PyTorch model" in edgeq(bare, "--help")
    assert edgeq(bare, "targets", "list").splitlines()[0].startswith("android-arm64-litert")
    assert "raspberry-pi-5" in edgeq(bare, "devices", "list")
    assert "ready to inspect" in edgeq(bare, "doctor")
    assert edgeq(bare, "verify", f"out/{BUNDLE}", "--no-run").endswith("verdict: ok\n")
    assert edgeq(bare, "inspect", f"out/{BUNDLE}").startswith("digits 1, static-int8")
    app = bare / "app"
    app.mkdir()
    (app / "build.gradle").write_text("plugins { id 'com.android.application' }")
    assert edgeq(bare, "install", f"out/{BUNDLE}", "--app", "app").startswith("installed: ")
    assert (app / "src/main/assets/models" / BUNDLE / "model.pte").is_file()


def test_it_releases_and_follows_updates(bare: Path) -> None:
    edgeq(bare, "keys", "new", "keys")
    released = edgeq(bare, "ota", "release", f"out/{BUNDLE}", "--channel", "channel", "--keys", "keys")
    assert "published: release 1 in channel" in released
    follow = (
        "--channel",
        "channel",
        "--store",
        "store",
        "--device-id",
        "phone-1",
        "--trust",
        "channel/metadata/1.root.json",
    )
    # a device tests what it gets, and keeps nothing where it cannot
    assert "the executorch runtime needs torch" in edgeq(bare, "ota", "update", *follow, code=9)
    edgeq(bare, "ota", "update", *follow, python=Path(sys.executable))
    assert json.loads(edgeq(bare, "ota", "status", "--store", "store", "--json"))["schema_version"] == 1
    assert (bare / edgeq(bare, "ota", "start", "--store", "store").strip() / "model.pte").is_file()
