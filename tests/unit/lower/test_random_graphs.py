"""Random small models as artifacts in their runtimes, against fp32, within what rounding each value may cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_models import lowered

from edgeq.verify.host import HostRuntime

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from random_graphs import SPEC, check_rounding, int8_of, outputs_by, seeds

pytestmark = pytest.mark.slow

ROUTES = (("executorch", "xnnpack"), ("onnx", "ort"), ("torchscript", "qnnpack"), ("torchscript", "x86"))


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


@pytest.mark.parametrize("seed", seeds(8, 112))
def test_the_artifact_costs_no_more_than_rounding(seed, runtime, tmp_path):
    kind, backend = ROUTES[seed % 4]
    model, result = int8_of(seed, kind, backend)
    if result is not None:
        made = lowered(result, (SPEC,), tmp_path, kind, backend=backend)
        runtime.load(made.path, runtime=kind, backend=backend, threads=1)
        check_rounding(model, outputs_by(lambda batch: runtime.run(batch.inputs)), backend)
