"""Measure `edgeq build`: three models on two targets against the sum of single runs, an unchanged build, the report.

Ratios within one run, with an empty cache each; run it on an idle machine: .venv/bin/python scripts/bench_build.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ("android-arm64-xnnpack", "linux-x86_64-x86")
MODELS = ("one", "two", "three")
RATIO, UNCHANGED_S, REPORT_BYTES = 0.75, 3.0, 300_000


def main() -> int:
    """Print each figure with its limit; the exit code says whether all were reached."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "edgeq.toml").write_text(project())
        single_s = sum(timed(root, ["build", name, "-q"], cache=f"single-{name}") for name in MODELS)
        whole_s = timed(root, ["build", "-q"], cache="whole")
        again_s = timed(root, ["build", "-q"], cache="whole")
        size = max(path.stat().st_size for path in (root / "out").rglob("report.html"))
    figures = (
        ("three models on two targets, of the sum of single runs", whole_s / single_s, RATIO, "x"),
        ("unchanged build", again_s, UNCHANGED_S, "s"),
        ("largest report.html", float(size), float(REPORT_BYTES), "B"),
    )
    print(f"single runs {single_s:.1f} s in all, one build {whole_s:.1f} s")
    for name, value, limit, unit in figures:
        print(f"{name}: {value:,.2f} {unit}, to reach {limit:,.2f} {unit}{'' if value <= limit else ', missed'}")
    return int(any(value > limit for _, value, limit, _ in figures))


def project() -> str:
    """Return three models with equal work and different seeds, so that none is another's cache entry."""
    lines = [f"targets = {list(TARGETS)!r}", 'device.on = "host"']
    for seed, name in enumerate(MODELS):
        lines += ["[[model]]", f'name = "{name}"', 'source = "digits"', f"seed = {seed}"]
    return "\n".join(lines) + "\n"


def timed(root: Path, args: list[str], *, cache: str) -> float:
    """Return the seconds of one run of edgeq."""
    env = {**os.environ, "EDGEQ_CACHE_DIR": str(root / "cache" / cache)}
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "edgeq", *args], cwd=root, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
