"""What a user's code may learn of the file system without Python's `open` decides on cached results too."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeq.core.errors import UsageError
from edgeq.load.user_code import load_function
from edgeq.pipeline.tracking import current_state, recording

_MEMORY = Path("/dev/shm")  # noqa: S108

_CODE = """
import os, sqlite3, torch
from pathlib import Path
HERE = Path(__file__).parent
def exists(): return os.path.exists(HERE / "flag")
def path_exists(): return (HERE / "flag").exists()
def access(): return os.access(HERE / "flag", os.R_OK)
def size(): return os.stat(HERE / "sized").st_size
def raw_size():
    import posix
    return posix.stat(HERE / "sized").st_size
def link(): return os.readlink(HERE / "link")
def attribute(): return os.getxattr(HERE / "sized", "user.width") if os.listxattr(HERE / "sized") else b""
def database():
    db = sqlite3.connect(HERE / "w.db"); rows = db.execute("select k from w").fetchall(); db.close(); return rows
def mapped(): return torch.from_file(str(HERE / "w.bin"), size=1, dtype=torch.float32)
def storage(): return torch.UntypedStorage.from_file(str(HERE / "w.bin"), False, 4)
def read_only_database():
    db = sqlite3.connect(f"file:{HERE}/w.db?mode=ro", uri=True); db.execute("select k from w").fetchall(); db.close()
def entry(): return sum(one.stat().st_size for one in os.scandir(HERE) if not one.is_symlink())
def walked(): return [os.path.join(top, name) for top, _, names in os.walk(HERE) for name in names]
def by_folder():
    fd = os.open(HERE, os.O_RDONLY)
    inner = os.open("w.bin", os.O_RDONLY, dir_fd=fd); os.close(inner); os.close(fd)
def stat_by_folder():
    fd = os.open(HERE, os.O_RDONLY); found = os.stat("sized", dir_fd=fd); os.close(fd); return found
def listed_by_folder():
    fd = os.open(HERE, os.O_RDONLY); found = os.listdir(fd); os.close(fd); return found
def of_descriptor():
    with open(HERE / "sized") as file: return os.fstat(file.fileno()).st_mtime
def variable(): return os.environ.get("EDGEQ_TEST_WIDTH", "8")
def variables(): return dict(os.environ)
def raw_variable():
    import posix
    return posix.environ.get(b"EDGEQ_TEST_WIDTH")
def raw_variables():
    import posix
    return posix.environ.copy()
def variable_of_data(): return os.environ._data[b"EDGEQ_TEST_WIDTH"]
def variable_in_bytes(): return os.environb[b"EDGEQ_TEST_WIDTH"]
def variable_in_words(): return "EDGEQ_TEST_WIDTH" in repr(os.environ)
def names_of_variables(): return [name for name in os.environ if name.startswith("EDGEQ_TEST_")]
def number_of_variables(): return len(os.environ)
def temporary_folder():
    import tempfile
    return tempfile.gettempdir()
def temporary_file():
    import tempfile
    with tempfile.TemporaryFile(): return 1
def font():
    from PIL import ImageFont
    return ImageFont.truetype(str(HERE / "font.ttf"))
def in_memory(): return Path("/dev/shm").joinpath(HERE.name).read_text()
"""

_UNHEARD = {
    "popen": "import subprocess; subprocess.run(['cat', __file__], capture_output=True)",
    "system": "import os; os.system('true')",
    "fork": "import os; os.waitpid(os.fork() or os._exit(0), 0)",
    "spawn": "import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "processes": "import multiprocessing as m; p = m.get_context('spawn').Process(target=print); p.start(); p.join()",
    "workers": "import torch; list(torch.utils.data.DataLoader([1.0, 2.0], num_workers=1))",
    "free": "import shutil; shutil.disk_usage('/')",
    "libc": "import ctypes; ctypes.CDLL(None).access(b'flag', 0)",
    "attached": "import sqlite3; sqlite3.connect(':memory:').execute(\"attach database 'w.db' as w\")",
}


def _flag(folder: Path) -> None:
    (folder / "flag").touch()


def _sized(folder: Path) -> None:
    (folder / "sized").write_text("longer")


def _link(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("b")


def _attribute(folder: Path) -> None:
    os.setxattr(folder / "sized", "user.width", b"16")


def _database(folder: Path) -> None:
    import sqlite3

    with sqlite3.connect(folder / "w.db") as db:
        db.execute("insert into w values (2)")


def _binary(folder: Path) -> None:
    (folder / "w.bin").write_bytes(b"\1\1\1\1")


def _variable(_: Path) -> None:
    os.environ["EDGEQ_TEST_WIDTH"] = "16"


def _another_variable(_: Path) -> None:
    os.environ["EDGEQ_TEST_HEIGHT"] = "16"


def _place(folder: Path) -> None:
    os.environ["TMPDIR"] = str(folder)


def _font(folder: Path) -> None:
    (folder / "font.ttf").write_bytes(b"another font")


def _in_memory(folder: Path) -> None:
    (_MEMORY / folder.name).write_text("other")


_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exists", _flag),
        ("path_exists", _flag),
        ("access", _flag),
        ("size", _sized),
        pytest.param("raw_size", _sized, marks=_POSIX),
        ("link", _link),
        pytest.param("attribute", _attribute, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's")),
        ("database", _database),
        ("mapped", _binary),
        ("storage", _binary),
        ("read_only_database", _database),
        ("entry", _sized),
        ("walked", _flag),
        ("by_folder", _binary),
        ("stat_by_folder", _sized),
        ("listed_by_folder", _flag),
        ("of_descriptor", _sized),
        ("variable", _variable),
        ("variables", _variable),
        ("variables", _another_variable),
        pytest.param("raw_variable", _variable, marks=_POSIX),
        pytest.param("raw_variables", _another_variable, marks=_POSIX),
        pytest.param("variable_of_data", _variable, marks=_POSIX),
        pytest.param("variable_in_bytes", _variable, marks=_POSIX),
        ("variable_in_words", _variable),
        ("names_of_variables", _another_variable),
        ("number_of_variables", _another_variable),
        ("temporary_folder", _place),
        ("font", _font),
        ("in_memory", _in_memory),
    ],
)
def test_a_look_at_the_file_system_is_a_dependency(
    name: str,
    change: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    import sqlite3
    import time

    monkeypatch.setenv("EDGEQ_TEST_WIDTH", "12")
    for name_of_change in ("EDGEQ_TEST_HEIGHT", "TMPDIR"):  # put back what the changes set
        monkeypatch.setenv(name_of_change, "")
        monkeypatch.delenv(name_of_change)
    (tmp_path / "code.py").write_text(_CODE)
    (tmp_path / "font.ttf").write_bytes(b"no font")
    in_memory = _MEMORY / tmp_path.name
    in_memory.write_text("data")
    request.addfinalizer(in_memory.unlink)
    (tmp_path / "sized").write_text("s")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "w.bin").write_bytes(b"\0\0\0\0")
    with sqlite3.connect(tmp_path / "w.db") as db:
        db.execute("create table w (k)")
    db.close()
    time.sleep(0.05)
    stat_of_os, from_file = __import__("os").stat, torch.from_file
    with recording() as recorder:
        recorder.on = False  # as it is after the model was loaded: what the user's code does is heard all the same
        with contextlib.suppress(UsageError):  # it is no font
            load_function(f"{tmp_path}/code.py:{name}", "model factory")()
        known = recorder.dependencies()
    assert known is not None, recorder.untracked
    assert all(current_state(key) == state for key, state in known.items())
    change(tmp_path)
    assert any(current_state(key) != state for key, state in known.items())
    assert (__import__("os").stat, torch.from_file) == (stat_of_os, from_file)


def test_a_temporary_file_depends_on_no_variable(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(_CODE)
    with recording() as recorder:
        load_function(f"{tmp_path}/code.py:temporary_file", "model factory")()
    assert "env:TMPDIR" not in (recorder.dependencies() or {"env:TMPDIR": ""})


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
        assert recorder.untracked == ""


_EACH = """
import json, sys, warnings
from pathlib import Path
from edgeq.load.user_code import load_function
from edgeq.pipeline.tracking import recording

def look(name):
    with recording() as recorder:
        load_function(f"{sys.argv[1]}:{name}", "data")()
        return recorder.dependencies(), recorder.untracked

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = [look(name) for name in sys.argv[2:-1]]
    size = Path(sys.argv[1]).with_name("size")
    size.write_text(sys.argv[-1])
    print(json.dumps([*found, look(sys.argv[-2])]))
"""


def _looks(tmp_path: Path, code: str, *names: str) -> list[tuple[dict[str, str] | None, str]]:
    """Return what was seen of functions, and why it may not be all, in a process of its own; the last is called twice.

    The file "size" is changed before the last call.
    """
    (tmp_path / "code.py").write_text(code)
    (tmp_path / "size").write_text("8")
    command = [sys.executable, "-c", _EACH, f"{tmp_path / 'code.py'}", *names, "16"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found: list[tuple[dict[str, str] | None, str]] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_nothing_is_kept_where_code_may_look_unheard(tmp_path: Path) -> None:
    plain = "".join(f"def {name}():\n    {body}\n" for name, body in _UNHEARD.items() if name != "attached")
    for (known, why), name in zip(_looks(tmp_path, plain, *(set(_UNHEARD) - {"attached"})), _UNHEARD, strict=False):
        assert known is None, name
        assert any(cause in why for cause in ("starts a process", "native library", "how full the disk is"))
    (tmp_path / "attached").mkdir()
    ((known, why), *_) = _looks(tmp_path / "attached", f"def attached():\n    {_UNHEARD['attached']}\n", "attached")
    assert known is None
    assert "attach database" in why


@pytest.mark.slow
def test_what_a_module_read_when_it_was_imported_counts_in_the_next_run_too(tmp_path: Path) -> None:
    code = "from pathlib import Path\nSIZE = Path(__file__).with_name('size').read_text()\ndef data(): return SIZE\n"
    first, second, changed = _looks(tmp_path, code, "data", "data")
    name = f"file:{tmp_path / 'size'}"
    assert first[0] is not None
    assert second[0] is not None
    assert first[0][name] == second[0][name] != ""
    assert changed[0] is None  # the module still has the old one
    assert "was changed after" in changed[1]
