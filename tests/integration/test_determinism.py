"""One digest for one input, wherever and however it was built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.bundle.archive import bundle_zip

from .conftest import QNNPACK, Project, command

# run in a shell of its own, since umask belongs to the process
RUN = 'umask {umask} && cd "{folder}" && exec "{python}" -m edgeq package {args}'


def build(folder: Path, umask: str, **variables: str) -> list[dict[str, object]]:
    args = " ".join((*command(target=QNNPACK), "--out", "made/here", "--no-cache", "--quiet", "--json"))
    line = RUN.format(umask=umask, folder=folder, python=sys.executable, args=args)
    process = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert process.returncode == 0, process.stderr
    rows: list[dict[str, object]] = json.loads(process.stdout)["rows"]
    return rows


@pytest.mark.slow
def test_two_runs_in_different_places_give_the_same_bytes(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a much longer path, with a blank" / "project"
    shutil.copytree(project.root, elsewhere)
    first = build(project.root, "022", PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C")
    second = build(elsewhere, "077", PYTHONHASHSEED="2", TZ="Asia/Tokyo", LC_ALL="C.UTF-8", OMP_NUM_THREADS="2")
    assert [row["digest"] for row in first] == [row["digest"] for row in second]
    for row in first:
        one, two = (folder / str(row["path"]) for folder in (project.root, elsewhere))
        assert bundle_zip(one) == bundle_zip(two)
        manifest = (one / "manifest.json").read_text()
        assert str(tmp_path) not in manifest
        for path in one.iterdir():
            if path.name != "report.json":
                assert str(tmp_path).encode() not in path.read_bytes(), f"{path.name} names a path of this machine"
    shutil.rmtree(project.root / "made")
