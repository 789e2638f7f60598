#!/usr/bin/env python3
"""Run the how-tos of docs/howto as a reader would: each in a folder of its own, its files written, its commands typed.

A block of code whose first line is a comment with a file's name is that file. Blocks of `sh` run in order, by bash,
with `edgeq` on the PATH; the first command that fails ends the page.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"^(?:#|//) ([\w./-]+\.\w+)\n")


def files_and_commands(text: str) -> tuple[dict[str, str], str]:
    """Return the files of a page by name, and its commands as one script."""
    files, script = {}, ["set -euo pipefail"]
    for kind, block in _BLOCK.findall(text):
        if kind == "sh":
            script.append(block)
        elif (name := _NAME.match(block)) is not None:
            files[name[1]] = block
    return files, "\n".join(script)


def run(page: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in a new folder, and return how it ended with all that it printed."""
    files, script = files_and_commands(page.read_text(encoding="utf-8"))
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with tempfile.TemporaryDirectory(prefix="edgeq-howto-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        command = ["bash", "-c", script]
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )


def main() -> int:
    """Run the named pages, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="docs/howto/NAME.md; all if none is given")
    parser.add_argument("--verbose", action="store_true", help="print what the commands print")
    given = parser.parse_args()
    failed = 0
    for page in given.pages or sorted((ROOT / "docs/howto").glob("*.md")):
        start = time.monotonic()
        done = run(page)
        failed += done.returncode != 0
        verdict = "ok" if done.returncode == 0 else f"ended with {done.returncode}"
        print(f"{page.name}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
        if given.verbose or done.returncode:
            print(done.stdout, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
