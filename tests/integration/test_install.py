"""`--install-into` and `edgeq install`: whole, verified, accepted, with weights; or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import QNNPACK, X86, Project, Run, command

pytestmark = pytest.mark.slow

PLACE = Path("app/src/main/assets/models/quarters") / QNNPACK


@pytest.fixture
def app(project: Project) -> Path:
    root = project.root / "app-project"
    (root / "app").mkdir(parents=True)
    (root / "settings.gradle.kts").write_text('include(":app")')
    (root / "app/build.gradle.kts").write_text('plugins { id("com.android.application") }')
    return root


def test_a_package_goes_into_the_app_and_a_broken_one_does_not(
    package: Run, edgeq: Run, project: Project, app: Path
) -> None:
    args = (*command(target=QNNPACK), "--scheme", "fp32", "--install-into", str(app))
    rejected = package(*args, "--limit", "size=1kB", base=False)
    assert rejected.code == 4
    assert not (app / "app/src/main/assets").exists()
    edgeq("install", project.out / "rejected" / "quarters" / QNNPACK, "--app", app).fails(7, "size")

    result = package(*args, "--target", X86, "--json", base=False)
    assert result.code == 0, result.out
    (installed,) = result.json["installed"]
    placed = read_bundle(app / PLACE)
    assert installed["digest"] == placed.digest == result.json["rows"][0]["digest"]
    assert placed.artifact.read_bytes() == (project.out / "quarters" / QNNPACK / "model.ptl").read_bytes()

    bundle = project.out / "quarters" / QNNPACK
    data = bytearray((bundle / "model.ptl").read_bytes())
    data[100] ^= 1
    (bundle / "model.ptl").write_bytes(bytes(data))
    edgeq("install", bundle, "--app", app).fails(8, "model.ptl", "SHA-256")
    assert read_bundle(app / PLACE).digest == placed.digest


def test_random_weights_are_marked_and_never_installed(package: Run, project: Project, app: Path) -> None:
    args = ("torchvision:squeezenet1_1", "-t", QNNPACK, "-o", "out", "--scheme", "fp32", "--input", "1x3x32x32")
    result = package(*args, "--install-into", str(app), "--json", "--junit", "junit.xml", base=False)
    assert result.code == 7
    assert "random weights" in result.err
    assert result.json["installed"] == []
    assert (result.json["exit_code"], result.json["error"]["exit_code"]) == (7, 7)
    assert 'errors="1"' in (project.root / "junit.xml").read_text()
    (row,) = result.json["rows"]
    assert row["weights"] == "random"
    assert any("random" in text for text in row["warnings"])
    assert project.manifest(QNNPACK, "squeezenet1_1")["model"]["weights"] == "random"
    assert not (app / "app/src/main/assets").exists()
