"""The application module is found in five usual layouts of Gradle projects (tests/gradle_projects), or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.deliver.gradle import assets_folder, check_abi, check_runtime, find_module, runtime_libraries

PROJECTS = Path(__file__).parents[2] / "gradle_projects"

DEMO = Path(__file__).parents[3] / "android_demo"


@pytest.mark.parametrize(
    ("app", "module", "path", "assets"),
    [
        ("groovy", None, ":app", "groovy/app/src/main/assets"),
        ("groovy/app", None, ":app", "groovy/app/src/main/assets"),
        ("groovy", ":data", ":data", "groovy/data/src/main/assets"),
        ("catalog", None, ":mobile", "catalog/mobile/src/main/assets"),
        ("catalog/mobile", None, ":mobile", "catalog/mobile/src/main/assets"),
        ("catalog", "core/model", ":core:model", "catalog/core/model/src/main/assets"),
        ("convention", None, ":client", "convention/client/src/main/assets"),
        ("convention", ":sync", ":sync", "convention/sync/src/main/assets"),
        ("single", None, ":", "single/assets"),
        ("several", ":apps:phone", ":apps:phone", "several/clients/handheld/src/main/assets"),
        ("several", "clients/handheld", ":apps:phone", "several/clients/handheld/src/main/assets"),
        ("several/apps/watch", None, ":apps:watch", "several/apps/watch/src/main/assets"),
        ("several/clients/handheld", None, ":apps:phone", "several/clients/handheld/src/main/assets"),
        ("several", "shared", ":shared", "several/shared/src/main/assets"),
    ],
)
def test_the_module_that_packs_the_assets(app: str, module: str | None, path: str, assets: str) -> None:
    found = find_module(PROJECTS / app, module)
    assert found.path == path
    assert assets_folder(found) == PROJECTS / assets


@pytest.mark.parametrize(
    ("app", "module", "why"),
    [
        ("several", None, "2 application modules: :apps:phone, :apps:watch"),
        ("several", ":apps:phon", r"no such module\. Did you mean ':apps:phone'"),
        ("several", ":loose", "no APK packs the assets of :loose: no application depends on it"),
        ("several", ":benchmark", "no APK packs the assets of :benchmark: it does not apply com.android.application"),
        ("several/loose", None, "no APK packs the assets of :loose"),
        ("convention/build-logic", None, "no module applies the plugin com.android.application"),
    ],
)
def test_a_project_or_module_whose_assets_reach_no_apk_is_refused(app: str, module: str | None, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        find_module(PROJECTS / app, module)


def test_a_folder_that_the_settings_leave_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "settings.gradle.kts").write_text('include(":mobile")\n// include(":app")\n')
    (tmp_path / "app/build.gradle.kts").write_text('plugins { id("com.android.application") }')
    with pytest.raises(UsageError, match=r"settings\.gradle\.kts does not include app, so no APK packs its assets"):
        find_module(tmp_path / "app")
    with pytest.raises(UsageError, match=r"no module applies the plugin com\.android\.application"):
        find_module(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        "file('modules').eachDir { include \":modules:${it.name}\" }",
        'listOf("phone").forEach { include(it) }',
        "include(*discovered)",
    ],
)
def test_settings_that_compute_their_modules_are_searched_by_build_files(tmp_path: Path, settings: str) -> None:
    (tmp_path / "modules/phone").mkdir(parents=True)
    (tmp_path / "buildSrc").mkdir()
    (tmp_path / "settings.gradle").write_text(settings)
    for folder in ("modules/phone", "buildSrc"):
        (tmp_path / folder / "build.gradle").write_text("plugins { id 'com.android.application' }")
    assert find_module(tmp_path).path == ":modules:phone"


def test_a_precompiled_script_plugin_of_build_src(tmp_path: Path) -> None:
    scripts = tmp_path / "buildSrc/src/main/kotlin"
    scripts.mkdir(parents=True)
    (tmp_path / "phone").mkdir()
    (scripts / "shop.app.gradle.kts").write_text('plugins { id("com.android.application") }')
    (tmp_path / "settings.gradle.kts").write_text('include("phone")')
    (tmp_path / "phone/build.gradle.kts").write_text("plugins {\n    `shop.app`\n}\n")
    assert find_module(tmp_path).path == ":phone"


@pytest.mark.parametrize(
    ("app", "module", "source_set", "assets"),
    [
        ("catalog", None, "play", "catalog/mobile/src/play/assets"),
        ("catalog", None, "galaxyRelease", "catalog/mobile/src/galaxyRelease/assets"),
        ("catalog", None, "debug", "catalog/mobile/src/debug/assets"),
        ("several", ":apps:watch", "main", "several/apps/watch/src/main/assets"),
        ("several", ":apps:watch", "debug", "several/apps/watch/debug-root/assets"),
    ],
)
def test_a_source_set(app: str, module: str | None, source_set: str, assets: str) -> None:
    assert assets_folder(find_module(PROJECTS / app, module), source_set) == PROJECTS / assets


def test_a_source_set_that_the_module_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no such flavour, build type or variant\. Did you mean 'galaxy'"):
        assets_folder(find_module(PROJECTS / "catalog"), "galxy")


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ('sourceSets["main"].assets.srcDirs("extra")', "src/main/assets"),
        ('sourceSets { getByName("main").assets.setSrcDirs(listOf("models-only")) }', "models-only"),
        ("sourceSets.main.assets.srcDirs = ['a', 'b']", "a"),
        ('sourceSets { named("main") { assets { srcDir("more") } } }', "src/main/assets"),
    ],
)
def test_ways_to_write_a_source_set(tmp_path: Path, written: str, folder: str) -> None:
    (tmp_path / "build.gradle.kts").write_text(f'plugins {{ id("com.android.application") }}\nandroid {{ {written} }}')
    assert assets_folder(find_module(tmp_path)) == tmp_path / folder


def test_the_runtime_that_an_app_declares() -> None:
    def declared(app: Path, module: str | None = None) -> list[tuple[str, str, str]]:
        return [(one.name, one.version, one.module) for one in runtime_libraries(find_module(app, module))]

    assert declared(PROJECTS / "groovy") == [("org.pytorch:executorch-android", "1.5.1", ":app")]
    assert declared(PROJECTS / "catalog") == [
        ("org.pytorch:executorch-android", "1.5.1", ":mobile"),
        ("org.pytorch:pytorch_android_lite", "2.1.0", ":mobile"),
    ]
    assert declared(PROJECTS / "convention") == [("com.microsoft.onnxruntime:onnxruntime-android", "1.22.0", ":sync")]
    assert declared(PROJECTS / "single") == []
    assert ("org.pytorch:executorch-android", "1.5.1", ":app") in declared(DEMO)


def test_an_older_runtime_than_the_bundle_needs_is_refused() -> None:
    watch = find_module(PROJECTS / "several", ":apps:watch")
    with pytest.raises(UnsupportedError, match=r"executorch-android:1\.0\.0, but the bundle needs 1\.5 or newer"):
        check_runtime(watch, "executorch", "1.5")
    assert check_runtime(watch, "executorch", "1.0") is None
    with pytest.raises(UnsupportedError, match=r":sync depends on .*onnxruntime-android:1\.22\.0"):
        check_runtime(find_module(PROJECTS / "convention"), "onnx", "1.23")
    assert check_runtime(find_module(PROJECTS / "convention"), "onnx", "1.9") is None


def test_a_runtime_that_the_app_lacks_is_named() -> None:
    note = check_runtime(find_module(PROJECTS / "groovy"), "onnx", "1.22")
    assert note is not None
    assert note.startswith(":app declares no com.microsoft.onnxruntime:onnxruntime-android (it has org.pytorch:exec")


@pytest.mark.parametrize("version", ["1.+", "latest.release", "$unknownVersion", ""])
def test_a_version_that_is_computed_is_said_to_be_unknown(tmp_path: Path, version: str) -> None:
    name = "org.pytorch:executorch-android" + (f":{version}" if version else "")
    (tmp_path / "build.gradle").write_text(f'plugins {{ id "com.android.application" }}\nimplementation "{name}"')
    note = check_runtime(find_module(tmp_path), "executorch", "1.5")
    assert note is not None
    assert "version of org.pytorch:executorch-android in : is not known" in note


def test_an_app_without_the_bundles_abi_is_refused() -> None:
    phone = find_module(PROJECTS / "several", ":apps:phone")
    with pytest.raises(
        UnsupportedError, match=r"built for armeabi-v7a \(abiFilters\), but the bundle is for arm64-v8a"
    ):
        check_abi(phone, "arm64-v8a")
    check_abi(find_module(PROJECTS / "groovy"), "arm64-v8a")
    check_abi(find_module(PROJECTS / "catalog"), "arm64-v8a")
