"""A short share of every row of `scripts/fault`, and that its harness tells what it is there to tell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# trials of a row or kind: a second or so each on an idle core
SHARES = {
    "kills.release": 3,
    "kills.update": 3,
    "kills.first-update": 3,
    "kills.roll-back": 3,
    "kills.install": 3,
    "errors.release": 8,
    "errors.update": 8,
    "errors.roll-back": 8,
    "errors.install": 8,
    "bits": 40,
    "moved": 34,
    "intact": 8,
    "archives": 200,
    "manifests": 500,
    "indexes": 500,
    "states": 500,
    "profiles": 300,
    "artifacts.pte": 12,
    "artifacts.ptl": 12,
    "round-trips": 40,
    "patches": 500,
    "limits": 84,
}
# killed and disturbed packaging has tests of its own in test_interrupt.py and test_disk.py, builds in test_ota.py
ELSEWHERE = {"kills.package", "kills.cold-package", "errors.package", "errors.first-update", "builds"}


def fault(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-W", "ignore", "-m", "faults", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("row", SHARES)
def test_a_share_of_each_row(tmp_path: Path, row: str) -> None:
    if row.startswith(("kills", "errors")) and shutil.which("cc") is None:
        pytest.skip("no C compiler for the shim")
    done = fault(tmp_path, row, "--count", str(SHARES[row]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{row}: {SHARES[row]} of {SHARES[row]}: all as it should be" in done.stdout
    # what a killed release extracted is removed by one a minute later
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("edgeq-ota-")] == []


def test_every_row_has_a_share(tmp_path: Path) -> None:
    told = fault(tmp_path, "list").stdout.split("\n")
    rows = {line.split()[0] for line in told if line}
    assert rows - ELSEWHERE == set(SHARES)


def test_a_cut_row_goes_on_where_it_was(tmp_path: Path) -> None:
    results, work = tmp_path / "results", tmp_path / "work"
    work.mkdir()
    assert fault(work, "limits", "--count", "10", "--results", str(results)).returncode == 0
    first = json.loads((results / "limits.json").read_text())
    assert (first["done"], first["wanted"], sum(first["seen"].values())) == (10, 10, 10)
    again = fault(work, "limits", "--results", str(results))
    assert "limits: 84 of 84: all as it should be" in again.stdout
    # what is done is not done again, and a trial that went wrong stays wrong
    path = results / "limits.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wrong": 1, "examples": ["trial 3: torn"]}))
    told = fault(work, "limits", "--results", str(results))
    assert told.returncode == 1
    assert "1 WRONG" in told.stdout
    assert "trial 3: torn" in told.stdout


def test_an_unknown_row_is_told(tmp_path: Path) -> None:
    told = fault(tmp_path, "kils")
    assert told.returncode == 1
    assert "no row 'kils'; `scripts/fault list`" in told.stderr


NAIVE = """
import sys
from pathlib import Path
from faults import __main__ as fault, kills, disk_errors
from faults.operations import Operation
from faults.tally import Row
import functools

def prepare(work):
    (work / "target").mkdir()
    (work / "target/file").write_bytes(b"old" * 9)

def naive(work):
    with open(work / "target/file", "wb") as file:
        for _ in range(9):
            file.write(b"new")
            file.flush()

def read(work):
    data = (work / "target/file").read_bytes()
    if data not in (b"old" * 9, b"new" * 9):
        raise ValueError(f"{len(data)} bytes")
    return "whole"

one = Operation(prepare=prepare, run=naive, read=read)
fault.ROWS = {
    "kills": Row(name="kills", full=10, open=functools.partial(kills._open, one), needs_shim=True),
    "errors": Row(name="errors", full=None, open=functools.partial(disk_errors._open, one), needs_shim=True),
}
sys.exit(fault.main())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the shim")
@pytest.mark.parametrize(("row", "told"), [("kills", "torn: ValueError"), ("errors", "ENOSPC at call")])
def test_a_naive_writer_is_found_out(tmp_path: Path, row: str, told: str) -> None:
    """What writes in place is torn by a kill, and half written by a full disk: the harness must say so."""
    shim = tmp_path / "shim.so"
    source = ROOT / "scripts" / "faults" / "shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    env = {**os.environ, "LD_PRELOAD": str(shim), "EDGEQ_FAULT_SHIM": str(shim), "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", NAIVE, row], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG" in done.stdout
    assert told in done.stdout
