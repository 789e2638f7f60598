"""Random small models on the PT2E route: the converted graph against fp32, within what rounding each value may cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_models import forward

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from random_graphs import check_rounding, int8_of, outputs_by, seeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", seeds(24, 1007, 1835))
def test_int8_costs_no_more_than_rounding(seed):
    runtime, backend = ("onnx", "ort") if seed % 3 == 2 else ("executorch", "xnnpack")
    model, result = int8_of(seed, runtime, backend)
    if result is not None:
        check_rounding(model, outputs_by(forward(result.graph)), backend)
