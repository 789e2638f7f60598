"""Measure edgeq beside a hand-written script: wall time, peak memory, sizes, sharing, cache. All in one run.

Peak memory is the largest sum of the proportional set sizes (PSS) of a process and its children, sampled from
/proc twice a second, so that edgeq's child processes count too.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_models import ENCODER, FEATURES, STEPS, fresh
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EDGEQ = [str(ROOT / ".venv" / "bin" / "edgeq"), "package"]
IMAGES = 32
LOWERED = 0.6  # of the time of the hand-written script
EXPORTED = 1.3  # of that of the one for ONNX Runtime
ONNX = "linux-x86_64-ort"
EXECUTORCH = ("android-arm64-xnnpack", "linux-x86_64-xnnpack")
TORCHSCRIPT = ("android-arm64-qnnpack", "linux-x86_64-x86")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured command.

    Attributes:
        cpu_s: user time of its processes; unlike the wall time it holds still when other work shares the machine.
    """

    seconds: float
    cpu_s: float
    peak_mb: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=f"mobilenet_v2,resnet18,{ENCODER}")
    parser.add_argument(
        "--pairs", type=int, default=0, help="compare only the scripts and a target of each runtime, N times"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeq-bench-") as name:
        work = Path(name)
        os.environ["EDGEQ_CACHE_DIR"] = str(work / "cache")
        _write_images(work / "images")
        features = np.random.default_rng(0).normal(size=(IMAGES, STEPS, FEATURES))
        np.save(work / "features.npy", features.cumsum(1).astype(np.float32) / 8)  # slow changes, as of speech
        print(f"{datetime.date.today()}, {_cpu()}, {os.cpu_count()} cores, static-int8, {IMAGES} images of 256x256")
        print("edgeq with --on host: the script does not emulate the phones' kernels either")
        for model in options.models.split(","):
            _write_weights(model, work)
            _paired(model, work, options.pairs) if options.pairs else _compare(model, work)
        if not options.pairs:
            _start_up()


def _paired(model: str, work: Path, pairs: int) -> None:
    """Print the ratios of edgeq to the script, each pair run one after the other."""
    for target, most in ((EXECUTORCH[0], LOWERED), (ONNX, EXPORTED)):
        runs = [
            (measured(_script(model, work, target)), measured(_package(model, work, (target,)))) for _ in range(pairs)
        ]
        print(f"\n{model}, {target}, {pairs} pairs")
        for index, (plain, ours) in enumerate(runs):
            _line(f"script {index}", plain)
            _line(f"edgeq {index}", ours)
        for label, values in (
            ("edgeq / script, wall", [ours.seconds / plain.seconds for plain, ours in runs]),
            ("edgeq / script, user CPU", [ours.cpu_s / plain.cpu_s for plain, ours in runs]),
        ):
            _ratio(label, statistics.median(values), most)
            print(f"    from {min(values):.2f} to {max(values):.2f}")


def _script(model: str, work: Path, target: str) -> list[str]:
    """Return the command of the hand-written script for a target's runtime."""
    name, suffix = ("plain_onnx.py", "onnx") if target == ONNX else ("plain.py", "pte")
    script = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / name)]
    data = work / ("features.npy" if model == ENCODER else "images")
    return [*script, model, str(work / f"{model}.pt"), str(data), str(work / f"{model}.{suffix}")]


def _compare(model: str, work: Path) -> None:
    plain_out = work / f"{model}.pte"
    plain = measured(_script(model, work, EXECUTORCH[0]))
    plain_onnx, onnx = measured(_script(model, work, ONNX)), measured(_package(model, work, (ONNX,)))
    one = measured(_package(model, work, EXECUTORCH[:1]))
    again = measured(_package(model, work, EXECUTORCH[:1], cache=True))
    hit = measured(_package(model, work, EXECUTORCH[:1], cache=True))
    alone = [one, *(measured(_package(model, work, (target,))) for target in TORCHSCRIPT)]
    four = measured(_package(model, work, (*EXECUTORCH, *TORCHSCRIPT)))
    dearest = max(run.seconds for run in alone)
    print(f"\n{model}")
    _line("hand-written script", plain, f"{plain_out.stat().st_size / 1e6:.3f} MB")
    artifact = work / "out" / model / EXECUTORCH[0] / "model.pte"
    _line("edgeq, 1 ExecuTorch target", one, f"{artifact.stat().st_size / 1e6:.3f} MB")
    _line("  the same, filling the cache", again)
    _line("  the same, from the cache", hit)
    for target, run in zip(TORCHSCRIPT, alone[1:], strict=True):
        _line(f"edgeq, {target}", run)
    _line("edgeq, 2 ExecuTorch + 2 TorchScript", four)
    _line("hand-written script for ONNX Runtime", plain_onnx)
    _line(f"edgeq, {ONNX}", onnx)
    _ratio("edgeq / script, wall", one.seconds / plain.seconds, LOWERED)
    _ratio("edgeq / script, user CPU", one.cpu_s / plain.cpu_s, LOWERED)
    _ratio("edgeq / script, peak memory", one.peak_mb / plain.peak_mb, 1.2)
    _ratio("four targets / slowest alone", four.seconds / dearest, 1.6)
    _ratio("from the cache, s", hit.seconds, 2.0)
    _ratio("edgeq / script, ONNX, wall", onnx.seconds / plain_onnx.seconds, EXPORTED)
    _ratio("edgeq / script, ONNX, user CPU", onnx.cpu_s / plain_onnx.cpu_s, EXPORTED)


def _package(model: str, work: Path, targets: tuple[str, ...], *, cache: bool = False) -> list[str]:
    chosen = [part for target in targets for part in ("--target", target)]
    weights = ["--weights", str(work / f"{model}.pt"), "--name", model, "--scheme", "static-int8"]
    if model == ENCODER:
        source, samples = f"{ROOT}/scripts/bench_models.py:encoder", work / "features.npy"
        data = ["--input", f"1x{STEPS}x{FEATURES}"]
    else:
        source, samples = f"torchvision:{model}", work / "images"
        data = ["--preprocess", "imagenet"]
    data += ["--calibration-data", str(samples), "--data-lint", "warn"]
    # the script does not run the phones' kernels, and so edgeq does not either
    rest = ["-o", str(work / "out"), "--on", "host", "--quiet", *([] if cache else ["--no-cache"])]
    return [*EDGEQ, source, *weights, *chosen, *data, *rest]


def _line(label: str, run: Run, note: str = "") -> None:
    print(f"  {label:<38}{run.seconds:8.1f} s {run.cpu_s:8.1f} s CPU {run.peak_mb:8.0f} MB  {note}", flush=True)


def _ratio(label: str, value: float, most: float) -> None:
    print(f"  {label:<38}{value:8.2f}   at most {most}: {'reached' if value <= most else 'MISSED'}")


def _start_up() -> None:
    print("\nstart-up, best of 5")
    for words in (["--help"], ["targets", "list"]):
        best = min(measured([EDGEQ[0], *words]).seconds for _ in range(5))
        _ratio("edgeq " + " ".join(words) + ", s", best, 0.5)


def measured(command: list[str]) -> Run:
    """Run a command to its end, and return its wall time and the peak memory of its process tree."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_pss_bytes(pid) for pid in _tree(process.pid)))
        # reading the maps of a torch process takes 20 ms of a core
        time.sleep(0.5 if time.perf_counter() - start > 1 else 0.005)
    seconds = time.perf_counter() - start
    if process.returncode:
        told = process.stderr.read().decode(errors="replace") if process.stderr else ""
        sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{told[-2000:]}")
    cpu_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return Run(seconds=seconds, cpu_s=cpu_s, peak_mb=peak / 1e6)


def _tree(root: int) -> list[int]:
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            continue
        queue += [int(child) for child in children.split()]
    return found


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _write_images(folder: Path) -> None:
    """Write smooth coloured scenes: their neighbouring pixels correlate like those of photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")


def _write_weights(model: str, work: Path) -> None:
    """Write seeded weights whose batch-norm statistics fit the images, so that outputs are not near zero."""
    torch.manual_seed(0)
    module = fresh(model)
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        for _ in range(4 if norms else 0):
            module(torch.nn.functional.interpolate(torch.randn(4, 3, 12, 12), (224, 224), mode="bicubic"))
    torch.save(module.state_dict(), work / f"{model}.pt")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
