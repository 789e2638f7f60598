"""Evening out weights between layers: the same function, and only where nothing between the layers minds."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import SmallNet, loaded
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.quantize.equalize import equalized

from .qat_cases import uneven

SHAPE = (2, 3, 8, 8)
IMAGE = TensorSpec(name="x", dtype="float32", shape=SHAPE)


def spread(weight):
    """How many times larger the largest channel is than the smallest."""
    ranges = weight.flatten(1).abs().amax(1)
    return float(ranges.max() / ranges.min())


def evened(*layers):
    return equalized(loaded(nn.Sequential(*layers), IMAGE))


def test_channels_get_the_same_range_on_both_sides():
    model = loaded(uneven())
    found = equalized(model).model
    first, second = found.get_submodule("0")[0], found.get_submodule("2")[0]
    assert spread(model.model[0].weight) > 50
    assert torch.allclose(first.weight.abs().amax((1, 2, 3)), second.weight.abs().amax((0, 2, 3)), rtol=0.02)
    assert spread(first.weight) < 10


@pytest.mark.parametrize("module", [uneven, SmallNet])
@torch.no_grad()
def test_the_function_stays_and_so_does_the_model(module):
    model = loaded(module() if module is uneven else module)
    before = copy.deepcopy(model.model.state_dict())
    found = equalized(model).model
    x = torch.rand(4, 3, 16, 16) * 4 - 2
    assert torch.allclose(found(x), model.model(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


CHAINS = {
    "depthwise": lambda: (
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.LeakyReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(8, 4, 1),
    ),
    "flattened": lambda: (nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    "linear": lambda: (nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5)),
}


@pytest.mark.parametrize("chain", CHAINS)
@torch.no_grad()
def test_depthwise_flattened_and_linear_layers_fit(chain):
    layers = CHAINS[chain]()
    first = next(layer for layer in layers if hasattr(layer, "weight"))
    first.weight[0] *= 100
    exact = copy.deepcopy(nn.Sequential(*layers))
    found = evened(*layers).model
    x = torch.rand(SHAPE)
    assert torch.allclose(found(x), exact(x), rtol=1e-4, atol=1e-4)
    changed = next(part for part in found.modules() if type(part) is type(first))
    assert spread(changed.weight) < 0.5 * spread(first.weight)


BETWEEN = {
    "relu6": lambda: (nn.ReLU6(),),
    "sigmoid": lambda: (nn.Sigmoid(),),
    "norm": lambda: (nn.ReLU(), nn.BatchNorm2d(8)),
    "shuffle": lambda: (nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_minds_scales_parts_the_layers(between):
    assert evened(nn.Conv2d(3, 8, 1), *BETWEEN[between](), nn.Conv2d(8, 4, 1)) is None


def test_a_linear_layer_over_the_columns_of_an_image_is_not_one_over_its_channels():
    assert evened(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(8, 4)) is None
    assert evened(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Linear(64, 4)) is None


class Branch(nn.Module):
    """The first layer's output goes two ways."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.first(x)
        return self.second(y) + y


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.second(self.first(self.first(x)))


class Untraceable(nn.Module):
    """Python looks at a value."""

    def __init__(self):
        super().__init__()
        self.net = uneven()

    def forward(self, x):
        return self.net(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("module", [Branch, Twice, Untraceable])
def test_layers_of_other_uses_are_left_alone(module):
    assert equalized(loaded(module, IMAGE)) is None


@torch.no_grad()
def test_dead_channels_stay_dead():
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    first.weight[0] = 0
    second.weight[:, 1] = 0
    exact = copy.deepcopy(nn.Sequential(first, second))
    found = evened(first, second).model
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())
    x = torch.rand(SHAPE)
    assert torch.allclose(found(x), exact(x), rtol=1e-4, atol=1e-4)
