"""The entropy observer: which range it keeps, and that zeros alone do not decide."""

from __future__ import annotations

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
