"""A graph as a function: its weights are dequantized once, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import IMAGE, artifact, dataset

from edgeq.core.samples import batches
from edgeq.quantize.graph_runner import forward

torch = pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["static-int8", "fp32"])
def test_a_graph_gives_to_the_bit_what_it_gave(scheme: str) -> None:
    graph = artifact("executorch", scheme, "xnnpack")[0].graph
    run = forward(graph)
    with torch.no_grad():
        for batch in batches(dataset((IMAGE,), 3), (IMAGE,)):
            (expected,) = torch.utils._pytree.tree_leaves(graph(*map(torch.from_numpy, batch.inputs)))
            np.testing.assert_array_equal(run(batch)[0], expected.numpy())


@pytest.mark.slow
def test_weights_are_dequantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = artifact("executorch", "static-int8", "xnnpack")[0].graph
    ran: list[str] = []
    call = torch.fx.Interpreter.call_function

    def seen(self: object, target: object, *rest: object) -> object:
        ran.append(str(target))
        return call(self, target, *rest)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", seen)
    run = forward(graph)
    for batch in batches(dataset((IMAGE,), 2), (IMAGE,)):
        run(batch)
    assert any("dequantize_per_tensor" in name for name in ran)
    assert not any("dequantize_per_channel" in name for name in ran)
