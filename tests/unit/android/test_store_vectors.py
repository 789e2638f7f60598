"""The vectors that the Android store's tests compare with are still what edgeq computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.bundle.reader import read_bundle
from edgeq.core.manifest import Manifest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import store_vectors  # noqa: E402  # a script, which lies in no package


def test_preprocessing() -> None:
    specs, arrays = store_vectors.preprocess_vectors()
    assert json.loads((store_vectors.FOLDER / "preprocess.json").read_text()) == specs
    with np.load(store_vectors.FOLDER / "preprocess.npz", allow_pickle=False) as kept:
        assert sorted(kept.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(kept[name], array)


def test_verdicts_on_golden_outputs() -> None:
    cases, arrays = store_vectors.golden_vectors()
    assert json.loads((store_vectors.FOLDER / "golden.json").read_text()) == cases
    with np.load(store_vectors.FOLDER / "golden.npz", allow_pickle=False) as kept:
        assert sorted(kept.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(kept[name], array)


def test_every_key_of_a_manifest() -> None:
    assert (store_vectors.FOLDER / "manifest.json").read_bytes() == store_vectors.manifest()
    fields = {name for name, field in Manifest.model_fields.items() if field.exclude is not True}
    assert set(json.loads(store_vectors.manifest())) == fields


def test_digits_are_real_ones() -> None:
    images, labels = store_vectors.digits()
    with np.load(store_vectors.FOLDER / "digits.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["image"], images)
        np.testing.assert_array_equal(kept["label"], labels)


@pytest.mark.slow
@pytest.mark.parametrize("target", store_vectors.TARGETS)
def test_answers_of_edgeqs_python_path(target: str) -> None:
    bundle = read_bundle(store_vectors.GOLDEN / target)
    with np.load(store_vectors.FOLDER / "digits.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(store_vectors.predictions(bundle, kept["image"]), kept[target])
