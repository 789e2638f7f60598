"""What counts as a dependency: everything that a user's code looked at, and nothing of the libraries."""

from __future__ import annotations

import importlib
import io
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeq.core.files import sha256_bytes, sha256_file
from edgeq.pipeline.tracking import Recorder, current_state, recording


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file in each of the formats that people load; it is the current one."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "plain.txt").write_text("1")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(look: Callable[[], object]) -> dict[str, str]:
    """Return what `look` depended on, by name, without this test's own modules."""
    with recording() as before:
        known = before.dependencies() or {}
    with recording() as recorder:
        look()
        found = recorder.dependencies()
    assert found is not None
    return {name: state for name, state in found.items() if name not in known}


def _torch() -> object:
    import torch

    return torch


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("plain.txt", lambda: Path("plain.txt").read_text()),
        ("plain.txt", lambda: open(b"plain.txt").close()),  # noqa: PTH123  # as bytes, relative
        ("plain.txt", lambda: os.close(os.open("plain.txt", os.O_RDONLY))),
        ("array.npy", lambda: np.load("array.npy")),
        ("array.npy", lambda: np.load("array.npy", mmap_mode="r")),
        ("array.npy", lambda: np.memmap("array.npy", mode="r")),
        ("array.npy", lambda: np.fromfile("array.npy")),
        ("arrays.npz", lambda: dict(np.load("arrays.npz"))),
        ("weights.safetensors", lambda: importlib.import_module("safetensors.torch").load_file("weights.safetensors")),
        ("weights.safetensors", lambda: importlib.import_module("safetensors.numpy").load_file("weights.safetensors")),
        ("weights.pt", lambda: _torch().load("weights.pt")),  # type: ignore[attr-defined]
        ("weights.pt", lambda: _torch().load("weights.pt", mmap=True)),  # type: ignore[attr-defined]
        ("script.pt", lambda: _torch().jit.load("script.pt")),  # type: ignore[attr-defined]
        ("program.pt2", lambda: _torch().export.load("program.pt2")),  # type: ignore[attr-defined]
        ("image.png", lambda: importlib.import_module("torchvision.io").read_image("image.png")),
        ("image.png", lambda: importlib.import_module("torchvision.io").decode_image("image.png")),
    ],
)
def test_a_file_is_seen_however_it_is_opened(data: Path, name: str, look: Callable[[], object]) -> None:
    found = opened(look)
    assert found[f"file:{data / name}"] == current_state(f"file:{data / name}") != ""


@pytest.mark.parametrize(
    "look",
    [
        lambda: os.listdir(),  # noqa: PTH208
        lambda: os.listdir(os.open(".", os.O_RDONLY)),  # noqa: PTH208
        lambda: list(os.scandir(".")),
        lambda: list(os.scandir(os.open(".", os.O_RDONLY))),
        lambda: list(importlib.import_module("posix").scandir()),
        lambda: list(Path().iterdir()),
        lambda: list(Path().glob("*")),
    ],
)
def test_a_folder_that_is_listed_is_seen_by_its_names(data: Path, look: Callable[[], object]) -> None:
    assert f"names:{data}" in opened(look)
    before = current_state(f"names:{data}")
    (data / "plain.txt").write_text("other content")
    assert current_state(f"names:{data}") == before
    (data / "new.txt").touch()
    assert current_state(f"names:{data}") != before


@pytest.mark.parametrize("module", ["os", "posix"])
@pytest.mark.parametrize("folder", ["of a name", "of a descriptor"])
@pytest.mark.parametrize(("question", "kind"), [("stat", "stat"), ("is_file", "kind"), ("is_dir", "kind")])
def test_what_an_entry_of_a_folder_is_asked_is_seen(
    data: Path, module: str, folder: str, question: str, kind: str
) -> None:
    (data / "inner").mkdir()
    (data / "inner" / "one").touch()

    def look() -> None:
        inner = os.open("inner", os.O_RDONLY) if folder == "of a descriptor" else "inner"
        for entry in importlib.import_module(module).scandir(inner):
            getattr(entry, question)()

    name = f"{kind}:{data / 'inner' / 'one'}"
    before = opened(look)[name]
    (data / "inner" / "one").unlink()
    (data / "inner" / "one").mkdir()
    assert current_state(name) != before


@pytest.mark.parametrize(
    ("is_read", "look"),
    [
        (True, lambda: sys.argv[1:]),
        (True, lambda: list(sys.argv)),
        (True, lambda: "--small" in sys.argv),
        (True, lambda: sys.orig_argv[-1]),
        (True, lambda: importlib.import_module("argparse").ArgumentParser().parse_known_args()),
        (False, lambda: importlib.import_module("torch").zeros(1)),
    ],
)
def test_the_command_line_counts_where_it_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool, look: Callable[[], object]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgeq", "--small"])
    before = opened(look).get("arguments:all")
    assert (before is not None) is is_read
    assert type(sys.argv) is list
    monkeypatch.setattr(sys, "argv", ["edgeq", "--large"])
    assert not is_read or current_state("arguments:all") != before


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (lambda: Path("/proc/self/cmdline").read_bytes(), "the code reads /proc/self/cmdline"),
        (lambda: Path("/proc/self/environ").read_bytes(), "the code reads /proc/self/environ"),
        (lambda: sys.stdin.readline(), "the code reads the standard input"),
        (lambda: list(sys.stdin), "the code reads the standard input"),
    ],
)
def test_what_nobody_can_ask_again_is_not_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[], object], why: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("small"))
    with recording() as recorder:
        look()
        assert recorder.dependencies() is None
    assert recorder.untracked == why


def test_a_file_that_is_not_there_yet_is_seen(data: Path) -> None:
    def look() -> None:
        with pytest.raises(FileNotFoundError):
            Path("later.txt").read_text()

    name = f"file:{data / 'later.txt'}"
    assert opened(look)[name] == ""
    Path("later.txt").touch()
    assert current_state(name) != ""


def test_a_module_is_seen_with_what_it_imports_and_where_it_was_looked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "outer_module.py").write_text("import inner_module\n")
    (data / "inner_module.py").write_text("")
    monkeypatch.syspath_prepend(str(data))
    found = opened(lambda: importlib.import_module("outer_module"))
    assert {f"file:{data / name}" for name in ("outer_module.py", "inner_module.py")} <= set(found)
    assert f"modules:{data}" in found
    assert not any(name.endswith(".pyc") for name in found)  # they hold a time
    before = current_state(f"modules:{data}")
    (data / "notes.txt").touch()
    assert current_state(f"modules:{data}") == before
    (data / "shadow.py").touch()
    assert current_state(f"modules:{data}") != before
    for name in ("outer_module", "inner_module"):
        del sys.modules[name]


def test_a_module_that_was_imported_before_counts_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "early_module.py").write_text("")
    monkeypatch.syspath_prepend(str(data))
    importlib.import_module("early_module")
    with recording() as recorder:
        assert f"file:{data / 'early_module.py'}" in (recorder.dependencies() or {})
    del sys.modules["early_module"]


def test_libraries_and_the_system_are_not_listed(data: Path) -> None:
    found = opened(
        lambda: (Path(np.__file__).read_text(), Path(os.__file__).read_text(), Path("/proc/stat").read_text())
    )
    assert found == {}


def test_while_it_is_off_only_the_users_code_is_heard(data: Path) -> None:
    with recording() as recorder:
        recorder.on = False
        Path("plain.txt").read_text()  # by this test, which is no part of edgeq
        sha256_file(Path("arrays.npz"))  # by edgeq, which nobody of the user's called
        with recorder.listening():
            sha256_file(Path("array.npy"))
        found = recorder.dependencies() or {}
    Path("weights.pt").read_bytes()
    assert {f"file:{data / name}" for name in ("plain.txt", "array.npy")} <= set(found)
    assert f"file:{data / 'arrays.npz'}" not in found
    assert str(data / "weights.pt") not in recorder.opened


@pytest.mark.parametrize("rename", [False, True])
def test_what_changes_during_the_recording_has_no_state(data: Path, rename: bool) -> None:
    with recording() as recorder:
        Path("plain.txt").read_text()
        os.utime("array.npy", (0, 0))  # that was not read
        assert recorder.dependencies() is not None
        other = Path("other.txt")
        other.write_text("2")
        os.utime(other, (0, 0))
        os.system("mv other.txt plain.txt" if rename else "echo 2 > plain.txt")  # noqa: S605  # by another process
        assert recorder.dependencies() is None


def test_what_the_code_itself_wrote_does_not_count_as_changed(data: Path) -> None:
    with recording() as recorder:
        Path("made.txt").write_text("by the user's own code")
        Path("made.txt").read_text()
        found = recorder.dependencies()
    assert found is not None
    assert f"file:{data / 'made.txt'}" in found


def test_the_hooks_are_taken_away_again(data: Path) -> None:
    import safetensors.torch
    import torch

    before = (safetensors.torch.safe_open, torch._C.PyTorchFileReader, torch._C.import_ir_module)
    images = dict(vars(torch.ops.image))
    with pytest.raises(KeyError), recording():
        raise KeyError
    assert vars(torch.ops.image) == images
    assert (safetensors.torch.safe_open, torch._C.PyTorchFileReader, torch._C.import_ir_module) == before


def test_a_model_can_be_exported_after_an_image_was_read(data: Path) -> None:
    import torch
    from torchvision.io import read_image

    for _ in range(2):
        with recording():
            read_image("image.png")
            torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)).run_decompositions()


_LOADS = """
import importlib.machinery, importlib.util, sys
from edgeq.pipeline.tracking import recording
with recording() as recorder:
    loader = importlib.machinery.ExtensionFileLoader(sys.argv[1], sys.argv[2])
    importlib.util.module_from_spec(importlib.machinery.ModuleSpec(sys.argv[1], loader, origin=sys.argv[2]))
    print(recorder.dependencies(), recorder.untracked)
"""


def test_nothing_is_known_beside_a_native_library_that_nobody_knows(tmp_path: Path) -> None:
    import _json

    (tmp_path / "own").mkdir()
    copy = shutil.copy(_json.__file__, tmp_path / "own")
    for path, known in ((_json.__file__, True), (copy, False)):
        command = [sys.executable, "-c", _LOADS, "_json", path]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert ran.stdout.startswith("None the native library") != known
        assert (str(copy) in ran.stdout) != known


def test_an_event_of_another_kind_is_passed_over() -> None:
    recorder = Recorder(on=True, active=True)
    recorder.record("open", (3.5, "r", 0))
    recorder.record("socket.connect", ("somewhere",))
    recorder.record("os.listdir", (None,))
    assert recorder.opened == set()
    assert recorder.listed == {str(Path.cwd())}


@pytest.mark.parametrize(
    ("is_read", "look"),
    [
        (True, lambda: socket.gethostname()),
        (True, lambda: socket.getfqdn()),
        (True, lambda: platform.node()),
        (True, lambda: platform.uname().node),
        (True, lambda: os.uname().nodename),
        (True, lambda: os.uname()[1]),
        (True, lambda: importlib.import_module("posix").uname().nodename),
        (True, lambda: [*os.uname()]),
        (True, lambda: str(os.uname()[:2])),
        (True, lambda: Path("/proc/sys/kernel/hostname").read_text()),
        (False, lambda: (platform.system(), platform.machine(), platform.platform(), platform.python_version())),
        (False, lambda: (os.uname().sysname, os.uname().machine, os.uname()[4], os.uname().release)),
        (False, lambda: importlib.import_module("sysconfig").get_platform()),
    ],
)
@pytest.mark.parametrize("is_asked_before", [False, True])
def test_the_name_of_the_machine_counts_where_it_is_read(
    data: Path, is_read: bool, look: Callable[[], object], is_asked_before: bool
) -> None:
    if is_asked_before:  # platform keeps the answer
        platform.node()
    here = os.uname().nodename
    found = opened(look)
    assert found.get("host:name") == (sha256_bytes(here.encode()) if is_read else None)
    assert os.uname().nodename == here, "the functions are as before"


def test_a_module_that_read_the_name_of_the_machine_counts_in_the_next_run_too(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(data)
    (data / "naming_module.py").write_text("from socket import gethostname\n\nNAME = gethostname()\n")
    for _ in range(2):
        with recording() as recorder:
            importlib.import_module("naming_module")
            assert "host:name" in (recorder.dependencies() or {})
    del sys.modules["naming_module"]


def test_what_was_looked_at_is_known_after_an_error_and_over_several_recordings(data: Path) -> None:
    from edgeq.pipeline.tracking import looked_at

    with recording():
        Path("plain.txt").read_text()
    with pytest.raises(FileNotFoundError), recording():
        Path("missing.txt").read_text()
    found = looked_at()
    assert found[f"file:{data}/plain.txt"] == sha256_file(data / "plain.txt")
    assert found[f"file:{data}/missing.txt"] == ""


def test_an_import_asks_nothing_of_owners_and_times(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkouts differ in them, and are to share their results."""
    monkeypatch.syspath_prepend(data)
    (data / "first_module.py").write_text("import second_module\n")
    (data / "second_module.py").write_text("VALUE = 1\n")
    with recording() as recorder:
        importlib.import_module("first_module")
        found = recorder.dependencies() or {}
    assert {f"file:{data}/first_module.py", f"file:{data}/second_module.py"} <= set(found)
    assert f"stat:{data}" not in found  # pytest's own importer asks of the files
    for name in ("first_module", "second_module"):
        del sys.modules[name]
