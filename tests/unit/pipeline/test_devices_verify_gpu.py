"""Which boxes an artifact is refused on."""

from __future__ import annotations

import pytest

from edgeq.check.device import box_gate
from edgeq.core.errors import ExitCode
from edgeq.core.manifest import CudaBox
from edgeq.core.results.measured import Gpu

PORTABLE = CudaBox(torch="2.15.0", cuda=None, compiled_for=None, least_capability="5.3")
BF16 = PORTABLE.model_copy(update={"least_capability": "8.0"})
COMPILED = PORTABLE.model_copy(update={"cuda": "13.0", "compiled_for": "9.0"})
H200 = Gpu(name="H200", capability="9.0", cuda="13.0")
T4 = Gpu(name="T4", capability="7.5", cuda="13.0")


@pytest.mark.parametrize(
    ("box", "torch", "gpu"),
    [
        (PORTABLE, "2.15.0", None),
        (PORTABLE, "2.16.1", T4),
        (BF16, "2.15.0", None),  # the CPU emulates
        (BF16, "2.15.0", H200),
        (COMPILED, "2.15.3", H200),
        (COMPILED, "2.16.0", None),
    ],
)
def test_boxes_that_fit(box, torch, gpu):
    gate = box_gate(box, torch, gpu)
    assert gate.passed, gate.detail


@pytest.mark.parametrize(
    ("box", "torch", "gpu", "why"),
    [
        (PORTABLE, "2.14.9", None, "an older torch"),
        (PORTABLE, "1.15.0", H200, "an older torch"),
        (BF16, "2.15.0", T4, "GPU is too old"),
        (PORTABLE, "2.15.0", Gpu(name="M60", capability="5.2", cuda="12.0"), "GPU is too old"),
        (COMPILED, "2.15.0", T4, "another GPU"),
        (COMPILED, "2.15.0", Gpu(name="B200", capability="10.0", cuda="13.0"), "another GPU"),
        (COMPILED, "2.16.0", H200, "another torch or CUDA"),
        (COMPILED, "2.15.0", Gpu(name="H200", capability="9.0", cuda="12.8"), "another torch or CUDA"),
    ],
)
def test_boxes_that_do_not(box, torch, gpu, why):
    gate = box_gate(box, torch, gpu)
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.UNSUPPORTED)
    assert why in gate.detail
