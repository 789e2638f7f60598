#!/usr/bin/env python3
"""edgeq's static-int8 beside ONNX Runtime's own `quantize_static`: `scripts/bench latency-peers [MODEL,MODEL...]`.

torchvision models with seeded weights, one thread, calls in turns in one process. Printed are the p50 of each, and the
median of the ratios within a turn with its quartiles. Without models: mobilenet_v2, mobilenet_v3_small, resnet18 and
efficientnet_b0. Run it on an idle machine.
"""

from __future__ import annotations

import datetime
import functools
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

import torchvision  # noqa: E402
from small_models import Silent, dataset, loaded, lowered, quantized  # noqa: E402

from edgeq.core.results.model import LoadedModel, TensorSpec  # noqa: E402
from edgeq.core.samples import Dataset, batches  # noqa: E402
from edgeq.quantize.onnx import FileSpec, quantize_file  # noqa: E402
from edgeq.verify.runtimes import RUNNERS, Runner  # noqa: E402

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224))
MODELS = "mobilenet_v2,mobilenet_v3_small,resnet18,efficientnet_b0"
TURNS, WARM_UP, LIMIT = 60, 5, 1.05


def peers(model: LoadedModel, samples: Dataset) -> dict[str, Runner]:
    """Return edgeq's artifact and ONNX Runtime's, of the same float model and calibration samples."""
    folder = Path(tempfile.mkdtemp())
    graph = quantized(model, "onnx", "static-int8", backend="ort", calibration=samples, reduce_range=True)
    ours = lowered(graph, model.inputs, folder / "edgeq", "onnx", backend="ort").path
    floats = lowered(
        quantized(model, "onnx", "fp32", backend="ort"), model.inputs, folder / "fp32", "onnx", backend="ort"
    )
    (folder / "work").mkdir()
    spec = FileSpec(
        path=floats.path,
        folder=folder / "work",
        inputs=model.inputs,
        observer="minmax",
        keep_fp32=(),
        calibration=samples,
        reduce_range=True,
        progress=Silent(),
        label=model.name,
    )
    theirs = folder / "quantize_static.onnx"
    theirs.write_bytes(quantize_file("static-int8", spec).proto.SerializeToString())
    runners = {
        "edgeq": RUNNERS["onnx"](ours, "ort", 1, trusted=True),
        "quantize_static": RUNNERS["onnx"](theirs, "ort", 1, trusted=True),
    }
    for runner in runners.values():
        runner.load()
    return runners


def latencies_ms(calls: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, list[float]]:
    """Return the times of each call, turn by turn."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + WARM_UP):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            if turn >= WARM_UP:
                seen[name].append((time.perf_counter_ns() - start) / 1e6)
    return seen


def main() -> int:
    """Print a line for each model; the exit code says whether all limits were reached."""
    print(f"{datetime.date.today()}, static-int8, 224x224, one thread, {TURNS} turns; load {os.getloadavg()[0]:.1f}")
    missed = 0
    for name in (sys.argv[1] if len(sys.argv) > 1 else MODELS).split(","):
        model = loaded(torchvision.models.get_model(name, weights=None), IMAGE)
        samples = dataset(model.inputs, 16)
        runners = peers(model, samples)
        (batch,) = batches(dataset(model.inputs, 1), model.inputs)
        calls = {kind: functools.partial(one.call, one.tensors(batch.inputs)) for kind, one in runners.items()}
        seen = latencies_ms(calls)
        ratios = [a / b for a, b in zip(seen["edgeq"], seen["quantize_static"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        missed += middle > LIMIT
        times = ", ".join(f"{kind} {statistics.median(values):.2f} ms" for kind, values in seen.items())
        verdict = "reached" if middle <= LIMIT else "MISSED"
        print(f"{name}: {times}, ratio {middle:.3f} [{low:.3f}, {high:.3f}], at most {LIMIT}: {verdict}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
