"""`edgeq report`: where its views go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_terminal_gets_no_html(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeq", "report", str(tmp_path)]
    leader, terminal = os.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False, env=env)
    os.close(terminal)
    os.close(leader)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the page is HTML for a browser, and the output is a terminal\n"
        "  fix: give `-o report.html`, or `--format markdown` for a table here\n"
    )
