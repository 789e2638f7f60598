"""Long fault tests: kills, disk errors, flipped bits, hostile archives, mutated files, patches, limits, digests.

    scripts/fault list                         the rows, and how many trials issue 7 asks for
    scripts/fault kills --count 100            100 trials of each row of a kind
    scripts/fault all --results FOLDER         all rows at full counts, in turn; resumes a stopped run

Exit status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import archives, artifacts, digests, disk_errors, documents, kills, limits, patches, tampering
from .operations import SHIM
from .tally import Row, run_row

_KINDS = (kills, disk_errors, tampering, archives, documents, artifacts, patches, limits, digests)
ROWS = {row.name: row for kind in _KINDS for row in kind.ROWS}


def main() -> int:
    """Run the rows that were asked for, and print what they counted."""
    parser = argparse.ArgumentParser(
        prog="scripts/fault", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", help="names of rows or kinds, `all`, or `list`")
    parser.add_argument("--count", type=int, help="trials of each row; by default what issue 7 asks for")
    parser.add_argument("--results", type=Path, help="a folder that keeps what each row has shown so far")
    options = parser.parse_args()
    if options.rows == ["list"]:
        for row in ROWS.values():
            print(f"{row.name:24}{row.full or 'all':>8}")
        return 0
    rows = [row for name in options.rows for row in _chosen(name)]
    if any(row.needs_shim for row in rows) and SHIM not in os.environ:
        return _again_with_shim()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    codes = [_wrong(row, options.count, options.results) for row in rows]  # all of them, whatever the first shows
    return int(any(codes))


def _chosen(name: str) -> list[Row]:
    rows = [row for row in ROWS.values() if name in ("all", row.name, row.name.split(".")[0])]
    if not rows:
        raise SystemExit(f"error: no row {name!r}; `scripts/fault list` names them")
    return rows


def _wrong(row: Row, count: int | None, results: Path | None) -> int:
    """Run one row in a process of its own, since a runtime that it imports would be in the next row's way."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        with tempfile.TemporaryDirectory(prefix="edgeq-fault-") as work:
            tally = run_row(row, Path(work), count, results)
        print(tally.words(), flush=True)
        os._exit(bool(tally.wrong))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _again_with_shim() -> int:
    """Run this again with the shim in front of libc."""
    source = Path(__file__).with_name("shim.c")
    with tempfile.TemporaryDirectory(prefix="edgeq-shim-") as folder:
        shim = Path(folder) / "shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(source), "-ldl"], check=True)
        env = {**os.environ, "LD_PRELOAD": str(shim), SHIM: str(shim)}
        package = __spec__.parent  # `faults`, or `scripts.faults` in tests
        return subprocess.run([sys.executable, "-W", "ignore", "-m", package, *sys.argv[1:]], env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
