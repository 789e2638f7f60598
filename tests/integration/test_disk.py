"""A disk that fills up: code 9, the place is named, what was there stays, and nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.bundle.reader import read_bundle

from .conftest import X86, Project, Run

SmallDisk = Callable[[Path, str], Path]


@pytest.mark.parametrize("left", [0, 4, 12, 20])
def test_a_full_disk_is_told_and_leaves_nothing(
    package: Run, project: Project, small_disk: SmallDisk, left: int
) -> None:
    """`left` kB: not enough for the lock, the artifact, the bundle, or its copy in place."""
    out = small_disk(project.out, "128k")
    (out / "ballast").write_bytes(bytes(shutil.disk_usage(out).free - left * 1024))
    result = package("--scheme", "fp32")
    result.fails(9, "no space left", str(project.out.name))
    assert project.names() == ["ballast"]


def test_a_full_disk_leaves_the_earlier_bundle_whole(package: Run, project: Project, small_disk: SmallDisk) -> None:
    out = small_disk(project.out, "256k")
    assert package("--scheme", "fp32").code == 0
    digest = read_bundle(out / "quarters" / X86).digest
    (out / "ballast").write_bytes(bytes(shutil.disk_usage(out).free - 20_000))
    package("--scheme", "fp32", "--model-version", "2").fails(9, "no space left")
    assert read_bundle(out / "quarters" / X86).digest == digest
