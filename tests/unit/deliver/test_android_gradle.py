from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.deliver.android import keep_rules_note, no_compress_note
from edgeq.deliver.gradle import GradleModule, find_module


def project(root: Path, text: str, name: str = "app/build.gradle.kts") -> GradleModule:
    (root / name).parent.mkdir(parents=True)
    (root / "settings.gradle").write_text("include ':app'")
    (root / name).write_text(f'plugins {{ id("com.android.application") }}\n{text}')
    return find_module(root)


@pytest.mark.parametrize(
    "text",
    [
        'android { androidResources { noCompress += "pte" } }',
        'androidResources { noCompress += listOf("npz", "pte") }',
        'androidResources { noCompress += listOf(\n    "npz",\n    "pte",\n) }',
        'androidResources { noCompress("ptl", "pte") }',
        "aaptOptions { noCompress 'tflite', '.pte' }",
        'androidResources { noCompress "" }',
    ],
)
def test_a_build_that_keeps_the_artifact_needs_nothing(tmp_path: Path, text: str) -> None:
    assert no_compress_note(project(tmp_path, text), "model.pte") is None


@pytest.mark.parametrize(
    "text", ["", 'noCompress += "ptl"', '// noCompress += "pte"', '/* noCompress += "pte"\n */', 'val a = "pte"']
)
def test_one_that_compresses_it_is_told_what_to_add(tmp_path: Path, text: str) -> None:
    note = no_compress_note(project(tmp_path, text, "app/build.gradle"), "model.pte")
    assert note is not None
    assert note.startswith("app/build.gradle compresses .pte files")
    assert 'noCompress += "pte"' in note


def test_the_demo_keeps_both_runtimes_artifacts() -> None:
    demo = find_module(Path(__file__).parents[3] / "android_demo")
    assert no_compress_note(demo, "model.pte") is None
    assert no_compress_note(demo, "model.ptl") is None


SHRUNK = """android { buildTypes { release {
    isMinifyEnabled = true
    proguardFiles(
        getDefaultProguardFile("proguard-android-optimize.txt"),
        "rules/own.pro",
    )
} } }
"""


def test_a_release_that_is_shrunk_without_rules_is_told_which(tmp_path: Path) -> None:
    module = project(tmp_path, SHRUNK)
    note = keep_rules_note(module, "executorch")
    assert note is not None
    assert note.startswith("app/build.gradle.kts shrinks the release (isMinifyEnabled)")
    assert note.endswith("-keep class org.pytorch.executorch.** { *; } -keep class com.facebook.jni.** { *; }")
    rules = tmp_path / "app/rules/own.pro"
    rules.parent.mkdir()
    rules.write_text("-keep class com.facebook.** { *; }\n-keep class org.py** { *; }\n")
    assert keep_rules_note(module, "executorch") is None
    assert "ai.onnxruntime" in (keep_rules_note(module, "onnx") or "")
    # a comment keeps nothing
    rules.write_text(
        "-keep class com.facebook.jni.** { *; }\n# -keep class org.pytorch.** { *; }\n-keep class org.Foo\n"
    )
    note = keep_rules_note(module, "executorch") or ""
    assert note.endswith("rules.pro: -keep class org.pytorch.executorch.** { *; }")


@pytest.mark.parametrize(
    "text", ["", "android { buildTypes { release { isMinifyEnabled = false } } }", "// isMinifyEnabled = true"]
)
def test_a_release_that_is_not_shrunk_needs_no_rules(tmp_path: Path, text: str) -> None:
    assert keep_rules_note(project(tmp_path, text), "executorch") is None


def test_groovy_and_the_demo_s_own_rules(tmp_path: Path) -> None:
    shrunk = "android { buildTypes { release { minifyEnabled true\n proguardFile 'proguard-rules.pro' } } }"
    module = project(tmp_path, shrunk, "app/build.gradle")
    assert keep_rules_note(module, "torchscript") is not None
    rules = Path(__file__).parents[3] / "android_demo/app/proguard-rules.pro"
    (tmp_path / "app/proguard-rules.pro").write_text(rules.read_text())
    assert [keep_rules_note(module, name) for name in ("executorch", "torchscript", "onnx")] == [None] * 3
