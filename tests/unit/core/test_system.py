from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.system import check_extras, install_command, missing_module, package_folder

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
    assert f"pip install -e '{package_folder().parent}[onnx]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_another_target_is_packaged(tmp_path: Path) -> None:
    args = ("--target", "linux-x86_64-x86", "--scheme", "fp32", "--out", "out", "--no-cache")
    done = run(tmp_path, "package", "digits", *args)
    assert done.returncode == 0, done.stderr


def test_the_childs_missing_module_is_told_in_the_same_words() -> None:
    problem = missing_module("ModuleNotFoundError: No module named 'onnxruntime'")
    assert problem is not None
    assert problem.fix == install_command("onnx")
    for name in ("numpy", "torch"):
        problem = missing_module(f"ModuleNotFoundError: No module named '{name}'")
        assert problem is not None
        assert install_command("executorch") in problem.fix
    problem = missing_module("ModuleNotFoundError: No module named 'openvino'")
    assert problem is not None
    assert problem.what == "the openvino runtime needs openvino, which is not installed"
    assert problem.fix == install_command("openvino")
    assert missing_module("ModuleNotFoundError: No module named 'cv2'") is None
    assert missing_module("RuntimeError: onnxruntime") is None


class Installed:
    """A distribution of edgeq, as an installer recorded it."""

    requires = (
        "torch>=2",
        "onnx>=1.19 ; extra == 'onnx'",
        'onnxruntime>=1.23; extra == "onnx"',
        "timm>=1; extra == 'timm'",
    )

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return self.origin if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{{"url": "file://{folder}", "dir_info": {{"editable": true}}}}', "pip install -e '{folder}[onnx]'"),
        ('{{"url": "file://{folder}", "dir_info": {{}}}}', "pip install '{folder}[onnx]'"),
        ('{{"url": "file:///gone/edgeq.whl", "archive_info": {{}}}}', "pip install 'onnx>=1.19' 'onnxruntime>=1.23'"),
        (None, "pip install 'onnx>=1.19' 'onnxruntime>=1.23'"),
    ],
)
def test_a_fix_names_what_edgeq_was_installed_from_and_no_package_that_anybody_may_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None, command: str
) -> None:
    text = None if origin is None else origin.format(folder=tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Installed(text))
    assert install_command("onnx") == command.format(folder=tmp_path)


def test_what_is_there_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_extras(("onnx", "torchscript"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    check_extras(("xnnpack", "digits"))
    with pytest.raises(EnvironmentProblem, match="the torchscript runtime needs torch, which is not installed"):
        check_extras(("torchscript",))
    with pytest.raises(EnvironmentProblem, match="onnxruntime"):
        check_extras(("onnx",))


def test_the_digest_is_over_edgeq_alone_and_nothing_beside_it():
    import edgeq

    assert package_folder() == Path(edgeq.__file__).resolve().parent
