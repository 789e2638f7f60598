from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core import files
from edgeq.core.errors import (
    EdgeqError,
    EnvironmentProblem,
    IntegrityError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import load_target
from edgeq.deliver import install as install_module
from edgeq.deliver.install import Within, install

PLACE = Path("app/src/main/assets/models/digits/android-arm64-xnnpack")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An Android project with files of its own."""
    root = tmp_path / "app_project"
    assets = root / "app/src/main/assets"
    (assets / "models/mine").mkdir(parents=True)
    (root / "settings.gradle.kts").write_text("include(':app')")
    (root / "app/build.gradle.kts").write_text('plugins { id("com.android.application") }')
    (assets / "models/mine/own.bin").write_bytes(b"own")
    (assets / "font.ttf").write_bytes(b"font")
    return root


@pytest.fixture
def built(item: BundleInput, tmp_path: Path) -> Callable[[BundleInput], Path]:
    def build(other: BundleInput) -> Path:
        folder = tmp_path / f"built{len(list(tmp_path.glob('built*')))}"
        folder.mkdir()
        write_bundle(other, folder)
        return folder

    return build


def tree(root: Path) -> dict[str, bytes | None]:
    """Return every path below `root` with its content; None for a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(root.rglob("*"))
    }


def test_places_the_bundle_and_leaves_the_rest(bundle: Path, app: Path) -> None:
    (bundle / "report.json").write_text("{}")
    before = tree(app)
    result = install(bundle, app)
    assert result.place == app / PLACE
    assert result.files == ("golden.npz", "manifest.json", "model.pte")
    assert result.size_bytes == sum((result.place / name).stat().st_size for name in result.files)
    assert sorted(path.name for path in result.place.iterdir()) == list(result.files)
    assert read_bundle(result.place).digest == read_bundle(bundle).digest == result.digest
    after = tree(app)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if Path(path).name.startswith(".")]


def test_replaces_an_older_one(
    item: BundleInput, bundle: Path, app: Path, built: Callable[[BundleInput], Path]
) -> None:
    old = install(bundle, app)
    new = install(built(changed(item, model_version="2")), app)
    assert new.place == old.place
    assert new.digest != old.digest
    assert read_bundle(new.place).manifest.model.version == "2"
    assert [path.name for path in new.place.parent.iterdir()] == [new.place.name]


def test_installing_the_installed_one_again_changes_nothing(bundle: Path, app: Path) -> None:
    place = install(bundle, app).place
    before = tree(app)
    install(place, app)
    assert tree(app) == before


@pytest.mark.parametrize("marker", ["Demo.xcodeproj/", "Demo.xcworkspace/", "Package.swift"])
def test_ios(item: BundleInput, tmp_path: Path, built: Callable[[BundleInput], Path], marker: str) -> None:
    root = tmp_path / "ios"
    (root / marker).mkdir(parents=True) if marker.endswith("/") else (root.mkdir(), (root / marker).touch())
    result = install(built(changed(item, target=load_target("ios-arm64-xnnpack"))), root)
    assert result.place == root / "Models/digits/ios-arm64-xnnpack"


GRADLE = Path(__file__).parents[2] / "gradle_projects"


@pytest.mark.parametrize(
    ("project", "app", "within", "models"),
    [
        ("groovy", "", Within(), "app/src/main/assets/models"),
        ("groovy", "app", Within(), "app/src/main/assets/models"),
        ("catalog", "", Within(), "mobile/src/main/assets/models"),
        ("catalog", "", Within(source_set="play"), "mobile/src/play/assets/models"),
        ("convention", "", Within(), "client/src/main/assets/models"),
        ("single", "", Within(), "assets/models"),
        ("several", "", Within(module="shared"), "shared/src/main/assets/models"),
    ],
)
def test_the_bundle_goes_where_an_apk_packs_it(
    bundle: Path, tmp_path: Path, project: str, app: str, within: Within, models: str
) -> None:
    root = tmp_path / project
    shutil.copytree(GRADLE / project, root)
    place = install(bundle, root / app, within=within).place
    assert place == root / models / "digits/android-arm64-xnnpack"
    assert read_bundle(place).digest == read_bundle(bundle).digest


@pytest.mark.parametrize(
    ("project", "module", "error", "why"),
    [
        ("several", None, UsageError, "2 application modules"),
        ("several", ":apps:phone", UnsupportedError, "built for armeabi-v7a"),
        ("several", ":apps:watch", UnsupportedError, "the bundle needs 1.5 or newer"),
        ("several/loose", None, UsageError, "no APK packs the assets of :loose"),
    ],
)
def test_an_app_that_would_not_carry_or_load_the_model_is_refused(
    bundle: Path, tmp_path: Path, project: str, module: str | None, error: type[EdgeqError], why: str
) -> None:
    shutil.copytree(GRADLE / "several", tmp_path / "several")
    before = tree(tmp_path / "several")
    with pytest.raises(error, match=why):
        install(bundle, tmp_path / project, within=Within(module=module))
    assert tree(tmp_path / "several") == before


PBXPROJ = """
    productType = "{product}";
    relativePath = {folder};
    productName = EdgeqModels;
    repositoryURL = "https://github.com/pytorch/executorch";
    requirement = {{
        branch = "swiftpm-{version}";
        kind = branch;
    }};
"""

APP, FRAMEWORK = "com.apple.product-type.application", "com.apple.product-type.framework"


def xcode(root: Path, *, product: str = APP, folder: str = "Models", version: str = "1.5.1") -> Path:
    """Make an Xcode project, with what edgeq reads of it."""
    (root / "Demo.xcodeproj").mkdir(parents=True)
    text = PBXPROJ.format(product=product, folder=folder, version=version)
    (root / "Demo.xcodeproj/project.pbxproj").write_text(text)
    return root


def test_an_xcode_project_that_uses_the_package(
    item: BundleInput, tmp_path: Path, built: Callable[[BundleInput], Path]
) -> None:
    bundle = built(changed(item, target=load_target("ios-arm64-xnnpack")))
    uses = install(bundle, xcode(tmp_path / "uses") / "Demo.xcodeproj")
    assert uses.place == tmp_path / "uses/Models/digits/ios-arm64-xnnpack"
    assert uses.notes == ()
    (note,) = install(bundle, xcode(tmp_path / "not_yet", folder="Other")).notes
    assert note.startswith("the app does not carry the model yet: Demo.xcodeproj does not use the package ")


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"product": FRAMEWORK}, UsageError, "has no application target, so no app packs the model"),
        ({"version": "1.0.0"}, UnsupportedError, r"takes executorch 1\.0, but the bundle needs 1\.5 or newer"),
    ],
)
def test_an_xcode_project_that_would_not_carry_or_load_the_model(
    item: BundleInput,
    tmp_path: Path,
    built: Callable[[BundleInput], Path],
    change: dict[str, Any],
    error: type[EdgeqError],
    why: str,
) -> None:
    bundle = built(changed(item, target=load_target("ios-arm64-xnnpack")))
    refused(error, why, bundle, xcode(tmp_path / "ios", **change))


def test_a_swift_package_with_an_older_runtime(
    item: BundleInput, tmp_path: Path, built: Callable[[BundleInput], Path]
) -> None:
    bundle = built(changed(item, target=load_target("ios-arm64-xnnpack")))
    url = "https://github.com/pytorch/executorch.git"
    text = f'.package(url: "{url}", branch: "swiftpm-1.0.0"),\n.package(path: "Models"), "EdgeqModels"'
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/Package.swift").write_text(text)
    refused(UnsupportedError, r"Package\.swift takes executorch 1\.0", bundle, tmp_path / "pkg")
    (tmp_path / "pkg/Package.swift").write_text(text.replace("1.0.0", "1.5.1"))
    assert install(bundle, tmp_path / "pkg").notes == ()


def refused(error: type[EdgeqError], why: str, bundle: Path, app: Path) -> None:
    """Assert the refusal, and that it leaves the app as it was."""
    before = tree(app)
    with pytest.raises(error, match=why):
        install(bundle, app)
    assert tree(app) == before


def test_refuses_a_bundle_that_failed_a_gate(
    item: BundleInput, app: Path, built: Callable[[BundleInput], Path]
) -> None:
    gates = (*item.checked.gates[:1], dataclasses.replace(item.checked.gates[1], outcome="failed"))
    checked = dataclasses.replace(item.checked, gates=gates)
    refused(VerificationError, "accuracy_drop", built(changed(item, checked=checked)), app)


def test_refuses_random_weights(item: BundleInput, app: Path, built: Callable[[BundleInput], Path]) -> None:
    model = dataclasses.replace(item.inputs.model, weights="random")
    refused(VerificationError, "random weights", built(changed(item, model=model)), app)


def test_refuses_a_tampered_bundle(bundle: Path, app: Path) -> None:
    with (bundle / "model.pte").open("r+b") as file:
        file.write(b"X")
    refused(IntegrityError, r"model\.pte", bundle, app)


def test_refuses_a_bundle_that_changes_meanwhile(bundle: Path, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = install(bundle, app).place
    old = tree(place)

    def tampered(*args: object) -> None:
        (bundle / "model.pte").write_bytes(bytes(10_000))

    monkeypatch.setattr(install_module, "_check_place", tampered)
    refused(IntegrityError, r"model\.pte", bundle, app)
    assert tree(place) == old


def test_refuses_another_bundle_in_its_place(
    item: BundleInput, bundle: Path, app: Path, built: Callable[[BundleInput], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = built(changed(item, seed=1))
    monkeypatch.setattr(
        install_module, "_check_place", lambda _: shutil.copyfile(other / "manifest.json", bundle / "manifest.json")
    )
    refused(IntegrityError, "changed while", bundle, app)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": tuple("abcdefghij")}, "different labels: a, b, "),
        ({"preprocess": None}, "different preprocessing: none; the app expects {"),
        ({"target": load_target("android-arm64-qnnpack"), "labels": ("x",)}, "different labels: x; the app expects"),
    ],
)
def test_another_model_does_not_take_the_place_of_one_by_its_name(
    item: BundleInput, bundle: Path, app: Path, built: Callable[[BundleInput], Path], change: dict[str, Any], why: str
) -> None:
    install(bundle, app)
    other = built(changed(item, **change))
    refused(UsageError, f"holds another model named 'digits': {re.escape(why)}", other, app)
    assert read_bundle(install(other, app, replace=True).place).digest == read_bundle(other).digest


def test_refuses_other_projects(
    item: BundleInput, bundle: Path, app: Path, tmp_path: Path, built: Callable[[BundleInput], Path]
) -> None:
    ios = tmp_path / "ios"
    (ios / "Demo.xcodeproj").mkdir(parents=True)
    refused(UsageError, "project for ios, but the bundle is for android", bundle, ios)
    refused(
        UsageError,
        "project for android",
        built(changed(item, target=load_target("ios-arm64-xnnpack"))),
        app,
    )
    refused(UsageError, "runs on linux", built(changed(item, target=load_target("linux-x86_64-xnnpack"))), app)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(UsageError, r"looked for android: settings\.gradle.*ios: \*\.xcodeproj", bundle, empty)
    refused(UsageError, "not an app project", bundle, tmp_path / "absent")


def test_refuses_to_delete_a_users_files(bundle: Path, app: Path) -> None:
    place = install(bundle, app).place
    (place / "notes.txt").write_text("mine")
    refused(UsageError, r"did not install: notes\.txt", bundle, app)
    (place / "manifest.json").unlink()
    refused(UsageError, "holds files that are not a bundle", bundle, app)


def test_mends_a_damaged_installation(bundle: Path, app: Path) -> None:
    result = install(bundle, app)
    (result.place / "model.pte").write_bytes(b"")
    install(bundle, app)
    assert read_bundle(result.place).digest == result.digest


@pytest.mark.parametrize("linked", [PLACE, PLACE.parent])
def test_refuses_to_write_through_a_link(bundle: Path, app: Path, tmp_path: Path, linked: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (app / linked).parent.mkdir(parents=True, exist_ok=True)
    (app / linked).symlink_to(elsewhere)
    refused(UsageError, "is a link", bundle, app)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("in_the_way", [PLACE, PLACE.parent, PLACE.parent.parent.parent])
def test_a_file_in_the_way_is_named(bundle: Path, tmp_path: Path, in_the_way: Path) -> None:
    root = tmp_path / "project"
    (root / in_the_way).parent.mkdir(parents=True)
    (root / "settings.gradle").write_text("include ':app'")
    (root / "app/build.gradle").write_text('plugins { id("com.android.application") }')
    (root / in_the_way).write_text("mine")
    refused(UsageError, "found a file", bundle, root)


def test_a_full_disk_leaves_the_old_one(bundle: Path, app: Path, small_disk: Path) -> None:
    """A real file system of 64 kB, with the project on it; its root may be reached through a link."""
    shutil.rmtree(app)
    app.symlink_to(small_disk)
    (app / "app").mkdir()
    (app / "settings.gradle").write_text("include ':app'")
    (app / "app/build.gradle").write_text('plugins { id("com.android.application") }')
    install(bundle, app)
    before = tree(small_disk)
    (small_disk / "filler").write_bytes(bytes(36_000))
    with pytest.raises(EnvironmentProblem, match="no space left"):
        install(bundle, app)
    (small_disk / "filler").unlink()
    assert tree(small_disk) == before
    install(bundle, app)


def test_two_installs_at_once(item: BundleInput, app: Path, built: Callable[[BundleInput], Path]) -> None:
    bundles = [built(changed(item, seed=seed)) for seed in range(2)]
    code = "import sys; from pathlib import Path; from edgeq.deliver.install import install\n"
    code += "for _ in range(10): install(Path(sys.argv[1]), Path(sys.argv[2]))"
    children = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(app)]) for folder in bundles]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert read_bundle(app / PLACE).digest in {read_bundle(folder).digest for folder in bundles}
    assert not [path for path in tree(app) if Path(path).name.startswith(".")]


def test_a_lock_that_is_never_released_ends_in_an_error(
    bundle: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_module, "_WAIT_S", 0.05)
    models = app / "app/src/main/assets/models"
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with files.lock_dir(models, wait_s=1):
            inside.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(5)
        with pytest.raises(EnvironmentProblem, match="another edgeq is writing"):
            install(bundle, app)
    finally:
        done.set()
        holder.join()
    assert not (app / PLACE).exists()
    assert [path.name for path in models.iterdir()] == ["mine"]
