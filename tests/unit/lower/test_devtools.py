"""A BundledProgram is read back by ExecuTorch's own loader, which runs it and compares the outputs."""

from __future__ import annotations

import pytest
from small_models import IMAGE, artifact, dataset, forward

from edgeq.core.samples import batches
from edgeq.lower.devtools import bundled_program


@pytest.mark.slow
def test_executorch_runs_the_cases_and_refuses_a_wrong_one():
    from executorch.extension.pybindings.portable_lib import _load_bundled_program_from_buffer

    quantized, lowered = artifact("executorch", "fp32", "xnnpack")
    given = [batch.inputs for batch in batches(dataset((IMAGE,), 2), (IMAGE,))]
    for (image,) in given:
        image.flags.writeable = False  # as those of golden.npz are
    graph = forward(quantized.graph)
    right, other = ([*graph(batch)] for batch in batches(dataset((IMAGE,), 2), (IMAGE,)))
    cases = [(given[0], tuple(right)), (given[1], (other[0] + 0.1,))]
    data = bundled_program(lowered.path, cases)
    assert lowered.path.read_bytes() in data
    assert bundled_program(lowered.path, cases) == data
    program = _load_bundled_program_from_buffer(data)
    program.verify_result_with_bundled_expected_output("forward", 0, 1e-4, 1e-5)
    with pytest.raises(RuntimeError, match="verification failed"):
        program.verify_result_with_bundled_expected_output("forward", 1, 1e-4, 1e-5)
