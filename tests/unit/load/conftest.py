from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, Sample
from edgeq.load.selection import sample_digest


@pytest.fixture
def image_input() -> TensorSpec:
    """A model input of one RGB image of 16 x 16."""
    return TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16))


@pytest.fixture
def paint() -> Callable[..., Path]:
    """Write images that look like images: a smooth gradient, different for every number."""

    def write(path: Path, number: int = 0, mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient(number)).convert(mode).save(path)
        return path

    return write


def gradient(number: int, height: int = 20, width: int = 24) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], smooth, and different for every number below 100."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 5 + number, x * 5 + number, (x + y) * 2 + number], axis=2).astype(np.uint8)


@pytest.fixture
def smooth() -> Callable[..., NDArray[np.uint8]]:
    return gradient


@pytest.fixture
def in_memory() -> Callable[..., Dataset]:
    """Make a data set of arrays: raw and input are the same."""

    def make(
        arrays: Sequence[NDArray[np.generic]],
        labels: Sequence[object] | None = None,
        class_names: tuple[str, ...] = (),
        title: str = "s",
    ) -> Dataset:
        samples = [
            Sample(inputs=(array,), raw=(array,), label=label, name=f"{title}{i}", digest=sample_digest((array,)))
            for i, (array, label) in enumerate(zip(arrays, labels or itertools.repeat(None), strict=False))
        ]
        return Dataset(
            origin="memory",
            count=len(samples),
            read=samples.__getitem__,
            class_names=class_names,
            labelled=labels is not None,
        )

    return make


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Write a user's file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "user.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def clean_imports():
    """Users' modules and `sys.path` are as before after every test."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if name.startswith("_edgeq_user_") or name in {"neighbour", "usermod", "userpkg", "userpkg.data"}:
            del sys.modules[name]
