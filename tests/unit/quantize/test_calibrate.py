"""Calibration samples that stand out from the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import IMAGE, Silent, SmallNet, dataset, loaded

from edgeq.core.errors import UsageError
from edgeq.quantize.calibrate import without_outliers


class Bursting(torch.nn.Module):
    """Computes large values for bright images alone."""

    def forward(self, x):
        return torch.where(x.mean() > 40, x * 100, x)


class Failing(torch.nn.Module):
    def forward(self, _x):
        raise ValueError("no")


def scaled(count, factors):
    """Samples, some of them multiplied by a factor."""
    plain = dataset((IMAGE,), count)

    def read(i):
        sample = plain.read(i)
        arrays = tuple(array * np.float32(factors.get(i, 1)) for array in sample.inputs)
        return dataclasses.replace(sample, inputs=arrays)

    return dataclasses.replace(plain, read=read)


def left(samples, model=None):
    """Return the names of the samples that are left, None where all are."""
    with Silent().task("") as task:
        found = without_outliers(samples, model or loaded(SmallNet).model, (IMAGE,), task)
    return None if found is None else [sample.name for sample in found]


@pytest.mark.parametrize("rows", [(5,), (0, 15)])
def test_samples_twenty_times_as_bright_are_left_out(rows):
    samples = scaled(16, dict.fromkeys(rows, 20))
    assert left(samples) == [f"s{i}" for i in range(16) if i not in rows]


@pytest.mark.parametrize("factors", [{}, {3: 0}, {3: 1.5}])
def test_dark_samples_and_alike_ones_stay(factors):
    assert left(scaled(16, factors)) is None


def test_a_sample_that_stands_out_inside_the_model_alone_is_found():
    samples = scaled(16, {i: 70 + i / 8 for i in range(15)} | {15: 88})
    assert left(samples, torch.nn.Identity()) is None
    assert left(samples, Bursting()) == [f"s{i}" for i in range(15)]


def test_of_few_samples_none_stands_out():
    assert left(scaled(7, {2: 20})) is None


def test_a_sample_that_the_model_fails_on_is_named():
    with pytest.raises(UsageError, match="the model fails on s0: no"):
        left(scaled(8, {}), Failing())
