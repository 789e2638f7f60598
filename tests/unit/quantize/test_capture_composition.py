"""What a model is made of decides what --scheme auto tries first."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_models import IMAGE, SmallNet, loaded
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.quantize.capture import linear_macs

SEQUENCE = TensorSpec(name="x", dtype="float32", shape=(2, 5, 16))


class Recurrent(nn.Module):
    """The outputs of an LSTM or GRU."""

    def __init__(self, kind):
        super().__init__()
        self.net = kind(16, 32, batch_first=True)

    def forward(self, x):
        return self.net(x)[0]


def test_convolutions_do_the_work_of_a_convolutional_net_exported_or_not():
    model = loaded(SmallNet)
    share = linear_macs(model)
    assert 0 < share < 0.01
    program = torch.export.export(model.model, (torch.zeros(IMAGE.shape),))
    assert linear_macs(dataclasses.replace(model, kind="exported", model=program)) == share


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_matrix_products(kind):
    assert linear_macs(loaded(Recurrent(kind), SEQUENCE)) == 1


def test_so_is_attention_and_the_fused_path_comes_back():
    before = torch.backends.mha.get_fastpath_enabled()
    assert linear_macs(loaded(nn.TransformerEncoderLayer(16, 4, batch_first=True), SEQUENCE)) == 1
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_model_that_multiplies_nothing_has_no_share():
    assert linear_macs(loaded(nn.ReLU(), SEQUENCE)) == 0
