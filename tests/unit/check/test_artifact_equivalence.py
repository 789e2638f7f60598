from __future__ import annotations

import dataclasses
import math

import pytest

from edgeq.check.artifact import equivalence_gates
from edgeq.core.errors import ExitCode

from .gate_builders import lowered, parity


@pytest.mark.parametrize(
    ("mean_abs", "magnitude", "outcome"),
    [
        (9e-6, 1.0, "ok"),
        (2e-5, 1.0, "failed"),
        (9e-6, 0.5, "failed"),
        (math.nan, 1.0, "failed"),
        (0.0, 0.0, "unverified"),
        (None, None, "unverified"),
    ],
)
def test_the_mean_difference_is_held_to_the_mean_magnitude(mean_abs, magnitude, outcome):
    seen = dataclasses.replace(parity(), mean_abs=mean_abs, mean_magnitude=magnitude)
    (gate,) = equivalence_gates(lowered(runtime="onnx"), "fp32", seen)
    assert (gate.name, gate.outcome, gate.exit_code) == ("equivalence", outcome, ExitCode.VERIFICATION)


def test_only_float_onnx_files_are_held_to_it():
    assert equivalence_gates(lowered(), "fp32", parity()) == ()
    assert equivalence_gates(lowered(runtime="onnx"), "static-int8", parity()) == ()
