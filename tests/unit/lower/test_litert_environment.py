from __future__ import annotations

import subprocess

import pytest
from small_models import Silent

from edgeq.core.errors import EnvironmentProblem
from edgeq.lower.litert_environment import REQUIREMENTS, _run, _why, converter_folder, ensure_converter, is_ready


def test_without_an_index_the_message_says_what_to_do_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(EnvironmentProblem) as caught:
        ensure_converter(Silent())
    assert caught.value.what.startswith("LiteRT's converter could not be installed: No matching distribution")
    assert "run again" in caught.value.fix
    assert not is_ready()
    assert not converter_folder().parent.exists()


def test_every_package_is_pinned_by_its_hash():
    lines = REQUIREMENTS.read_text().splitlines()
    pinned = [line for line in lines if not line.startswith((" ", "#"))]
    assert any(line.startswith("litert-torch==0.10.0") for line in pinned)
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert not any("://" in line for line in lines)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "Traceback\n  File\nValueError: Failed to run converter passes: /a/b/conv.py:565:0: error: no such op\n\n",
            "Failed to run converter passes: error: no such op",
        ),
        (
            "torch._x.Unsupported: 1\nRuntimeError: Lowering not found: aten.foo.default\n",
            "Lowering not found: aten.foo.default",
        ),
        ("killed", "it ended with status -9"),
    ],
)
def test_of_the_converters_words_what_is_wrong_is_said(said, why):
    assert _why(subprocess.CompletedProcess([], -9, "", said)) == why


def test_a_converter_that_does_not_end_is_told(tmp_path):
    sleeping = tmp_path / "python"
    sleeping.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeping.chmod(0o755)
    done = _run([str(sleeping)], 0.2)
    assert (done.returncode, _why(done)) == (124, "it did not end within 0.2 s")
