"""lock_dir of edgeq._io, with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeq._io import lock_dir
from edgeq.errors import EnvironmentProblem


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_lock_dir_leaves_nothing(tmp_path: Path) -> None:
    with lock_dir(tmp_path / "a" / "b", wait_s=0):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    with lock_dir(tmp_path / "a", wait_s=0):
        (tmp_path / "a" / "kept").touch()
    assert names(tmp_path / "a") == ["kept"]


def hold(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    code = (
        "import sys, time; from pathlib import Path; from edgeq._io import lock_dir\n"
        "with lock_dir(Path(sys.argv[1]), wait_s=5):\n"
        "    print('held', flush=True); time.sleep(float(sys.argv[2]))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    child.stdout.close()
    return child


def test_a_lock_that_is_held_is_waited_for_or_named(tmp_path: Path) -> None:
    child = hold(tmp_path, 0.5)
    with pytest.raises(EnvironmentProblem, match="another edgeq is writing"), lock_dir(tmp_path, wait_s=0.05):
        pytest.fail("two hold the lock")
    with lock_dir(tmp_path, wait_s=10):
        assert child.wait(timeout=5) == 0
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    child = hold(tmp_path, 60)
    child.kill()
    child.wait()
    with lock_dir(tmp_path, wait_s=0):
        pass
    assert names(tmp_path) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    """Four processes add one to a file, 25 times each; with two at once, some of the additions would be lost."""
    folder = tmp_path / "locked"
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = (
        "import sys; from pathlib import Path; from edgeq._io import lock_dir\n"
        "counter = Path(sys.argv[2])\n"
        "for _ in range(25):\n"
        "    with lock_dir(Path(sys.argv[1]), wait_s=30):\n"
        "        counter.write_text(str(int(counter.read_text()) + 1))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(counter)]) for _ in range(4)]
    assert [child.wait(timeout=60) for child in children] == [0] * 4
    assert counter.read_text() == "100"
