"""What a model must be before anything is captured of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_models import loaded
from torch import nn

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.quantize.capture import capture, run_once

FOUR = TensorSpec(name="x", dtype="float32", shape=(2, 4))


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.mean(0))
        return self.linear(x) + self.mean


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), 0.5)


@pytest.mark.parametrize("exported", [False, True])
def test_a_model_that_keeps_state_between_calls_is_refused(exported):
    model = loaded(Remembering, FOUR)
    if exported:
        model = dataclasses.replace(model, kind="exported", model=capture(model))
    with pytest.raises(UnsupportedError, match=r"not deterministic: .*: forward changes mean") as caught:
        run_once(model)
    assert "an input and an output" in caught.value.fix


def test_a_model_that_draws_random_numbers_is_refused():
    with pytest.raises(UnsupportedError, match="not deterministic") as caught:
        run_once(loaded(Dropping, FOUR))
    assert "training=self.training" in caught.value.fix


def test_a_model_that_returns_nan_and_its_own_buffer_is_not_taken_for_a_stateful_one():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(2, 4))

        def forward(self, x):
            self.last.copy_(x)
            return self.last, x / 0 * 0

    assert len(run_once(loaded(Holding, FOUR))) == 2
