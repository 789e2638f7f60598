"""The page "Add edgeq to your app": its Gradle files lack nothing, and its versions are those of the demo.

`scripts/test_android` compiles its Kotlin, as `scripts/howto_sources` lays it out.
"""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from edgeq.deliver.android import keep_rules_note, no_compress_note
from edgeq.deliver.gradle import check_abi, check_runtime, find_module

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/howto/add-to-app.md").read_text()


@pytest.fixture
def howto(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])  # as Python does for a script
    return runpy.run_path(str(ROOT / "scripts/howto_sources"))


def test_an_app_has_the_page_s_code_and_one_runtime(howto, tmp_path: Path) -> None:
    howto["lay_out"](tmp_path)
    files = {folder.name: sorted(path.name for path in folder.rglob("*.kt")) for folder in tmp_path.iterdir()}
    assert files == {
        name: sorted(["AssetSource.kt", "Classifier.kt", "MainActivity.kt", f"{name}.kt"])
        for name in ("ExecuTorch", "OnnxRuntime", "TorchLite")
    }
    assert ".open(OnnxRuntime)" in (tmp_path / "OnnxRuntime/page/Classifier.kt").read_text()
    pom = (ROOT / "android_demo/howto/pom.xml").read_text()
    assert sorted(re.findall(r"<dir>\$\{sources\}/(\w+)</dir>", pom)) == sorted(files), "each is compiled"


def test_edgeq_install_finds_nothing_missing_in_the_page_s_gradle_files(howto, tmp_path: Path) -> None:
    for name, block in howto["files_of"](PAGE).items():
        if name.endswith(".kts"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(block)
    module = find_module(tmp_path)
    assert module.path == ":app"
    check_abi(module, "arm64-v8a")
    assert check_runtime(module, "executorch", "1.5") is None
    assert no_compress_note(module, "model.pte") is None
    assert keep_rules_note(module, "executorch") is not None
    (tmp_path / "app/proguard-rules.pro").write_text((ROOT / "android_demo/app/proguard-rules.pro").read_text())
    assert keep_rules_note(module, "executorch") is None


def test_the_page_s_versions_are_the_demo_s() -> None:
    catalog = tomllib.loads((ROOT / "android_demo/gradle/libs.versions.toml").read_text())
    versions = {
        one["module"]: catalog["versions"].get(one.get("version", {}).get("ref"))
        for one in catalog["libraries"].values()
    }
    named = re.findall(r"[\"`]([\w.\-]+:[\w\-]+):([\d.\-]*\d)(?:@aar)?[\"`]", PAGE)
    assert len(named) >= 6
    assert {name: version for name, version in named if name != "edgeq:store"}.items() <= versions.items()
    store = (ROOT / "android_demo/store/build.gradle.kts").read_text()
    assert f'version = "{dict(named)["edgeq:store"]}"' in store
    assert f"| {catalog['versions']['kotlin']} builds the store" in PAGE.replace("app; ", "| ")
    assert f"the demo has {catalog['versions']['android-plugin']} |" in PAGE
    assert "minSdk = 26" in (ROOT / "android_demo/app/build.gradle.kts").read_text()
