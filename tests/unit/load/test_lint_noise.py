from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.results.model import TensorSpec
from edgeq.load.lint import MIN_AUTOCORRELATION, autocorrelation, is_noise


@given(st.integers(0, 2**32), st.sampled_from([16, 32, 224]))
def test_independent_pixels_are_noise(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    assert autocorrelation(pixels) < MIN_AUTOCORRELATION


def test_images_are_not(smooth):
    assert autocorrelation(smooth(3)) > 0.8
    assert autocorrelation(smooth(3, 2000, 3000)) > 0.8
    strokes = np.zeros((28, 28, 1), np.uint8)
    strokes[4:24, 12:15] = 255
    assert autocorrelation(strokes) > 0.5
    grainy = smooth(3).astype(np.float32) + np.random.default_rng(0).normal(0, 20, (20, 24, 3))
    assert autocorrelation(grainy) > MIN_AUTOCORRELATION


def test_a_constant_image_is_no_noise():
    assert autocorrelation(np.full((9, 9, 3), 7, np.uint8)) == 1.0


def test_a_checkerboard_correlates_negatively():
    board = np.indices((16, 16)).sum(axis=0)[..., None] % 2
    assert autocorrelation(board) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "dtype", "spec_shape", "expected"),
    [
        ((3, 32, 32), "float32", (1, 3, 32, 32), True),
        ((32, 32, 3), "float32", (1, 32, 32, 3), True),
        ((1, 3, 32, 32), "float32", (1, 3, 32, 32), True),
        ((32, 32, 3), "uint8", (1, 32, 32, 3), True),
        ((3, 4, 4), "float32", (1, 3, 4, 4), False),  # too small to tell
        ((1, 64, 64), "float32", (1, 64, 64), False),  # features, not an image
        ((64,), "float32", (1, 64), False),
        ((3, 32, 32), "int64", (1, 3, 32, 32), False),
    ],
)
def test_only_images_can_be_noise(in_memory, shape, dtype, spec_shape, expected):
    values = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    spec = TensorSpec(name="x", dtype=dtype, shape=spec_shape)
    assert is_noise(in_memory([values]).read(0), [spec]) is expected
