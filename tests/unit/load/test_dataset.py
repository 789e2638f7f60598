from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.model import TensorSpec
from edgeq.load.dataset import open_array_file
from edgeq.load.records import Reading, Wanted

VECTOR = TensorSpec(name="x", dtype="float32", shape=(2, 4))
IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 16, 16))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 5), high=9.0)
PREPROCESS = Preprocess(resize=(16, 16))


def wanted(*specs, preprocess=None, limit=None, seed=0, class_names=None):
    reading = Reading(specs=specs, preprocess=preprocess)
    return Wanted(reading=reading, limit=limit, seed=seed, class_names=class_names)


@pytest.fixture
def rows():
    return np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


def test_npz_with_labels(save, rows):
    data = open_array_file(save(x=rows, y=np.arange(6)), wanted(VECTOR))
    assert (data.count, data.labelled) == (6, True)
    sample = data.read(4)
    assert (sample.label, sample.name, type(sample.label)) == (4, "data.npz[4]", int)
    np.testing.assert_array_equal(sample.inputs[0], rows[4])


def test_an_npz_that_does_not_fit_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, rows):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as to:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 2, 4)}
        np.lib.format.write_array_header_1_0(to, header)
    with pytest.raises(UsageError, match=r"bomb\.npz unpacks to 32\.\d+ GB .* 50% of the free memory") as caught:
        open_array_file(tmp_path / "bomb.npz", wanted(VECTOR))
    assert ".npy" in caught.value.fix
    np.savez_compressed(tmp_path / "small.npz", x=rows)
    monkeypatch.setattr("edgeq.load.dataset.available_bytes", lambda: 2 * rows.nbytes)
    assert open_array_file(tmp_path / "small.npz", wanted(VECTOR)).count == 6
    monkeypatch.setattr("edgeq.load.dataset.available_bytes", lambda: 2 * rows.nbytes - 1)
    with pytest.raises(UsageError, match="fewer samples"):
        open_array_file(tmp_path / "small.npz", wanted(VECTOR))


def test_several_inputs_are_matched_by_name(save, rows):
    tokens = np.arange(30).reshape(6, 5)
    data = open_array_file(save(tokens=tokens, x=rows), wanted(VECTOR, TOKENS))
    first, second = data.read(2).inputs
    np.testing.assert_array_equal(first, rows[2])
    np.testing.assert_array_equal(second, tokens[2])
    assert not data.labelled


def test_one_input_takes_any_name(save, rows, tmp_path):
    np.save(tmp_path / "data.npy", rows)
    assert open_array_file(save(whatever=rows), wanted(VECTOR)).count == 6
    assert open_array_file(tmp_path / "data.npy", wanted(VECTOR)).read(5).name == "data.npy[5]"


def test_a_model_input_called_y_is_no_label(save, rows):
    spec = TensorSpec(name="y", dtype="float32", shape=(1, 4))
    data = open_array_file(save(y=rows), wanted(spec))
    assert not data.labelled
    np.testing.assert_array_equal(data.read(0).inputs[0], rows[0])


def test_samples_may_have_the_whole_input_shape(save):
    data = open_array_file(save(x=np.zeros((3, 2, 4), np.float32)), wanted(VECTOR))
    assert data.read(0).inputs[0].shape == (2, 4)


def test_a_row_of_a_vector_input_is_a_single_number(save):
    spec = TensorSpec(name="x", dtype="float32", shape=(8,))
    assert open_array_file(save(x=np.zeros(3, np.float32)), wanted(spec)).read(0).inputs[0].shape == ()


def test_float64_is_rounded_to_float32_and_big_endian_made_native(save, rows):
    as_float64 = open_array_file(save(x=rows.astype(np.float64)), wanted(VECTOR)).read(1)
    swapped = open_array_file(save(x=rows.astype(">f4")), wanted(VECTOR)).read(1)
    plain = open_array_file(save(x=rows), wanted(VECTOR)).read(1)
    assert {str(sample.inputs[0].dtype) for sample in (as_float64, swapped)} == {"float32"}
    assert as_float64.digest == swapped.digest == plain.digest


def test_a_limit_takes_evenly_from_all_classes(save):
    y = np.array([0] * 80 + [1] * 20)
    data = open_array_file(save(x=np.zeros((100, 4), np.float32), y=y), wanted(VECTOR, limit=10, seed=1))
    assert sorted(sample.label for sample in data) == [0] * 5 + [1] * 5


@pytest.mark.parametrize("shape", [(2, 20, 24, 3), (2, 20, 24, 1), (2, 20, 24)])
def test_uint8_images_are_preprocessed(save, shape):
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    sample = open_array_file(save(image=images), wanted(IMAGE, preprocess=PREPROCESS)).read(1)
    pixels = images[1] if len(shape) == 4 else images[1][..., None]
    np.testing.assert_array_equal(sample.raw[0], pixels)
    np.testing.assert_array_equal(sample.inputs[0], apply(PREPROCESS, pixels))


def test_float_arrays_are_taken_as_preprocessed(save):
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    sample = open_array_file(save(image=images), wanted(IMAGE, preprocess=PREPROCESS)).read(1)
    np.testing.assert_array_equal(sample.inputs[0], images[1])


@pytest.mark.parametrize(
    ("arrays", "reason", "fix"),
    [
        ({"x": np.zeros((3, 4), np.uint8)}, "expects float32, got uint8 pixels", "--preprocess"),
        ({"x": np.zeros((3, 4), np.int64)}, "expects float32, got int64", ".astype('float32')"),
        ({"x": np.zeros((3, 4), np.float16)}, "expects float32, got float16", ".astype('float32')"),
        ({"x": np.zeros((3, 5), np.float32)}, "expects [4] per sample, got [5]", "--input"),
        ({"x": np.zeros((0, 4), np.float32)}, "at least 1 sample", "[N, …]"),
        ({"x": np.float32(3)}, "got a scalar", "[N, …]"),
        ({"x": np.zeros((3, 4), np.float32), "y": np.zeros(2)}, "x: 3, y: 2", "equal"),
        ({"a": np.zeros((3, 4), np.float32), "b": np.zeros(3)}, "inputs x; got a, b", "like the inputs"),
        ({"y": np.zeros(3)}, "inputs x; got none", "like the inputs"),
        ({}, "inputs x; got none", "like the inputs"),
    ],
)
def test_says_what_does_not_fit(save, arrays, reason, fix):
    path = save(**arrays)
    with pytest.raises(UsageError) as caught:
        open_array_file(path, wanted(VECTOR)).read(0)
    assert reason in caught.value.what
    assert "data.npz" in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_misspelt_input_is_told(save, rows):
    path = save(token=np.zeros((6, 5), np.int64), x=rows)
    with pytest.raises(UsageError, match="Did you mean 'tokens'"):
        open_array_file(path, wanted(VECTOR, TOKENS))


@pytest.mark.parametrize(
    ("images", "spec", "reason"),
    [
        (np.zeros((2, 3, 20, 24), np.uint8), IMAGE, r"image \[H, W\] or \[H, W, C\]"),
        (np.zeros((2, 20), np.uint8), IMAGE, r"image \[H, W\] or \[H, W, C\]"),
        (
            np.zeros((2, 20, 20, 3), np.uint8),
            TensorSpec(name="image", dtype="float16", shape=(1, 3, 16, 16)),
            "expects float16",
        ),
    ],
)
def test_images_that_do_not_fit(save, images, spec, reason):
    with pytest.raises(UsageError, match=reason):
        open_array_file(save(image=images), wanted(spec, preprocess=PREPROCESS)).read(0)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickles_are_refused(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(path, x=objects) if suffix == "npz" else np.save(path, objects)
    with pytest.raises(UsageError, match="pickled Python objects"):
        open_array_file(path, wanted(VECTOR))


def test_damaged_and_missing_files_are_named(save, rows, tmp_path):
    path = save(x=rows)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"PK\x03\x04" + bytes(50), b"\x93NUMPY\x01\x00\xff\xff{'descr'"):
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            open_array_file(path, wanted(VECTOR))
        assert str(path) in caught.value.what
    with pytest.raises(UsageError, match="No such file"):
        open_array_file(tmp_path / "none.npy", wanted(VECTOR))


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 600))
def test_any_bytes_give_data_or_a_usage_error(tmp_path_factory, noise, cut):
    path = tmp_path_factory.getbasetemp() / "noise.npz"
    np.savez(path, x=np.zeros((2, 4), np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + noise + whole[cut + len(noise) :])
    try:
        open_array_file(path, wanted(VECTOR)).read(0)
    except UsageError as err:
        assert "noise.npz" in err.what  # noqa: PT017
