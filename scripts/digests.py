#!/usr/bin/env python3
"""Print `target scheme digest` of the digits model's bundles, sorted, to compare a change's artifacts before and after.

Every target is packaged on this host without the cache, for its default scheme unless --scheme names others. A change
that must not change artifacts is checked so, on one machine and with one requirements.lock:

    scripts/digests > before.txt        # on main
    scripts/digests > after.txt         # on the branch
    diff before.txt after.txt           # no output: every bundle has the same digest

The report of an earlier `edgeq package --json` can stand for the first run: `scripts/digests --report report.json`
prints its rows in the same form. A bundle whose gates failed has a digest and is listed as well, with a note on
stderr; digests say whether two bundles are equal, not whether they are good.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgeq.core.profiles import profile_files  # noqa: E402


def lines(report: dict[str, Any]) -> list[str]:
    """Return `target scheme digest` for each row of a report, sorted."""
    return sorted(f"{row['target']} {row['scheme']} {row['digest']}" for row in report["rows"])


def packaged(targets: Sequence[str], schemes: Sequence[str]) -> dict[str, Any]:
    """Package digits for the targets and return the JSON report; ends the script if there is none."""
    words = [part for name in targets for part in ("--target", name)]
    words += [part for name in schemes for part in ("--scheme", name)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "edgeq",
                "package",
                "digits",
                *words,
                "--on",
                "host",
                "--no-cache",
                "--json",
                "-o",
                "out",
            ],
            cwd=folder,  # no edgeq.toml of another project is read there
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
    report: dict[str, Any] = json.loads(done.stdout or "{}")
    if "rows" not in report:
        sys.exit(done.returncode or 1)  # its error is on stderr
    return report


def main() -> None:
    """Print the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help="repeatable; all that edgeq ships if not given")
    parser.add_argument("--scheme", action="append", default=[], help="repeatable; each target's first if not given")
    parser.add_argument("--report", type=Path, help="print the rows of this JSON report; package nothing")
    asked = parser.parse_args()
    if asked.report is not None:
        report = json.loads(asked.report.read_text(encoding="utf-8"))
    else:
        report = packaged(asked.target or sorted(profile_files()), asked.scheme)
    for row in report["rows"]:
        if row["exit_code"]:
            print(f"{row['target']} {row['scheme']}: gates failed, exit code {row['exit_code']}", file=sys.stderr)
    print("\n".join(lines(report)))


if __name__ == "__main__":
    main()
