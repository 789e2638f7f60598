from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeq.core.errors import ExitCode, UnsupportedError, UsageError
from edgeq.load.model import _use_linear_layers, settled


def test_a_copy_in_eval_mode_and_contiguous():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    copy = settled(module, "net.py:model")
    assert module.training
    assert not any(part.training for part in copy.modules())
    assert not module[0].weight.is_contiguous()
    assert copy[0].weight.is_contiguous()
    assert not copy[0].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_that_are_not_float32_are_refused(dtype):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).to(dtype))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UnsupportedError, match=rf"expected float32 .*, but 1\.weight is {name}") as caught:
        settled(module, "net.py:model")
    assert caught.value.exit_code == ExitCode.UNSUPPORTED
    assert "model.float()" in caught.value.fix


def test_a_lazy_layer_that_has_not_run_is_refused():
    with pytest.raises(UsageError, match=r"net\.py:model: the shape of 0\.weight is not known yet"):
        settled(nn.Sequential(nn.LazyLinear(4)), "net.py:model")


def test_buffers_that_are_views_become_contiguous():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(6.0).reshape(2, 3).t())

    table = settled(Turned(), "turned").table
    assert table.is_contiguous()
    assert table.tolist() == [[0, 3], [1, 4], [2, 5]]


class Conv1D(nn.Module):
    """As in transformers, which is not among the packages of the tests."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        product = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return product.view(*x.shape[:-1], self.nf)


def test_layers_of_gpt_2_become_linear_ones_under_their_names():
    torch.manual_seed(0)
    shared, x = Conv1D(4, 4), torch.randn(2, 3, 4)
    net = nn.Sequential(nn.Sequential(Conv1D(4, 4), nn.ReLU()), shared, nn.Sequential(shared))
    expected = net(x)
    _use_linear_layers(net)
    assert [type(net[0][0]), type(net[1])] == [nn.Linear, nn.Linear]
    assert net[1] is net[2][0]
    torch.testing.assert_close(net(x), expected)


def test_a_part_that_torch_jit_compiled_can_be_settled_and_traced():
    module = nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))
    copy = settled(module, "net.py:model")
    x = torch.rand(2, 3)
    assert all(tensor.is_leaf and not tensor.requires_grad for tensor in copy.parameters())
    assert torch.equal(torch.jit.trace(copy, x)(x), module(x))
