#!/usr/bin/env python3
"""Make the report pages that the documentation's site shows, by real runs of the built-in model, in a folder.

A folder that was made by the same edgeq is left as it is.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgeq.core.system import edgeq_digest  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of the gallery.

    Attributes:
        path: in the gallery's folder.
        title: what it is.
        shows: what to look at.
        command: that writes it, run in the gallery's folder.
        exit_code: of the command.
    """

    path: str
    title: str
    shows: str
    command: str
    exit_code: int = 0


_PACKAGE = "edgeq package digits -t linux-x86_64-x86 -t linux-x86_64-ort --scheme static-int8 --scheme fp32 --on host"
_INT8, _FP32 = (f"out/digits/linux-x86_64-x86@{scheme}" for scheme in ("static-int8", "fp32"))

PAGES = (
    Page(
        path=f"{_INT8}/report.html",
        title="A bundle",
        shows="the verdict, what was asked and measured beside fp32, layers by their error, latency, predictions that "
        "changed",
        command=f"{_PACKAGE} --limit accuracy_drop=2pp --limit size=1MB",
    ),
    Page(
        path="out/report.html",
        title="A run with several targets and schemes",
        shows="a card for each bundle, and accuracy against size and latency",
        command="",
    ),
    Page(
        path="small/rejected/digits/linux-x86_64-x86/report.html",
        title="A rejected bundle",
        shows="the failed gate first, with its limit and what was measured",
        command="edgeq package digits -t linux-x86_64-x86 --on host --limit size=50kB -o small",
        exit_code=4,
    ),
    Page(
        path="diff.html",
        title="What changed between two bundles",
        shows="each fact in words, and whether it is better or worse",
        command=f"edgeq diff {_FP32} {_INT8} --html diff.html",
    ),
    Page(
        path="compare.html",
        title="Where int8 differs from fp32",
        shows="the error of each output and layer on the same inputs",
        command=f"edgeq compare {_FP32} {_INT8} --html compare.html",
    ),
    Page(
        path="sensitivity.html",
        title="Which layers are sensitive",
        shows="layers by the error that int8 causes in each, and which to keep in float",
        command="edgeq sensitivity digits -t linux-x86_64-x86 --html sensitivity.html",
    ),
)


def make(folder: Path) -> None:
    """Run the commands of all pages in a folder, unless this edgeq has done so."""
    stamp = folder / ".edgeq"
    if stamp.is_file() and stamp.read_text() == edgeq_digest():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in PAGES:
        if page.command:
            argv = [sys.executable, "-m", *shlex.split(page.command)]
            code = subprocess.run(argv, cwd=folder, stdout=subprocess.DEVNULL).returncode
            if code != page.exit_code:
                raise SystemExit(f"error: exit code {code}, expected {page.exit_code}: {page.command}")
        if not (folder / page.path).is_file():
            raise SystemExit(f"error: no {page.path} was written")
    stamp.write_text(edgeq_digest())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
