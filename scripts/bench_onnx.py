#!/usr/bin/env python3
"""ONNX Runtime beside PyTorch eager, in one run: `scripts/bench_onnx.py [INPUTS]`, by default 1,000 random inputs.

resnet18 with seeded weights and 102 classes, fp32 and static-int8: bytes, mean difference and argmax agreement against
PyTorch, and the p50 of interleaved runs in one process and one thread.
"""

from __future__ import annotations

import datetime
import os
import statistics
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
from small_models import dataset, forward, loaded, lowered, quantized  # noqa: E402

from edgeq.core.results.model import LoadedModel, TensorSpec  # noqa: E402
from edgeq.core.samples import Batch, batches  # noqa: E402
from edgeq.verify.runtimes import RUNNERS, Runner  # noqa: E402

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224))
RUNS = 40


def opened(model: LoadedModel, scheme: str) -> Runner:
    """Quantize and lower for `linux-x86_64-ort`, as `edgeq package` does, and load it with one thread."""
    samples = dataset(model.inputs, 16)
    graph = quantized(model, "onnx", scheme, backend="ort", calibration=samples, reduce_range=True)
    low = lowered(graph, model.inputs, Path(tempfile.mkdtemp()), "onnx", backend="ort")
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    return runner


def latencies_ms(calls: dict[str, Callable[[Batch], object]], batch: Batch) -> dict[str, float]:
    """Return the p50 of each, taking turns after three runs to warm up."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(RUNS + 3):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call(batch)
            if turn >= 3:
                seen[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    """Print one table."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    torch.set_num_threads(1)
    model = loaded(torchvision.models.resnet18(weights=None, num_classes=102), IMAGE)
    eager = forward(model.model)
    runners = {scheme: opened(model, scheme) for scheme in ("fp32", "static-int8")}
    differences: dict[str, list[float]] = {scheme: [] for scheme in runners}
    agreeing = dict.fromkeys(runners, 0)
    magnitudes = []
    for batch in batches(dataset(model.inputs, inputs), model.inputs):
        (expected,) = eager(batch)
        magnitudes.append(float(np.abs(expected).mean()))
        for scheme, runner in runners.items():
            (came,) = runner.run(batch.inputs)
            differences[scheme].append(float(np.abs(came - expected).mean()))
            agreeing[scheme] += int(came.argmax() == expected.argmax())
    (batch,) = batches(dataset(model.inputs, 1), model.inputs)
    calls = {"eager": eager, **{scheme: lambda b, r=runner: r.run(b.inputs) for scheme, runner in runners.items()}}
    times = latencies_ms(calls, batch)
    size = {scheme: runner.path.stat().st_size for scheme, runner in runners.items()}
    print(f"{datetime.date.today()}, resnet18, {inputs} inputs, mean magnitude {np.mean(magnitudes):.4g}")
    print(f"PyTorch eager: {times['eager']:.2f} ms")
    print("| scheme | bytes | of fp32's | mean difference | argmax agreement | p50, ms | times eager's speed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for scheme in runners:
        print(
            f"| {scheme} | {size[scheme]:,} | {size[scheme] / size['fp32']:.3f} | {np.mean(differences[scheme]):.3g}"
            f" | {agreeing[scheme] / inputs:.1%} | {times[scheme]:.2f} | {times['eager'] / times[scheme]:.2f} |"
        )


if __name__ == "__main__":
    main()
