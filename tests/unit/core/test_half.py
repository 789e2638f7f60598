"""Half precision as a GPU computes it, held to what can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from edgeq.core.half import emulated, emulation

HALVES = (torch.float16, torch.bfloat16)


def values(*shape, dtype=torch.float16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_summed_in_float32_and_rounded_once(dtype):
    left, right, bias = values(5, 300, dtype=dtype), values(300, 7, dtype=dtype), values(7, dtype=dtype)
    with emulation():
        got = torch.addmm(bias, left, right)
    expected = torch.addmm(bias.float(), left.float(), right.float()).to(dtype)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_convolutions_too(dtype):
    image, kernel = values(1, 3, 9, 9, dtype=dtype), values(4, 3, 3, 3, dtype=dtype)
    with emulation():
        got = torch.nn.functional.conv2d(image, kernel, padding=1)
    assert torch.equal(got, torch.nn.functional.conv2d(image.float(), kernel.float(), padding=1).to(dtype))


def test_an_operator_without_a_half_kernel_is_computed_in_float32_and_rounded():
    left, right = values(4, 3), values(5, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.cdist(left, right)
    with emulation():
        got = torch.cdist(left, right)
    assert torch.equal(got, torch.cdist(left.float(), right.float()).half())


def test_a_sum_beyond_the_range_is_infinite():
    with emulation():
        got = torch.full((1, 4), 20000.0, dtype=torch.float16) @ torch.ones((4, 1), dtype=torch.float16)
    assert got.item() == float("inf")


def test_what_is_written_into_is_written():
    into, left, right = torch.zeros(2, 2, dtype=torch.float16), values(2, 3), values(3, 2)
    with emulation():
        result = into.addmm_(left, right)
    assert torch.equal(into, (left.float() @ right.float()).half())
    assert result.dtype == torch.float16


def test_an_error_of_the_model_stays_one():
    with emulation(), pytest.raises(RuntimeError, match=r"shape|size"):
        values(2, 3) + values(4, 5)


def test_float32_is_left_alone():
    left, right = torch.randn(3, 4), torch.randn(4, 2)
    assert torch.equal(emulated(torch.matmul)(left, right), left @ right)
