"""The figures of emulation, each beside its limit: `scripts/bench emulation [--models FOLDER]`, on an idle machine.

Installing the runtimes without the download of their wheels; `edgeq verify` of 16 mobilenet_v2 samples on cortex-a53
and of 300 digits on two CPU models, `.pte` and `.ptl`, each the whole command; and whether five counts are equal.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeq.core.files import cache_folder

ROOT = Path(__file__).resolve().parents[1]
EDGEQ = (sys.executable, "-m", "edgeq")
GOLDEN = ROOT / "tests" / "golden" / "0.1.0" / "digits"
MOST_S = {"install": 90.0, "mobilenet_v2": 60.0, "digits": 60.0}
COUNTS = 5
SIDE = 224


def main() -> None:
    """Print a line for each figure; exit with 1 where one misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", metavar="FOLDER", type=Path, help="keeps the mobilenet_v2 bundle between runs")
    options = parser.parse_args()
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    _run("emulator", "install", "-q")  # the download, if it is still to be made
    with tempfile.TemporaryDirectory(prefix="edgeq-bench-") as name:
        folder = options.models or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        reached = [_install(Path(name)), _mobilenet(folder)]
        reached += [_digits(kind) for kind in ("android-arm64-xnnpack", "android-arm64-qnnpack")]
        reached.append(_counts(_bundle(folder)))
    sys.exit(not all(reached))


def _run(*words: str, cache: Path | None = None) -> tuple[float, str]:
    """Run edgeq; return the seconds that it took, and what it printed."""
    environment = os.environ | ({"EDGEQ_CACHE_DIR": str(cache)} if cache else {})
    start = time.perf_counter()
    done = subprocess.run([*EDGEQ, *words], env=environment, capture_output=True, text=True, check=False)
    took_s = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"edgeq {' '.join(words)} ended with {done.returncode}:\n{done.stderr}\n{done.stdout[-2000:]}")
    return took_s, done.stdout


def _told(what: str, took_s: float, most_s: float) -> bool:
    print(
        f"{what:<70} {took_s:6.1f} s  (at most {most_s:.0f} s)  {'reached' if took_s <= most_s else 'MISSED'}",
        flush=True,
    )
    return took_s <= most_s


def _install(scratch: Path) -> bool:
    """Compile and self-test in a cache that holds nothing but the wheels."""
    wheels = scratch / "cache" / "emulator" / "wheels"
    wheels.parent.mkdir(parents=True)
    wheels.symlink_to(cache_folder() / "emulator" / "wheels")
    took_s, _ = _run("emulator", "install", "-q", cache=scratch / "cache")
    return _told("emulator install, wheels cached", took_s, MOST_S["install"])


def _bundle(folder: Path) -> Path:
    """Return mobilenet_v2 as int8, packaged once; how long that takes is `scripts/bench package`'s to say."""
    place = folder / "mobilenet_v2" / "android-arm64-xnnpack"
    if not place.exists():
        rng = np.random.default_rng(0)
        for name, count in (("calibration", 8), ("evaluation", 16)):
            images = rng.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)
            np.savez(folder / f"{name}.npz", x=images, y=rng.integers(0, 1000, count))
        data = ("--calibration-data", str(folder / "calibration.npz"), "--eval-data", str(folder / "evaluation.npz"))
        words = ("torchvision:mobilenet_v2", "-t", "android-arm64-xnnpack", "--input", f"1x3x{SIDE}x{SIDE}", *data)
        _run("package", *words, "--on", "host", "--data-lint", "warn", "-o", str(folder), "-q")
    return place


def _mobilenet(folder: Path) -> bool:
    words = ("--on", "emulator", "--cpu", "cortex-a53", "--eval-data", str(folder / "evaluation.npz"))
    took_s, said = _run("verify", str(_bundle(folder)), *words, "--device-samples", "16", "--json", "-q")
    (run,) = json.loads(said)["emulation"]["runs"]
    return _told(f"mobilenet_v2 static-int8, {run['samples']} samples on cortex-a53", took_s, MOST_S["mobilenet_v2"])


def _digits(target: str) -> bool:
    words = ("--on", "emulator", "--cpu", "cortex-a53,cortex-a76", "--eval-data", "edgeq.demo.digits:evaluation_data")
    took_s, said = _run("verify", str(GOLDEN / target), *words, "--device-samples", "300", "--json", "-q")
    runs = json.loads(said)["emulation"]["runs"]
    what = f"digits for {target}, {runs[0]['samples']} samples on {' and '.join(run['cpu'] for run in runs)}"
    return _told(what, took_s, MOST_S["digits"])


def _counts(bundle: Path) -> bool:
    """Count the same inference again and again, each in a process of its own."""
    words = ("profile", str(bundle), "--cpu", "cortex-a53", "--json", "-q")
    seen = [json.loads(_run(*words)[1])["cores"] for _ in range(COUNTS)]
    equal = all(one == seen[0] for one in seen)
    print(
        f"counts of mobilenet_v2 static-int8 on cortex-a53, {COUNTS} runs: {'equal' if equal else 'DIFFERENT'}",
        flush=True,
    )
    return equal


if __name__ == "__main__":
    main()
