"""On files as LiteRT's converter 0.10.0 wrote them of `small_models.small_net`: in static-int8, and rounded to int8.

tests/unit/lower/test_litert.py makes them anew and compares.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeq.lower import tflite
from edgeq.verify.runtimes import RUNNERS

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "litert"

NAMES = ("conv", "depth", "hidden.0", "head")

MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]


def converted(name):
    return tflite.load_converted(FIXTURES / f"{name}.tflite")


def finished(model):
    tflite.give_float_ends(model, ["float32"])
    tflite.rename(model, NAMES, ["x"], ["scores"])
    return model


def opened(model, folder):
    path = folder / "model.tflite"
    tflite.save(model, path)
    runner = RUNNERS["litert"](path, "litert", 1, trusted=True)
    return runner, runner.load()


def image():
    return np.random.default_rng(5).random((1, 3, 16, 16), dtype=np.float32)


def test_ends_that_the_converter_made_int8_are_float_and_give_what_it_gave(tmp_path):
    before, said = opened(converted("static"), tmp_path)
    assert (said["inputs"], said["outputs"]) == ([["int8", [1, 3, 16, 16]]], [["int8", [1, 5]]])
    (scale, zero), (step, middle) = before.takes[0]["quantization"], before.gives[0]["quantization"]
    (whole,) = before.run(((np.rint(image() / scale) + zero).clip(-128, 127).astype(np.int8),))
    after, said = opened(finished(converted("static")), tmp_path)
    assert (said["inputs"], said["outputs"], said["names"]) == (
        [["float32", [1, 3, 16, 16]]],
        [["float32", [1, 5]]],
        ["x"],
    )
    (came,) = after.run((image(),))
    assert np.allclose(came, (whole.astype(np.float32) - middle) * step, atol=step / 100)


def test_layers_have_their_modules_names_and_multiply_accumulates(tmp_path):
    model = finished(converted("static"))
    layers = tflite.layers_of(model)
    assert [(one.name, one.macs) for one in layers] == MACS
    assert [one.is_linear for one in layers] == [False, False, True, True]
    assert [one.weight_bytes for one in layers] == [216 + 4 * 8, 72 + 4 * 8, 128 + 4 * 16, 80 + 4 * 5]
    assert dict(tflite.elements_of(model))["int8"] == 496
    kernels = opened(model, tmp_path)[0].profile((image(),), tmp_path)
    assert [name.split(" ", 1)[0] for name in kernels if name.endswith(NAMES)] == [one.op for one in layers]


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_that_were_rounded_are_stored_in_int8(dynamic, tmp_path):
    (before,) = opened(finished(converted("rounded")), tmp_path)[0].run((image(),))
    model = finished(converted("rounded"))
    tflite.store(model, tflite.in_int8, dynamic=dynamic)
    assert dict(tflite.elements_of(model))["int8"] == 496
    assert [one.weight_bytes for one in tflite.layers_of(model)] == [216 + 4 * 8, 72 + 4 * 8, 128 + 4 * 16, 80 + 4 * 5]
    runner, _ = opened(model, tmp_path)
    (came,) = runner.run((image(),))
    assert np.abs(came - before).max() <= (0.02 if dynamic else 1e-6) * np.abs(before).max()
    kernels = runner.profile((image(),), tmp_path)
    in_int8 = [name for name in kernels if name.startswith("FULLY_CONNECTED (float32, int8")]
    assert len(in_int8) == (2 if dynamic else 0)


def test_weights_that_were_not_rounded_stay_as_they_are():
    values = np.random.default_rng(0).random((4, 6), dtype=np.float32)
    assert tflite.in_int8(values) is None
    assert tflite.in_half(values) is None
    scales = np.array([[0.5], [0.001], [3.0], [0.02]], np.float32)
    steps = np.random.default_rng(0).integers(-126, 127, (4, 6))
    steps[:, 0] = 127
    by_row, by_column = tflite.in_int8(steps * scales), tflite.in_int8((steps * scales).T)
    assert np.array_equal(by_row[0], steps)
    assert np.array_equal(by_column[0], steps.T)
    assert (by_row[2], by_column[2]) == (0, 1)
    assert np.allclose(by_row[1], scales[:, 0])
    steps[0] = [5, 3, -2, 1, 0, 4]  # smaller weights than the quantizer has a scale for
    whole, scale, _ = tflite.in_int8((steps * 2**-12).astype(np.float32))
    assert np.array_equal(whole, steps)
    assert np.array_equal(scale, np.full(4, 2**-12, np.float32))
    assert tflite.in_int8(np.array([[0, -np.inf], [0, 0]], np.float32)) is None
    half = values.astype(np.float16).astype(np.float32)
    assert np.array_equal(tflite.in_half(half)[0], half)


def test_notes_are_left_out_and_equal_models_give_equal_bytes(tmp_path):
    model, again = finished(converted("static")), finished(converted("static"))
    for one, name in ((model, "one"), (again, "two")):
        tflite.strip(one)
        tflite.save(one, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    data = (tmp_path / "one").read_bytes()
    assert b"torch" not in data
    assert b"MLIR" not in data
    assert b"min_runtime_version" in data
    assert len(data) < (FIXTURES / "static.tflite").stat().st_size + 500  # with what converts its ends
    (came,) = opened(model, tmp_path)[0].run((image(),))
    (expected,) = opened(finished(converted("static")), tmp_path)[0].run((image(),))
    assert np.array_equal(came, expected)


def test_a_file_that_is_cut_is_refused_by_the_runtime(tmp_path):
    path = tmp_path / "cut.tflite"
    shutil.copy(FIXTURES / "static.tflite", path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a valid Flatbuffer"):
        RUNNERS["litert"](path, "litert", 1, trusted=True).load()
