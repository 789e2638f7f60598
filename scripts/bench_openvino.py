#!/usr/bin/env python3
"""edgeq's static-int8 on OpenVINO beside NNCF's on the same float file: `scripts/bench openvino [MODEL,MODEL...]`.

torchvision models with seeded weights and batch norms estimated on the samples, or an `encoder` of four layers; one
thread, calls in turns in one process. Printed are the p50 and the p10 of each, which other work on the machine disturbs
least, the ratio of the p10, the median of the ratios within a turn with its quartiles, sizes, and the SQNR against the
float model on inputs that nothing was calibrated on. edgeq's is measured with weights of seven bits, as the target has
them, and of eight; beside it its file for ONNX Runtime. NNCF is measured where it is installed: `.uv/bin/uv pip install
--python .venv/bin/python nncf`; `scripts/setup` takes it away again.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # with it, NNCF reports its use to its makers
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from bench_latency_peers import latencies_ms  # noqa: E402
from bench_models import ENCODER, FEATURES, STEPS, encoder  # noqa: E402
from small_models import dataset, loaded, lowered, quantized  # noqa: E402

from edgeq.core.results.model import LoadedModel, TensorSpec  # noqa: E402
from edgeq.core.samples import batches  # noqa: E402
from edgeq.core.system import openvino  # noqa: E402
from edgeq.verify.runtimes import RUNNERS  # noqa: E402

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224))
MODELS = "mobilenet_v2,resnet18"
SAMPLES, TURNS = 16, 200


def seeded(name: str) -> LoadedModel:
    """Return a model whose batch norms are estimated on the calibration samples; "encoder" is one of four layers."""
    torch.manual_seed(0)
    if name == ENCODER:
        return loaded(encoder().eval(), TensorSpec(name="x", dtype="float32", shape=(1, STEPS, FEATURES)))
    module = torchvision.models.get_model(name, weights=None)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    module.train()
    images = [torch.from_numpy(batch.inputs[0].copy()) for batch in batches(dataset((IMAGE,), SAMPLES), (IMAGE,))]
    with torch.no_grad():
        module(torch.cat(images))
    return loaded(module.eval(), IMAGE)


def artifacts(model: LoadedModel, folder: Path) -> dict[str, tuple[str, Path]]:
    """Return the runtime and the file of each competitor."""
    samples = dataset(model.inputs, SAMPLES)
    made = {}
    for name, runtime, backend, reduced in (
        ("edgeq openvino, 7 bits", "openvino", "openvino", True),
        ("edgeq openvino, 8 bits", "openvino", "openvino", False),
        ("edgeq ort", "onnx", "ort", True),
    ):
        graph = quantized(model, runtime, backend=backend, calibration=samples, reduce_range=reduced)
        made[name] = (runtime, lowered(graph, model.inputs, folder / name, runtime, backend=backend).path)
    floats = quantized(model, "openvino", "fp32", backend="openvino")
    path = lowered(floats, model.inputs, folder / "fp32", "openvino", backend="openvino").path
    made["fp32 openvino"] = ("openvino", path)
    if importlib.util.find_spec("nncf") is not None:
        library = openvino()
        import nncf

        data = nncf.Dataset([batch.inputs[0] for batch in batches(samples, model.inputs)])
        kind = nncf.ModelType.TRANSFORMER if len(model.inputs[0].shape) == 3 else None
        floats = library.Core().read_model(str(path))
        theirs = nncf.quantize(floats, data, subset_size=SAMPLES, model_type=kind)
        library.serialize(theirs, str(folder / "nncf.xml"))
        made["nncf"] = ("openvino", folder / "nncf.xml")
    return made


def tenth(times: list[float]) -> float:
    """Return the p10."""
    return statistics.quantiles(times, n=10)[0]


def sqnr_db(expected: Any, came: Any) -> float:
    return float(10 * np.log10((expected**2).sum() / max(((expected - came) ** 2).sum(), 1e-30)))


def main() -> int:
    """Print a table for each model."""
    print(f"{datetime.date.today()}, static-int8, 224x224, one thread, {TURNS} turns; load {os.getloadavg()[0]:.1f}")
    for name in (sys.argv[1] if len(sys.argv) > 1 else MODELS).split(","):
        model = seeded(name)
        with tempfile.TemporaryDirectory() as folder:
            made = artifacts(model, Path(folder))
            runners = {}
            for kind, (runtime, path) in made.items():
                backend = "ort" if runtime == "onnx" else "openvino"
                runners[kind] = RUNNERS[runtime](path, backend, 1, trusted=True)
                runners[kind].load()
            fresh = np.random.default_rng(99).random((8, *model.inputs[0].shape), dtype=np.float32)
            outputs = {kind: np.stack([one.run((x,))[0] for x in fresh]) for kind, one in runners.items()}
            calls = {kind: functools.partial(one.call, (fresh[0],)) for kind, one in runners.items()}
            seen = latencies_ms(calls, TURNS)
            peer = "nncf" if "nncf" in seen else "fp32 openvino"
            against = seen[peer]
            print(f"{name}: ratios to {peer}{'' if peer == 'nncf' else ', since NNCF is not installed'}")
            for kind, times in seen.items():
                low, middle, high = statistics.quantiles([a / b for a, b in zip(times, against, strict=True)], n=4)
                path = made[kind][1]
                size = sum(one.stat().st_size for one in (path, path.with_suffix(".bin")) if one.exists())
                sqnr = sqnr_db(outputs["fp32 openvino"], outputs[kind])
                print(
                    f"{name} {kind}: p50 {statistics.median(times):.2f} ms, p10 {tenth(times):.2f} ms, ratio of p10"
                    f" {tenth(times) / tenth(against):.3f}, within a turn {middle:.3f} [{low:.3f}, {high:.3f}],"
                    f" {size / 1e6:.2f} MB, {sqnr:.1f} dB",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
