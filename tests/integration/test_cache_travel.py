"""One entry of the cache serves two checkouts in different folders, and two environments at different paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import MODEL, X86

LOADING = """
from pathlib import Path

import numpy as np
from quarters import example_inputs, model as plain

HERE = Path(__file__).resolve().parent


def model():
    net = plain()
    if (HERE / "gain.txt").exists():
        net.head.bias.data += float(np.loadtxt(HERE / "gain.txt"))
    return net
"""


@pytest.mark.slow
def test_an_entry_serves_another_checkout_and_another_environment(tmp_path: Path) -> None:
    # a virtual environment at another path: its libraries are those of this one, by a link
    environment, library = tmp_path / "venv", Path(sysconfig.get_path("purelib"))
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
    place = environment / library.relative_to(sys.prefix)
    place.parent.mkdir(parents=True)
    place.symlink_to(library)

    def package(python: str | Path, folder: str, **variables: str) -> dict[str, object]:
        command = [str(python), "-m", "edgeq", "package", "loading.py:model", "--scheme", "fp32", "-t", X86]
        command += ["--name", "quarters", "--quiet", "--json"]
        cache = {"EDGEQ_CACHE_DIR": str(tmp_path / "cache")}
        ran = subprocess.run(
            command, cwd=tmp_path / folder, env={**os.environ, **cache, **variables}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        row: dict[str, object] = json.loads(ran.stdout)["rows"][0]
        return row

    for folder in ("one", "elsewhere/two"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "quarters.py").write_text(MODEL)
        (tmp_path / folder / "loading.py").write_text(LOADING)
        (tmp_path / folder / "gain.txt").write_text("1")
    first = package(sys.executable, "one")
    second = package(environment / "bin" / "python", "elsewhere/two")
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["digest"] == first["digest"]
    (tmp_path / "elsewhere/two/gain.txt").write_text("2")
    third = package(environment / "bin" / "python", "elsewhere/two")
    assert not third["cached"]
    assert third["digest"] != first["digest"]
