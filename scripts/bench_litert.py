#!/usr/bin/env python3
"""edgeq's int8 on LiteRT beside Google's own quantizer on the same model: `scripts/bench litert [MODEL,MODEL...]`.

torchvision models with seeded weights and batch norms estimated on the samples, and the digits model, one thread, calls
in turns in one process. Printed are the p50 and the p10 of each, which other work on the machine disturbs least, the
ratio of the p10, sizes, and the SQNR against the float model on inputs that nothing was calibrated on. The other files
are those of scripts/plain_litert.py, with float ends as edgeq's have them.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "scripts")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_latency_peers import latencies_ms  # noqa: E402
from bench_openvino import IMAGE, SAMPLES, seeded, sqnr_db, tenth  # noqa: E402
from small_models import Silent, dataset, loaded, lowered, quantized, sample  # noqa: E402
from torch import nn  # noqa: E402

from edgeq.core.preprocess import apply  # noqa: E402
from edgeq.core.results.model import LoadedModel, TensorSpec  # noqa: E402
from edgeq.core.samples import Dataset, batches  # noqa: E402
from edgeq.demo import digits  # noqa: E402
from edgeq.lower import tflite  # noqa: E402
from edgeq.lower.litert_environment import ensure_converter  # noqa: E402
from edgeq.verify.runtimes import RUNNERS  # noqa: E402

MODELS, TURNS = "digits,mobilenet_v2", 200


def drawn(data: dict[str, Any], count: int) -> list[Any]:
    """Return digits as the model takes them."""
    return [apply(digits.PREPROCESS, pixels)[None] for pixels in data["image"][:count]]


def competition(name: str) -> tuple[LoadedModel, Dataset, list[Any]]:
    """Return a model, what it is calibrated on, and inputs to compare outputs on."""
    if name != "digits":
        fresh = list(np.random.default_rng(99).random((8, *IMAGE.shape), dtype=np.float32))
        return seeded(name), dataset((IMAGE,), SAMPLES), fresh
    spec = TensorSpec(name="image", dtype="float32", shape=(1, 1, 32, 32))
    known = drawn(digits.calibration_data(), 128)
    data = Dataset(origin="digits", count=len(known), read=lambda i: sample(known[i], name=f"s{i}"), labelled=False)
    model = dataclasses.replace(loaded(nn.Identity, spec), model=digits.model())
    return model, data, drawn(digits.evaluation_data(), 64)


def artifacts(model: LoadedModel, data: Dataset, folder: Path) -> dict[str, Path]:
    """Return the file of each competitor."""
    made = {}
    for scheme in ("static-int8", "dynamic-int8", "fp32"):
        graph = quantized(model, "litert", scheme, backend="litert", calibration=data)
        made[f"edgeq {scheme}"] = lowered(graph, model.inputs, folder / scheme, "litert", backend="litert").path
    source, samples = folder / "model.pt2", folder / "samples.npy"
    example = tuple(torch.zeros(spec.shape) for spec in model.inputs)
    torch.export.save(torch.export.export(model.model, example), source)
    np.save(samples, np.stack([batch.inputs[0] for batch in batches(data, model.inputs)]))
    python = ensure_converter(Silent())
    script = ROOT / "scripts" / "plain_litert.py"
    subprocess.run([str(python), "-I", str(script), str(source), str(samples), str(folder)], check=True)
    # what their quantizer leaves to the app, edgeq's file does
    theirs = tflite.load_converted(folder / "static.tflite")
    tflite.give_float_ends(theirs, ["float32"])
    tflite.save(theirs, folder / "static.tflite")
    return made | {f"Google's {name}": folder / f"{name}.tflite" for name in ("static", "dynamic", "float")}


def main() -> int:
    """Print a table for each model."""
    print(f"{datetime.date.today()}, one thread, {TURNS} turns; load {os.getloadavg()[0]:.1f}")
    for name in (sys.argv[1] if len(sys.argv) > 1 else MODELS).split(","):
        model, data, fresh = competition(name)
        with torch.no_grad():
            expected = np.stack([model.model(torch.from_numpy(np.array(x))).numpy() for x in fresh])
        with tempfile.TemporaryDirectory() as folder:
            made = artifacts(model, data, Path(folder))
            runners = {kind: RUNNERS["litert"](path, "litert", 1, trusted=True) for kind, path in made.items()}
            for runner in runners.values():
                runner.load()
            outputs = {kind: np.stack([one.run((x,))[0] for x in fresh]) for kind, one in runners.items()}
            calls = {kind: functools.partial(one.call, (fresh[0],)) for kind, one in runners.items()}
            seen = latencies_ms(calls, TURNS)
            against = tenth(seen["Google's static"])
            for kind, times in seen.items():
                print(
                    f"{name} {kind}: p50 {statistics.median(times):.3f} ms, p10 {tenth(times):.3f} ms, ratio of p10 to"
                    f" Google's static {tenth(times) / against:.3f},"
                    f" {made[kind].stat().st_size} bytes, {sqnr_db(expected, outputs[kind]):.1f} dB",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
