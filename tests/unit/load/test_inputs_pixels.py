"""A model that takes pixels as bytes, on every route: what it computes, in what, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from small_models import IMAGE, folder, forward, loaded, lowered, quantized, sample, small_net
from torch import nn

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, batches
from edgeq.load.inputs import takes_pixels
from edgeq.load.records import Reading, to_sample
from edgeq.verify.runtimes import RUNNERS

PREPROCESS = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LAYERS = ("conv", "depth", "hidden.0", "head")


def image(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)


def pixels(count=8):
    return Dataset(origin="pixels", count=count, read=lambda i: sample(apply(PREPROCESS.as_bytes, image(i))))


def taking(model):
    return takes_pixels(dataclasses.replace(model, model=copy.deepcopy(model.model)), PREPROCESS)


@pytest.mark.parametrize(
    ("runtime", "backend", "scheme"),
    [
        ("torchscript", "qnnpack", "static-int8"),
        ("torchscript", "x86", "fp32"),
        ("torchscript", "qnnpack", "fp16"),
        ("onnx", "ort", "static-int8"),
        ("executorch", "xnnpack", "static-int8"),
    ],
)
def test_each_route_answers_bytes_as_the_float_route_answers_floats(runtime, backend, scheme):
    model = taking(small_net())
    graph = quantized(model, runtime, scheme, backend=backend, calibration=pixels(), reduce_range=backend == "ort")
    low = lowered(graph, model.inputs, folder() / f"bytes-{scheme}-{backend}", runtime, backend=backend)
    runner = RUNNERS[runtime](low.path, backend, 1, trusted=True)
    runner.load()
    (batch,) = batches(pixels(1), model.inputs)
    (came,) = runner.run(batch.inputs)
    assert batch.inputs[0].dtype == np.uint8
    with torch.no_grad():
        expected = small_net().model(torch.from_numpy(apply(PREPROCESS, image(0)))[None]).numpy()
    # of int8 one step of the output, and what rounding in four layers adds; of the others what half or float32 loses
    most = 2 * graph.output_steps[0] if scheme == "static-int8" else 1e-3 if scheme == "fp16" else 1e-6
    assert np.abs(came - expected).max() <= most
    if scheme == "static-int8":
        assert graph.quantized == LAYERS  # nothing of the normalisation, by the names that the model had


def test_an_exported_program_takes_bytes_too_and_keeps_its_names():
    program = torch.export.export(small_net().model, (torch.zeros(IMAGE.shape),))
    model = takes_pixels(dataclasses.replace(small_net(), kind="exported", model=program), PREPROCESS)
    assert quantized(model, "onnx", backend="ort", calibration=pixels()).quantized == LAYERS
    (batch,) = batches(pixels(1), model.inputs)
    (came,), (expected,) = forward(model.model.module())(batch), forward(taking(small_net()).model)(batch)
    np.testing.assert_allclose(came, expected, atol=1e-6)


def test_a_sequential_model_does_not_run_the_constants():
    model = takes_pixels(loaded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 5)), IMAGE), PREPROCESS)
    assert model.model(torch.zeros(IMAGE.shape, dtype=torch.uint8)).shape == (1, 5)


def test_the_last_channel_is_normalised_where_the_layout_says_so():
    class Last(nn.Module):
        def forward(self, x):
            return x.mean((1, 2))

    spec = TensorSpec(name="x", dtype="float32", shape=(1, 16, 16, 3))
    preprocess = PREPROCESS.model_copy(update={"layout": "NHWC"})
    model = takes_pixels(loaded(Last(), spec), preprocess).model
    raw = torch.from_numpy(apply(preprocess.as_bytes, image(0)))[None]
    expected = apply(preprocess, image(0)).mean((0, 1))
    np.testing.assert_allclose(model(raw)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"kind": "ptl"}, UnsupportedError, "is already lowered"),
        (
            {"inputs": (IMAGE, IMAGE)},
            UnsupportedError,
            "takes one image, float32 of rank 4; this model takes x float32",
        ),
        ({"inputs": (dataclasses.replace(IMAGE, shape=(1, 12)),)}, UnsupportedError, r"takes x float32 \[1, 12\]"),
        ({"inputs": (dataclasses.replace(IMAGE, shape=(1, 1, 8, 8)),)}, UsageError, "gives 3 channels .* has 1"),
        ({"model": torch.fx.symbolic_trace(nn.ReLU())}, UnsupportedError, "has no forward of its own"),
    ],
)
def test_what_cannot_take_pixels_is_refused(change, error, why):
    with pytest.raises(error, match=why):
        takes_pixels(dataclasses.replace(small_net(), **change), PREPROCESS)


def test_bytes_that_are_bytes_already_are_refused():
    with pytest.raises(UsageError, match="already gives uint8"):
        takes_pixels(small_net(), PREPROCESS.as_bytes)


def test_images_in_arrays_are_resized_and_laid_out_but_not_normalised():
    spec = dataclasses.replace(IMAGE, dtype="uint8")
    reading = Reading(specs=(spec,), preprocess=Preprocess(resize=(16, 16)).as_bytes)
    made = to_sample({"x": image(0)[:8, :8]}, None, "s", reading)
    assert (made.inputs[0].dtype, made.inputs[0].shape) == (np.uint8, (3, 16, 16))
    assert made.raw[0].shape == (8, 8, 3)
    with pytest.raises(UsageError, match="expects uint8, got float32"):
        to_sample({"x": np.zeros((3, 16, 16), np.float32)}, None, "s", reading)
