"""The observers: which range entropy keeps, that zeros alone do not decide, and a search that is only faster."""

from __future__ import annotations

import importlib

import pytest
import torch

from edgeq.quantize.calibrate import activation_observer, least_divergence

BINS = 2048


def histogram(values, low, high):
    return torch.histc(values, BINS, low, high).double(), low, (high - low) / BINS


def test_a_long_tail_is_cut_and_an_even_spread_is_kept():
    generator = torch.Generator().manual_seed(0)
    tail = torch.cat([torch.randn(100_000, generator=generator), torch.full((1,), 40.0)])
    low, high = least_divergence(*histogram(tail, -40.0, 40.0))
    assert 3 <= (high - low) / 2 * 80 / BINS <= 12
    even = torch.rand(100_000, generator=generator)
    low, high = least_divergence(*histogram(even, 0.0, 1.0))
    assert (low, high) == (0, BINS)


def test_zeros_after_a_relu_do_not_narrow_the_range():
    generator = torch.Generator().manual_seed(0)
    relu = torch.randn(100_000, generator=generator).clamp(min=0)
    counts, start, width = histogram(relu, 0.0, float(relu.max()))
    low, high = least_divergence(counts, start, width)
    counts[0] = 0
    assert low == 0
    assert abs(high - least_divergence(counts, start, width)[1]) <= BINS // 50
    assert high * width >= 2


@pytest.mark.parametrize(("counts", "width"), [(torch.zeros(8).double(), 0.1), (torch.ones(8).double(), 0.0)])
def test_nothing_to_choose_keeps_all(counts, width):
    assert least_divergence(counts, 0.0, width) == (0, 8)


def test_the_observer_gives_a_scale_between():
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 100.0
    scales = {}
    for name in ("minmax", "entropy"):
        observer = activation_observer(name, HistogramObserver, MinMaxObserver)(dtype=torch.int8)
        observer(values)
        scales[name] = float(observer.calculate_qparams()[0])
    assert scales["entropy"] < 0.5 * scales["minmax"]


@pytest.mark.parametrize(
    "shape",
    [
        lambda values: values,
        lambda values: values.relu(),
        lambda values: values.abs() ** 4,
        lambda values: (values > 0.9).float() * 5,
        lambda values: torch.cat((values.flatten(), torch.tensor([300.0]))),
        lambda values: values.clamp(0, 0.5),
    ],
    ids=["normal", "relu", "tail", "two", "outlier", "clamped"],
)
@pytest.mark.parametrize("library", ["torch.ao.quantization", "torchao.quantization.pt2e"])
def test_the_faster_search_finds_the_same_range(library, shape):
    base = importlib.import_module(library).HistogramObserver
    chosen = activation_observer("histogram", base, None)
    generator = torch.Generator().manual_seed(0)
    plain, fast = base(), chosen()
    for scale in (1, 3, 0.5):
        values = shape(torch.randn(2, 4, 16, 16, generator=generator) * scale)
        plain(values)
        fast(values)
    assert issubclass(chosen, base)
    assert all(map(torch.equal, plain._non_linear_param_search(), fast._non_linear_param_search()))
