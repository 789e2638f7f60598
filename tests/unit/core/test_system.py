from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.system import check_extras, missing_module, package_folder

# as if the extra were not installed: its modules are found by nobody
BLOCKED = """
import importlib.abc, importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("onnx") else found(name, *rest)
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("onnx", "onnxscript", "onnxruntime", "onnx_ir"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from edgeq.cli import main
main()
"""


def run(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ},
        check=False,
    )


def test_without_the_extra_the_target_ends_with_code_9_and_says_how_to_get_it(tmp_path: Path) -> None:
    done = run(tmp_path, "package", "digits", "--target", "linux-x86_64-ort", "--out", "out")
    assert done.returncode == 9, done.stderr
    assert "pip install 'edgeq[onnx]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_another_target_is_packaged(tmp_path: Path) -> None:
    args = ("--target", "linux-x86_64-x86", "--scheme", "fp32", "--out", "out", "--no-cache")
    done = run(tmp_path, "package", "digits", *args)
    assert done.returncode == 0, done.stderr


def test_the_childs_missing_module_is_told_in_the_same_words() -> None:
    problem = missing_module("ModuleNotFoundError: No module named 'onnxruntime'")
    assert problem is not None
    assert "edgeq[onnx]" in problem.fix
    assert missing_module("ModuleNotFoundError: No module named 'numpy'") is None
    assert missing_module("RuntimeError: onnxruntime") is None


def test_what_is_there_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_extras(("onnx", "torchscript"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    check_extras(("executorch", "torchscript"))
    with pytest.raises(EnvironmentProblem, match="onnxruntime"):
        check_extras(("onnx",))


def test_the_digest_is_over_edgeq_alone_and_nothing_beside_it():
    import edgeq

    assert package_folder() == Path(edgeq.__file__).resolve().parent
