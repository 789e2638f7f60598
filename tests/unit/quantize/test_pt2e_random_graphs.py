"""Random small models on the PT2E route: the converted graph against fp32, within what rounding each value may cost.

`EDGEQ_RANDOM_GRAPHS=2000 pytest tests/unit/quantize/test_random_graphs_pt2e.py` tries more than CI does, and
`EDGEQ_RANDOM_GRAPHS=40:60` the seeds from 40 to 59.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import forward, loaded, quantized, sample

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from random_graphs import SHAPE, RandomNet, allowed_error, images, worst_channel

pytestmark = pytest.mark.slow

SPEC = TensorSpec(name="image", dtype="float32", shape=SHAPE, low=-1.0)
_first, _, _end = os.environ.get("EDGEQ_RANDOM_GRAPHS", "60").rpartition(":")
SEEDS = range(int(_first or 0), int(_end))
CALIBRATION, EVALUATION = images(12, 1), images(12, 2)


def outputs(module, arrays):
    run = forward(module)
    rows = [run(Batch(inputs=(array,), samples=(sample(array),))) for array in arrays]
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_int8_costs_no_more_than_rounding(seed):
    net = RandomNet(seed)
    model = loaded(net, SPEC, seed=seed)
    exact = outputs(net, EVALUATION)
    data = Dataset(
        origin="seeded", count=len(CALIBRATION), read=lambda i: sample(CALIBRATION[i], name=f"s{i}"), labelled=False
    )
    backend = "ort" if seed % 3 == 2 else "xnnpack"
    try:
        result = quantized(
            model,
            "onnx" if backend == "ort" else "executorch",
            backend=backend,
            observer="minmax",
            calibration=data,
        )
    except UnsupportedError as err:
        if " at " not in str(err):
            raise AssertionError(f"refused without the line: {err}") from err
        return
    ratio, where = worst_channel(allowed_error(net, CALIBRATION, EVALUATION), exact, outputs(result.graph, EVALUATION))
    if ratio > 1:
        raise AssertionError(f"{where}: {ratio:.1f} times the error allowed of {net.lines}")
    assert torch.isfinite(torch.from_numpy(exact[0])).all()
