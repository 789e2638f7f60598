"""What a model is made of decides what --scheme auto tries first."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_models import IMAGE, SmallNet, loaded
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.quantize.capture import run_once

SEQUENCE = TensorSpec(name="x", dtype="float32", shape=(2, 5, 16))


class Recurrent(nn.Module):
    """The outputs of an LSTM or GRU."""

    def __init__(self, kind):
        super().__init__()
        self.net = kind(16, 32, batch_first=True)

    def forward(self, x):
        return self.net(x)[0]


def work_of(model):
    return run_once(model)[1]


def linear_macs(model):
    return work_of(model).matrix_share


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


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_told_from_linear_ones_eager_scripted_or_exported(kind):
    model = loaded(nn.Sequential(Recurrent(kind), nn.Linear(32, 4)), SEQUENCE)
    x = torch.zeros(SEQUENCE.shape)
    program = torch.export.export(model.model, (x,))
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    for one in (
        model,
        dataclasses.replace(model, model=torch.jit.script(model.model)),
        dataclasses.replace(model, kind="exported", model=program),
    ):
        work = work_of(one)
        assert work.recurrent_macs == 2 * 5 * gates * 32 * (16 + 32)
        assert work.linear_macs == 2 * 5 * 32 * 4
        assert work.attention_products == 0


def test_products_of_two_activations_are_counted_fused_or_not_and_those_with_weights_are_not():
    class Attention(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.qkv, self.mix, self.fused = nn.Linear(16, 48), nn.Parameter(torch.rand(2, 16, 16)), fused

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            if self.fused:
                x = nn.functional.scaled_dot_product_attention(q, k, v)
            else:
                x = (q @ k.transpose(1, 2)).softmax(-1) @ v
            return x @ self.mix  # a product of batches, with weights

    plain, fused = (work_of(loaded(Attention(fused), SEQUENCE)) for fused in (False, True))
    assert plain == fused
    assert (plain.attention_products, plain.attention_macs) == (2, 2 * 2 * 5 * 5 * 16)
    assert plain.linear_macs == 2 * 5 * 16 * 48 + 2 * 5 * 16 * 16


def test_a_model_that_cannot_be_watched_still_runs():
    class Refusing(nn.Module):
        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("not below a dispatch mode")
            return x * 2

    outputs, work = run_once(loaded(Refusing(), SEQUENCE))
    assert outputs[0].shape == SEQUENCE.shape
    assert work is None


def test_the_tables_that_lookups_read_are_known_exported_or_not():
    class Recommender(nn.Module):
        """A table of 100 x 4, a bag of 50 x 4, and 8 x 4 + 4 other weights."""

        def __init__(self):
            super().__init__()
            self.words, self.bag, self.head = nn.Embedding(100, 4), nn.EmbeddingBag(50, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(torch.cat((self.words(x[:, 0]), self.bag(x)), 1))

    model = loaded(Recommender, TensorSpec(name="x", dtype="int64", shape=(2, 5), high=49))
    assert work_of(model).table_share == pytest.approx(600 / 636)
    program = torch.export.export(model.model, (torch.zeros((2, 5), dtype=torch.int64),))
    assert work_of(dataclasses.replace(model, kind="exported", model=program)).table_share == pytest.approx(600 / 636)
    assert work_of(loaded(SmallNet)).table_share == 0
