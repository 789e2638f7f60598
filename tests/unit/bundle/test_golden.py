"""golden.npz is read as the manifest tells of it, or refused; nothing is unpickled, inflated or believed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_items import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.bundle import golden as golden_module
from edgeq.bundle.golden import model_inputs, read_golden
from edgeq.bundle.golden import test_cases as program_cases
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core.errors import IntegrityError
from edgeq.core.files import canonical_json, sha256_file
from edgeq.core.manifest import Bundle
from edgeq.core.preprocess import apply
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.report import GoldenSet

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 300, 260, 3), dtype=np.uint8)
OUTPUTS = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def written(item: BundleInput, tmp_path: Path) -> Bundle:
    """A bundle whose manifest tells of one output."""
    golden = GoldenSet(inputs=(IMAGES,), outputs=(OUTPUTS,), preprocessed=False, sqnr_floor_db=31.5)
    write_bundle(changed(item, golden=golden), tmp_path)
    return read_bundle(tmp_path)


def npz(compression: int = zipfile.ZIP_STORED, **arrays: Any) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else npy(array))
    return sink.getvalue()


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.asarray(array), version=version)
    return sink.getvalue()


def replaced(bundle: Bundle, data: bytes, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Bundle:
    """Return the bundle with another golden.npz, and a manifest that lists it."""
    bundle.golden.write_bytes(data)
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    (entry,) = [entry for entry in manifest["files"] if entry["role"] == "golden"]
    entry.update(sha256=sha256_file(bundle.golden), size_bytes=len(data))
    path.write_bytes(canonical_json(manifest))
    return read_bundle(bundle.folder)


def test_what_was_written_is_read(written: Bundle) -> None:
    golden = read_golden(written)
    np.testing.assert_array_equal(golden.inputs[0], IMAGES)
    np.testing.assert_array_equal(golden.outputs[0], OUTPUTS)
    assert (golden.preprocessed, golden.sqnr_floor_db) == (False, 31.5)


def test_raw_samples_are_preprocessed_as_the_manifest_says(written: Bundle) -> None:
    spec = written.manifest.inputs[0].preprocessing
    assert spec is not None
    samples = model_inputs(read_golden(written), written.manifest)
    assert len(samples) == 2
    for (ready,), image in zip(samples, IMAGES, strict=True):
        assert ready.shape == (3, 224, 224)
        np.testing.assert_array_equal(ready, apply(spec, image))


def test_preprocessed_samples_are_fed_as_they_are(written: Bundle) -> None:
    ready = np.random.default_rng(1).random((2, 3, 224, 224), dtype=np.float32)
    bundle = replaced(
        written, npz(input_x=ready, output_0=OUTPUTS), lambda manifest: manifest["golden"].update(preprocessed=True)
    )
    samples = model_inputs(read_golden(bundle), bundle.manifest)
    np.testing.assert_array_equal(samples[1][0], ready[1])


def test_a_sample_is_a_row_or_the_whole_input(written: Bundle) -> None:
    data = npz(input_x=np.ones((2, 4, 3, 8, 8), np.float32), output_0=OUTPUTS)
    for shape, fits in (([4, 3, 8, 8], True), ([7, 4, 3, 8, 8], True), ([3, 8, 8], False)):
        bundle = replaced(written, data, lambda manifest, shape=shape: manifest["inputs"][0].update(shape=shape))
        if fits:
            assert model_inputs(read_golden(bundle), bundle.manifest)[1][0].shape == (4, 3, 8, 8)
        else:
            with pytest.raises(IntegrityError, match="sample 0 has the shapes"):
                model_inputs(read_golden(bundle), bundle.manifest)


def test_the_cases_of_a_program_have_its_batch_and_the_state_of_the_step_before(written: Bundle) -> None:
    steps = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

    def change(manifest: dict[str, Any]) -> None:
        (image,), (output,) = manifest["inputs"], manifest["outputs"]
        image.update(shape=[2, 3, 8, 8], preprocessing=None)
        output.update(shape=[2, 3])
        manifest["inputs"].append({**image, "name": "state", "shape": [2, 3], "fed_from": 0})
        manifest["golden"].update(preprocessed=True)

    arrays = {"input_x": np.ones((2, 3, 8, 8), np.float32), "input_state": np.zeros((2, 3), np.float32)}
    for outputs, second in ((steps[:, 0], np.stack([steps[0, 0]] * 2)), (steps, steps[0])):
        bundle = replaced(written, npz(**arrays, output_0=outputs), change)
        first, later = program_cases(read_golden(bundle), bundle.manifest)
        assert [array.shape for array in (*first[0], *first[1])] == [(2, 3, 8, 8), (2, 3), (2, 3)]
        np.testing.assert_array_equal(first[0][1], np.zeros((2, 3)))
        np.testing.assert_array_equal(later[0][1], second)
        change = lambda _manifest: None  # noqa: E731  # it is changed already


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HUGE = header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1000000000000), }")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "zip"),
        (b"PK\x05\x06" + bytes(18), "it holds"),
        (npz(input_x=IMAGES), "expected input_x, output_0"),
        (npz(input_x=IMAGES, output_0=OUTPUTS, output_1=OUTPUTS), "output_1"),
        (npz(input_x=IMAGES, output_0=OUTPUTS[:1]), "states 2 samples"),
        (npz(input_x=IMAGES, output_0=np.float32(1)), "states 2 samples"),
        (npz(zipfile.ZIP_DEFLATED, input_x=IMAGES, output_0=OUTPUTS), "compressed"),
        (npz(input_x=IMAGES, output_0=np.array([Bomb(), Bomb()])), "object"),
        (npz(input_x=IMAGES, output_0=pickle.dumps(Bomb())), "magic"),
        (npz(input_x=IMAGES, output_0=OUTPUTS.astype(">f4")), "little-endian"),
        (npz(input_x=IMAGES, output_0=np.asfortranarray(OUTPUTS)), "C order"),
        (npz(input_x=IMAGES, output_0=np.array(["a", "b"])), "expected little-endian numbers"),
        (npz(input_x=IMAGES, output_0=npy(OUTPUTS, (2, 0))), "not 1.0"),
        (npz(input_x=IMAGES, output_0=npy(OUTPUTS)[:-1]), "bytes"),
        (npz(input_x=IMAGES, output_0=HUGE), "bytes"),
        (npz(input_x=IMAGES, output_0=header("(" * 5000)), ""),
    ],
)
def test_what_does_not_fit_the_manifest_is_refused(written: Bundle, data: bytes, why: str) -> None:
    bundle = replaced(written, data)
    with pytest.raises(IntegrityError) as caught:
        read_golden(bundle)
    assert why in caught.value.what


@pytest.mark.parametrize(
    ("array", "change"),
    [
        (IMAGES[..., :2], {}),
        (IMAGES[:, :100, :100], {"preprocessing": {"crop": [224, 224]}}),
        (IMAGES, {"preprocessing": None}),
        (IMAGES.astype(np.float32), {}),
        (IMAGES.astype(np.int64), {}),
        (IMAGES, {"shape": [1, 3, 100, 100]}),
        (IMAGES, {"shape": [2**50, 3, 224, 224]}),
        (IMAGES, {"shape": []}),
    ],
)
def test_samples_that_the_model_does_not_take_are_refused(written: Bundle, array: Any, change: dict[str, Any]) -> None:
    bundle = replaced(
        written, npz(input_x=array, output_0=OUTPUTS), lambda manifest: manifest["inputs"][0].update(change)
    )
    golden = read_golden(bundle)
    with pytest.raises(IntegrityError, match=r"golden\.npz does not fit"):
        model_inputs(golden, bundle.manifest)


def test_the_size_is_bounded(written: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_module, "MAX_BYTES", 1000)
    with pytest.raises(IntegrityError, match="more than 1000 bytes"):
        read_golden(written)


SMALL = npz(input_x=IMAGES[:, :2, :2], output_0=OUTPUTS)


@settings(max_examples=200)
@given(at=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255), cut=st.integers(0, len(SMALL)))
def test_any_bytes_give_arrays_or_an_integrity_error(at: int, value: int, cut: int) -> None:
    mutated = bytearray(SMALL)
    mutated[at] = value
    for data in (bytes(mutated), SMALL[:cut]):
        try:
            arrays = golden_module._arrays(data)
        except IntegrityError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(data)
