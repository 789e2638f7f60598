from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.deliver.android import no_compress_note
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
