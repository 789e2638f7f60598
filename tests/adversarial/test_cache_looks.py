"""What a user's code may learn of the file system without Python's `open` decides on cached results too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeq.load.user_code import load_function
from edgeq.pipeline.tracking import current_state, recording

_CODE = """
import os, sqlite3, torch
from pathlib import Path
HERE = Path(__file__).parent
def exists(): return os.path.exists(HERE / "flag")
def path_exists(): return (HERE / "flag").exists()
def access(): return os.access(HERE / "flag", os.R_OK)
def size(): return os.stat(HERE / "sized").st_size
def link(): return os.readlink(HERE / "link")
def database():
    db = sqlite3.connect(HERE / "w.db"); rows = db.execute("select k from w").fetchall(); db.close(); return rows
def mapped(): return torch.from_file(str(HERE / "w.bin"), size=1, dtype=torch.float32)
def storage(): return torch.UntypedStorage.from_file(str(HERE / "w.bin"), False, 4)
"""


def _flag(folder: Path) -> None:
    (folder / "flag").touch()


def _sized(folder: Path) -> None:
    (folder / "sized").write_text("longer")


def _link(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("b")


def _database(folder: Path) -> None:
    import sqlite3

    with sqlite3.connect(folder / "w.db") as db:
        db.execute("insert into w values (2)")


def _binary(folder: Path) -> None:
    (folder / "w.bin").write_bytes(b"\1\1\1\1")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exists", _flag),
        ("path_exists", _flag),
        ("access", _flag),
        ("size", _sized),
        ("link", _link),
        ("database", _database),
        ("mapped", _binary),
        ("storage", _binary),
    ],
)
def test_a_look_at_the_file_system_is_a_dependency(name: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    import sqlite3
    import time

    (tmp_path / "code.py").write_text(_CODE)
    (tmp_path / "sized").write_text("s")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "w.bin").write_bytes(b"\0\0\0\0")
    with sqlite3.connect(tmp_path / "w.db") as db:
        db.execute("create table w (k)")
    db.close()
    time.sleep(0.05)
    stat_of_os, from_file = __import__("os").stat, torch.from_file
    with recording() as recorder:
        load_function(f"{tmp_path}/code.py:{name}", "model factory")()
        known = recorder.dependencies()
    assert known is not None
    assert all(current_state(key) == state for key, state in known.items())
    change(tmp_path)
    assert any(current_state(key) != state for key, state in known.items())
    assert (__import__("os").stat, torch.from_file) == (stat_of_os, from_file)


@pytest.mark.parametrize("how", ["import onnxruntime", "import onnxruntime.capi", "import helper"])
@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_kept_where_user_code_uses_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, known: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "helper.py").write_text("import onnxruntime")
    (tmp_path / "code.py").write_text(f"def data():\n    {how}\n")
    if known:
        importlib.import_module("onnxruntime")
    else:
        for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
            monkeypatch.delitem(sys.modules, name)
    function = load_function(f"{tmp_path / 'code.py'}:data", "data")
    with recording() as recorder:
        function()
        assert recorder.dependencies() is None
    monkeypatch.delitem(sys.modules, "helper", raising=False)


def test_that_edgeq_uses_onnx_runtime_takes_no_result_away(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def data(): return 1\n")
    function = load_function(f"{tmp_path / 'code.py'}:data", "data")
    with recording() as recorder:
        importlib.import_module("onnxruntime")
        function()
        assert recorder.unheard is False
