#!/usr/bin/env python3
"""Schemes: `scripts/bench quant [sizes|latency|sensitivity|accuracy|mixed]…`, by default the first three.

Sizes are against the fp32 artifact of the same route. Latencies are p50 of interleaved runs in one process and one
thread, against fp32 eager.
"""

from __future__ import annotations

import datetime
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from scheme_models import Encoder  # noqa: E402
from small_models import dataset, loaded, lowered, quantized  # noqa: E402
from torch.jit.mobile import _load_for_lite_interpreter  # noqa: E402

from edgeq.core.results.model import LoadedModel, LoweredModel, QuantizedModel, TensorSpec  # noqa: E402

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 128), low=0, high=30521)
RUNS = 40
SENSITIVITY_S, SENSITIVITY_MB = 360, 3000


def encoder() -> torch.nn.Module:
    """BERT-mini's shape: 4 layers of width 256, 4 heads, 30,522 words."""
    return Encoder(words=30522, width=256, heads=4, depth=4, length=128)


def made(model: LoadedModel, runtime: str, scheme: str, backend: str) -> tuple[QuantizedModel, LoweredModel]:
    """Quantize and lower, as `edgeq package` does, with 8 seeded samples where ranges are observed."""
    graph = quantized(model, runtime, scheme, backend=backend, calibration=dataset(model.inputs, 8))
    return graph, lowered(graph, model.inputs, Path(tempfile.mkdtemp()), runtime, backend=backend)


def sizes() -> None:
    """Print how many times smaller each scheme makes a model."""
    resnet = lambda: torchvision.models.resnet18(weights=None, num_classes=102)  # noqa: E731
    cases = [
        ("resnet18, 102 classes", loaded(resnet(), IMAGE), "static-int8", 3.9),
        ("mobilenet_v2", loaded(torchvision.models.mobilenet_v2(weights=None), IMAGE), "static-int8", 3.7),
        ("encoder", loaded(encoder(), TOKENS), "dynamic-int8", None),
        ("encoder", loaded(encoder(), TOKENS), "weight-only-int8", None),
        ("encoder", loaded(encoder(), TOKENS), "fp16", None),
    ]
    print("| model | scheme | route | fp32, MB | artifact, MB | times smaller | to reach |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model, scheme, goal in cases:
        for runtime, backend in (("torchscript", "qnnpack"), ("torchscript", "x86"), ("executorch", "xnnpack")):
            _, whole = made(model, runtime, "fp32", backend)
            _, small = made(model, runtime, scheme, backend)
            before, after = (item.path.stat().st_size / 1e6 for item in (whole, small))
            ratio = before / after
            print(
                f"| {name} | {scheme} | {backend} | {before:.3f} | {after:.3f} | {ratio:.2f} | {_goal(ratio, goal)} |",
                flush=True,
            )
            if scheme == "dynamic-int8":
                _linear_row(name, backend, whole, small)


def _linear_row(name: str, backend: str, whole: LoweredModel, small: LoweredModel) -> None:
    """Print the same of the linear layers' weights alone, as the artifact holds them."""
    linear = ("addmm", "mm", "linear", "linear_dynamic")
    before, after = (
        sum(layer.weight_bytes for layer in item.layers if layer.op in linear) / 1e6 for item in (whole, small)
    )
    ratio = before / after
    print(
        f"| {name}, its linear weights | dynamic-int8 | {backend} | {before:.3f} | {after:.3f} | {ratio:.2f} |"
        f" {_goal(ratio, 3.5)} |",
        flush=True,
    )


def _goal(ratio: float, goal: float | None) -> str:
    return "" if goal is None else f"{goal}{'' if ratio >= goal else ', missed'}"


def latency() -> None:
    """Print the speed-up over fp32 eager, single thread."""
    torch.set_num_threads(1)
    resnet = loaded(torchvision.models.resnet18(weights=None, num_classes=102), IMAGE)
    bert = loaded(encoder(), TOKENS)
    print("| model | fp32 eager, ms | scheme on the x86 engine | ms | times faster | to reach |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, model, scheme, goal in (
        ("resnet18, 102 classes", resnet, "static-int8", 2.5),
        ("encoder", bert, "dynamic-int8", 1.3),
    ):
        _, low = made(model, "torchscript", scheme, "x86")
        torch.backends.quantized.engine = "x86"
        loader = torch.jit.load if low.path.suffix == ".pt" else _load_for_lite_interpreter
        archive = loader(str(low.path))
        inputs = tuple(torch.from_numpy(array) for array in dataset(model.inputs, 1).read(0).inputs)
        eager, fast = _interleaved((model.model, archive), inputs)
        ratio = eager / fast
        print(f"| {name} | {eager:.2f} | {scheme} | {fast:.2f} | {ratio:.2f} | {_goal(ratio, goal)} |", flush=True)


def sensitivity() -> None:
    """Print what `edgeq sensitivity` takes of mobilenet_v2, 53 layers, on 32 images."""
    print("| target | wall, s | CPU, s | peak memory, MB | to reach |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        np.save(images, np.random.default_rng(0).random((32, 3, 224, 224), dtype=np.float32))
        for target in ("linux-x86_64-x86", "linux-x86_64-xnnpack"):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, "-m", "edgeq", "sensitivity", "torchvision:mobilenet_v2", "-t", target]
            options = ["--input", "1x3x224x224", "--calibration-data", str(images), "--data-lint", "warn", "-q"]
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
            wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            memory_mb = after.ru_maxrss * 1024 / 1e6
            missed = wall_s > SENSITIVITY_S or memory_mb > SENSITIVITY_MB
            goal = f"{SENSITIVITY_S} s, {SENSITIVITY_MB} MB{', missed' if missed else ''}"
            print(f"| {target} | {wall_s:.0f} | {cpu_s:.0f} | {memory_mb:.0f} | {goal} |", flush=True)


def digits_accuracy(*options: str) -> None:
    """Print the accuracy of the digits, by a process of its own."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "bench_quant_accuracy.py"), *options], check=False)


def _interleaved(calls: tuple[Callable[..., object], ...], inputs: tuple[torch.Tensor, ...]) -> tuple[float, ...]:
    """Return each call's median time in ms, taken in turns, so that a busy moment hits them all alike."""
    times: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for turn in range(RUNS + 5):
            for call, taken in zip(calls, times, strict=True):
                start = time.perf_counter_ns()
                call(*inputs)
                if turn >= 5:
                    taken.append((time.perf_counter_ns() - start) / 1e6)
    return tuple(statistics.median(taken) for taken in times)


def main() -> None:
    """Run the parts that were named."""
    parts: dict[str, Callable[[], None]] = {
        "sizes": sizes,
        "latency": latency,
        "sensitivity": sensitivity,
        "accuracy": digits_accuracy,
        "mixed": lambda: digits_accuracy("--mixed"),
    }
    wanted = sys.argv[1:] or list(parts)[:3]
    unknown = [name for name in wanted if name not in parts]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}: {', '.join(parts)}")
    print(f"{datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} cores, one thread")
    for name in wanted:
        parts[name]()


if __name__ == "__main__":
    main()
