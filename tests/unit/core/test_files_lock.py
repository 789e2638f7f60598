"""lock_dir of edgeq.core.files, with real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem
from edgeq.core.files import lock_dir


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_lock_dir_leaves_nothing(tmp_path: Path) -> None:
    with lock_dir(tmp_path / "a" / "b", wait_s=0):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    with lock_dir(tmp_path / "a", wait_s=0):
        (tmp_path / "a" / "kept").touch()
    assert names(tmp_path / "a") == ["kept"]


def hold(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock until its standard input ends."""
    code = (
        "import sys; from pathlib import Path; from edgeq.core.files import lock_dir\n"
        "with lock_dir(Path(sys.argv[1]), wait_s=60):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    child.stdout.close()
    return child


def test_a_lock_that_is_held_is_waited_for_or_named(tmp_path: Path) -> None:
    child = hold(tmp_path)
    assert child.stdin is not None
    with pytest.raises(EnvironmentProblem, match="another edgeq is writing"), lock_dir(tmp_path, wait_s=0.05):
        pytest.fail("two hold the lock")
    threading.Timer(0.3, child.stdin.close).start()
    with lock_dir(tmp_path, wait_s=60):
        assert child.stdin.closed
        assert child.wait(timeout=60) == 0
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    child = hold(tmp_path)
    child.kill()
    child.communicate()
    with lock_dir(tmp_path, wait_s=0):
        pass
    assert names(tmp_path) == []


def test_a_folder_that_vanishes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib looks whether what is there is a folder, and another run may just have taken it away."""
    is_dir, looked = Path.is_dir, []

    def gone(path: Path) -> bool:
        looked.append(path)
        if len(looked) == 1:
            path.rmdir()
        return is_dir(path)

    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(Path, "is_dir", gone)
    with lock_dir(folder, wait_s=60):
        assert folder.exists()
    assert looked[0] == folder


def test_a_file_in_the_way_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), lock_dir(tmp_path / "file", wait_s=600):
        pytest.fail("it is no folder")


def test_one_at_a_time(tmp_path: Path) -> None:
    """Four processes add one to a file, 25 times each; with two at once, some of the additions would be lost."""
    folder = tmp_path / "locked"
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = (
        "import sys; from pathlib import Path; from edgeq.core.files import lock_dir\n"
        "counter = Path(sys.argv[2])\n"
        "for _ in range(25):\n"
        "    with lock_dir(Path(sys.argv[1]), wait_s=120):\n"
        "        counter.write_text(str(int(counter.read_text()) + 1))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(counter)]) for _ in range(4)]
    assert [child.wait(timeout=300) for child in children] == [0] * 4
    assert counter.read_text() == "100"
