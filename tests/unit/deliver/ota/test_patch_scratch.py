"""Temporary folders, and those that killed runs left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgeq.deliver.ota.patch import scratch_dir


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path) -> Path:
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_it_is_gone_afterwards(place: Path) -> None:
    with scratch_dir() as folder:
        (folder / "file").write_text("x")
        assert list(place.iterdir()) == [folder]
    assert list(place.iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not(place: Path) -> None:
    code = "from edgeq.deliver.ota.patch import scratch_dir\nimport time\n"
    code += "with scratch_dir() as folder:\n (folder / 'file').touch()\n print(folder, flush=True)\n time.sleep(60)"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
        )
        for _ in range(2)
    ]
    try:
        living, killed = (aged(Path(run.stdout.readline().strip())) for run in runs if run.stdout)
        runs[1].send_signal(signal.SIGKILL)
        runs[1].wait()
        young = place / "edgeq-ota-young"  # perhaps made just now, and not locked yet
        young.mkdir()
        (place / "edgeq-other").mkdir()
        aged(place / "edgeq-other")
        with scratch_dir():
            pass
        assert (living / "file").exists()
        assert not killed.exists()
        assert young.exists()
        assert (place / "edgeq-other").exists()
    finally:
        for run in runs:
            run.kill()
            run.wait()
            if run.stdout:
                run.stdout.close()


def test_a_link_is_not_followed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("precious")
    (target / "file").write_text("x")
    (place / "edgeq-ota-link").symlink_to(target)
    os.utime(place / "edgeq-ota-link", (0, 0), follow_symlinks=False)
    with scratch_dir():
        pass
    assert (target / "file").exists()
