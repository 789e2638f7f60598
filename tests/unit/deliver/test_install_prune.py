"""What else `install` does to the folder of models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_items import changed

from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import UsageError
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import load_target
from edgeq.deliver.install import install

MODELS = Path("app/src/main/assets/models")
Build = Callable[[str, str], Path]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "app/src/main").mkdir(parents=True)
    (root / "settings.gradle.kts").write_text('include(":app")')
    (root / "app/build.gradle.kts").write_text('plugins { id("com.android.application") }')
    return root


@pytest.fixture
def ios(tmp_path: Path) -> Path:
    root = tmp_path / "ios"
    (root / "Demo.xcodeproj").mkdir(parents=True)
    return root


@pytest.fixture
def build(item: BundleInput, tmp_path: Path) -> Build:
    """Return a bundle of a target and a model version; the artifact is the same."""

    def make(target: str, version: str) -> Path:
        folder = tmp_path / f"{target}-{version}"
        folder.mkdir()
        write_bundle(changed(item, target=load_target(target), model_version=version), folder)
        return folder

    return make


def placed(models: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(models)) for path in models.glob("*/*/manifest.json"))


def put(app: Path, bundle: Path, target: str) -> Path:
    """Copy a bundle to where an install of another target would have put it."""
    place = app / MODELS / "digits" / target
    shutil.copytree(bundle, place)
    return place


def renamed(bundle: Path, target: str) -> Path:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "android-arm64-xnnpack"', f'"name": "{target}"'))
    return bundle


def test_other_versions_for_other_targets_go(app: Path, build: Build) -> None:
    old = put(app, renamed(build("android-arm64-xnnpack", "1"), "old-target"), "old-target")
    result = install(build("android-arm64-xnnpack", "2"), app)
    assert result.pruned == (old,)
    assert placed(app / MODELS) == ["digits/android-arm64-xnnpack"]


def test_the_same_version_for_another_target_stays(app: Path, build: Build) -> None:
    put(app, renamed(build("android-arm64-xnnpack", "2"), "old-target"), "old-target")
    again = build("android-arm64-xnnpack", "2.0")
    manifest = again / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "2.0"', '"version": "2"'))
    assert install(again, app).pruned == ()
    assert placed(app / MODELS) == ["digits/android-arm64-xnnpack", "digits/old-target"]


def test_a_users_own_files_stay(app: Path, build: Build) -> None:
    old = put(app, renamed(build("android-arm64-xnnpack", "1"), "old-target"), "old-target")
    (old / "notes.txt").write_text("mine")
    own = app / MODELS / "digits" / "own"
    own.mkdir()
    (own / "model.bin").write_bytes(b"own")
    (app / MODELS / "digits" / "link").symlink_to(old)
    assert install(build("android-arm64-xnnpack", "2"), app).pruned == ()
    assert (old / "notes.txt").read_text() == "mine"
    assert (own / "model.bin").exists()


def test_a_manifest_that_is_another_targets_stays(app: Path, build: Build) -> None:
    put(app, build("android-arm64-xnnpack", "1"), "copied-by-hand")
    assert install(build("android-arm64-xnnpack", "2"), app).pruned == ()


def test_an_ios_projects_models_become_a_package(ios: Path, build: Build) -> None:
    result = install(build("ios-arm64-xnnpack", "1"), ios)
    package = (ios / "Models/Package.swift").read_text()
    assert result.package == (ios / "Models/Package.swift", ios / "Models/EdgeqModels.swift")
    assert package.startswith("// swift-tools-version: 5.9\n")
    assert 'resources: [.copy("digits")]' in package
    assert "Bundle.module" in (ios / "Models/EdgeqModels.swift").read_text()
    (ios / "Models/another").mkdir()
    install(build("ios-arm64-xnnpack", "2"), ios)
    assert 'resources: [.copy("another"), .copy("digits")]' in (ios / "Models/Package.swift").read_text()
    assert result.growth == ()
    assert [note.partition(":")[0] for note in result.notes] == ["the app does not carry the model yet"]


@pytest.mark.parametrize("name", ["Package.swift", "EdgeqModels.swift"])
def test_a_users_own_package_is_not_replaced(ios: Path, build: Build, name: str) -> None:
    (ios / "Models").mkdir()
    (ios / "Models" / name).write_text("// mine")
    with pytest.raises(UsageError, match="was not written by edgeq"):
        install(build("ios-arm64-xnnpack", "1"), ios)
    assert [path.name for path in (ios / "Models").iterdir()] == [name]


def test_a_build_that_compresses_the_artifact_is_noted(app: Path, build: Build) -> None:
    result = install(build("android-arm64-xnnpack", "1"), app)
    missing, compresses = result.notes
    assert missing.startswith(":app declares no org.pytorch:executorch-android; add: ")
    assert compresses.startswith("app/build.gradle.kts compresses .pte files")
    assert result.growth[0].abi == "arm64-v8a"
    assert result.growth[0].bundle_bytes == result.size_bytes
