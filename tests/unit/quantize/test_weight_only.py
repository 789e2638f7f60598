"""Layers whose weights are stored in less than float32."""

from __future__ import annotations

import pytest
from small_models import loaded, lowered, outputs_of, quantized
from torch import nn
from torch.nn import functional

from edgeq.core.results.model import TensorSpec
from edgeq.verify.metrics import Comparison


class Functions(nn.Module):
    """Calls functions with the weights of its layers, as torchvision's Swin does, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.conv = nn.Embedding(40, 16), nn.Linear(16, 24), nn.Conv1d(24, 16, 3, padding=1)

    def forward(self, tokens):
        x = functional.linear(self.embed(tokens), self.qkv.weight, self.qkv.bias)
        x = functional.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias, padding=1)
        return functional.linear(x.transpose(1, 2), self.embed.weight)


@pytest.mark.parametrize(("scheme", "least_db"), [("weight-only-int8", 30), ("fp16", 60)])
def test_functions_may_be_called_with_a_stored_weight(tmp_path, scheme, least_db):
    spec = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=39)
    model = loaded(Functions, spec)
    result = quantized(model, scheme=scheme)
    assert set(result.quantized) == {"embed", "qkv", "conv"}
    sums = Comparison()
    ours, theirs = outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4)
    for got, want in zip(ours, theirs, strict=True):
        sums.add(want, got)
    assert sums.sqnr_db > least_db
    stored = dict(lowered(result, model.inputs, tmp_path, backend="qnnpack").stored)
    weights = sum(part.weight.numel() for part in (model.model.embed, model.model.qkv, model.model.conv))
    assert stored["int8" if scheme == "weight-only-int8" else "float16"] == weights
