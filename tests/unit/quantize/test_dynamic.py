"""Linear layers whose weights forward reads by itself: a packed layer has none that it could read."""

from __future__ import annotations

import pytest
import torch
from small_models import forward, loaded, quantized, sample
from torch import nn
from torch.nn import functional

from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Batch
from edgeq.quantize.dynamic import _weights_read_elsewhere

FOUR = TensorSpec(name="x", dtype="float32", shape=(1, 16), low=-1.0)


class Reading(nn.Module):
    """A layer that is called, one that is read, as in torchvision's Swin, and one that only training uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.read, self.auxiliary = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        return functional.linear(self.called(x), self.read.weight, self.read.bias)


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_a_layer_that_is_read_is_quantized_too(backend):
    model = loaded(Reading, FOUR)
    found = quantized(model, scheme="dynamic-int8", backend=backend)
    assert {"called", "read"} <= {*found.quantized}
    x = torch.rand(1, 16, generator=torch.Generator().manual_seed(1)).numpy()
    (measured,) = forward(found.graph, backend)(Batch(inputs=(x,), samples=(sample(x),)))
    with torch.no_grad():
        expected = model.model(torch.from_numpy(x)).numpy()
    assert 0 < abs(measured - expected).max() < 0.05 * abs(expected).max()


def test_a_layer_that_nothing_uses_is_no_reason_and_parameters_keep_their_order():
    class Auxiliary(Reading):
        def forward(self, x):
            return self.read(self.called(x))

    x = torch.rand(1, 16)
    for net, expected in ((Reading(), True), (Auxiliary(), False)):
        before = [name for name, _ in net.named_parameters()]
        assert _weights_read_elsewhere(net, (x,)) == expected
        assert [name for name, _ in net.named_parameters()] == before
