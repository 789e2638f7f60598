"""Sizes that vary, captured; a forward that fixes one is refused with input, dimension and line."""

from __future__ import annotations

import pytest
import torch
from small_models import loaded, quantized
from torch import nn

from edgeq.core.errors import UnsupportedError
from edgeq.load.inputs import parse_inputs
from edgeq.quantize.capture import capture, run_once, steps_that_vary


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(128, 4)

    def forward(self, x):
        return self.head(x.flatten(1))


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[2] == 128 else x


class Halves(nn.Module):
    """Halves and doubles its input, and adds it."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv1d(1, 2, 2, stride=2), nn.ConvTranspose1d(2, 1, 2, stride=2)

    def forward(self, x):
        return x + self.up(self.down(x))


class Last(nn.Module):
    """Gives the last step of both directions of a recurrent layer."""

    def __init__(self, kind):
        super().__init__()
        self.layers = kind(3, 4, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.layers(x)[0][:, -1]


class Masked(nn.Module):
    def forward(self, tokens, mask):
        return (tokens.float() * mask).sum(1, keepdim=True)


def model(kind, *texts):
    return loaded(kind(), *parse_inputs(texts))


def refusal(kind, *texts, of=capture):
    with pytest.raises(UnsupportedError) as caught:
        of(model(kind, *texts))
    return caught.value


def test_a_size_that_forward_fixes_is_named_with_the_line():
    err = refusal(Branch, "x=1x1x{time=8..128}")
    assert err.what.startswith("input 'x' cannot vary in dimension 2 (time, 8..128): forward works with 128 only at ")
    assert err.what.endswith(" in Branch.forward")
    assert __file__ in err.what
    assert "x.shape[2]" in err.fix


def test_a_size_that_must_be_even_is_given_a_step():
    err = refusal(Halves, "x=1x1x{time=9..128}")
    assert "(time, 9..128): forward needs time == " in err.what
    assert " in Halves.forward" in err.what
    assert err.fix.startswith("give a range of multiples in --input, {time=10..128/2}, or pad in forward")
    program = capture(model(Halves, "x=1x1x{time=10..128/2}"))
    for size in (10, 66, 128):
        assert program.module()(torch.zeros(1, 1, size)).shape == (1, 1, size)


def test_sizes_that_must_be_equal_need_one_name():
    err = refusal(Masked, "tokens=int64:1x{8..128}:0..9", "mask=1x{8..128}")
    assert "apart from input 'tokens': forward needs equal sizes at " in err.what
    assert "give both sizes one name" in err.fix
    capture(model(Masked, "tokens=int64:1x{seq=8..128}:0..9", "mask=1x{seq=8..128}"))


def test_a_forward_that_fails_on_other_sizes_is_refused_before_it_is_captured():
    err = refusal(Flat, "x=1x1x{time=8..128}", of=run_once)
    assert err.what.startswith("the sizes time=8..128 cannot vary: at time=8, the model fails on its inputs (x ")
    assert " in Flat.forward" in err.what


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_take_any_number_of_steps_as_one_operator(kind):
    one = model(lambda: Last(kind), "x=1x{t=4..32}x3")
    program = capture(one)
    assert " in forward" in steps_that_vary(program)
    for steps in (4, 9, 32):
        x = torch.randn(1, steps, 3)
        torch.testing.assert_close(program.module()(x), one.model(x))
    fixed = capture(model(lambda: Last(kind), "x=1x4x3"))
    assert steps_that_vary(fixed) == ""
    with pytest.raises(UnsupportedError, match=r"the recurrent layer at .* takes a number of steps that varies"):
        quantized(one, "executorch", "fp32", backend="xnnpack", captured=program)


def test_outputs_say_what_varies():
    outputs, work = run_once(model(lambda: nn.Conv1d(1, 4, 3, stride=2), "x=1x1x{time=9..129}"))
    (size,) = outputs[0].varying
    assert (outputs[0].shape, size.axis, size.least, size.most) == ((1, 4, 64), 2, 4, 64)
    assert work is not None
    assert work.convolution_macs == 4 * 3 * 64  # of the largest size
