"""Single files: written whole or not at all, and errors of the disk in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeq.core import files
from edgeq.core.errors import EnvironmentProblem, UsageError
from edgeq.core.files import canonical_json, disk_errors, lock_dir, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_and_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "x" / "file"
    for data in (b"1", b"2"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_write_atomic_keeps_the_old_file_on_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, function, fail)
    for place in (path, tmp_path / "new" / "file"):
        with pytest.raises(EnvironmentProblem, match="no space left"), disk_errors(place):
            write_atomic(place, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, EnvironmentProblem),
        (errno.EDQUOT, EnvironmentProblem),
        (errno.EROFS, EnvironmentProblem),
        (errno.EACCES, EnvironmentProblem),
        (errno.EIO, EnvironmentProblem),
        (errno.EFBIG, EnvironmentProblem),
        (errno.ENAMETOOLONG, UsageError),
        (errno.EISDIR, UsageError),
        (errno.ENOTDIR, UsageError),
        (errno.EEXIST, UsageError),
        (errno.ENOENT, FileNotFoundError),  # a bug of ours, not of the disk
    ],
)
def test_disk_errors_name_the_place(code: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"the/place|No such"), disk_errors(Path("the/place")):
        raise OSError(code, os.strerror(code))


def test_canonical_json_is_equal_for_equal_values() -> None:
    assert canonical_json({"b": [1.5], "a": "ü"}) == canonical_json({"a": "ü", "b": (1.5,)})
    assert canonical_json({}) == b"{}\n"
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_hashes_agree(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.sha256_file(tmp_path / "file") == files.sha256_bytes(b"abc") == known


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders")
def test_a_place_that_takes_no_folder_is_told():
    told = pytest.raises(EnvironmentProblem, match="cannot create the folder /proc/edgeq-out")
    with told, lock_dir(Path("/proc/edgeq-out"), wait_s=0.0):
        pass
