from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from small_models import IMAGE, artifact, dataset, folder, forward, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.artifacts import TensorSpec
from edgeq.errors import UnsupportedError
from edgeq.quantize import METHODS
from edgeq.samples import batches
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runners import RUNNERS

MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]


@functools.cache
def made(scheme):
    if scheme == "fp32":
        return artifact("onnx", scheme, "ort")
    graph = quantized(small_net(), "onnx", scheme, backend="ort", reduce_range=True)
    return graph, lowered(graph, (IMAGE,), folder() / f"{scheme}-ort", "onnx", backend="ort")


def opened(scheme):
    graph, low = made(scheme)
    runner = RUNNERS["onnx"](low.path, "ort", 1)
    return graph, low, runner, runner.load()


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_the_file_gives_the_graphs_outputs(scheme):
    graph, _, runner, _ = opened(scheme)
    batch = list(batches(dataset((IMAGE,), 9), (IMAGE,)))[-1]  # not what was exported or calibrated with
    (expected,), (came,) = forward(graph.graph)(batch), runner.run(batch.inputs)
    if scheme == "fp32":
        assert np.abs(came - expected).mean() <= 1e-6 * np.abs(expected).mean()
    else:
        assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001


@pytest.mark.parametrize(("scheme", "share"), [("fp32", 0.0), ("static-int8", 1.0)])
def test_the_profile_tells_each_layer_by_its_module(scheme, share, tmp_path):
    _, low, runner, _ = opened(scheme)
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    found = kernel_share("onnx", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (share, "")
    assert [(layer.name, layer.macs) for layer in low.layers] == MACS
    width = 1 if share else 4
    assert all(layer.weight_bytes >= width * n for layer, n in zip(low.layers, (216, 72, 128, 80), strict=True))


def test_weights_are_stored_in_int8_of_seven_bits_a_scale_for_each_channel():
    import onnx

    proto = onnx.load(made("static-int8")[1].path)
    weights = [onnx.numpy_helper.to_array(item) for item in proto.graph.initializer if len(item.dims) > 1]
    assert {array.dtype.name for array in weights} == {"int8"}
    assert all(np.abs(array.astype(int)).max() == 63 for array in weights)
    assert dict(made("static-int8")[1].stored)["int8"] >= 496


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_names_opset_and_nothing_of_this_machine(scheme):
    import onnx

    _, low, _, said = opened(scheme)
    data = low.path.read_bytes()
    assert said["names"] == ["x"]
    assert said["outputs"] == [["float32", [1, 5]]]
    assert low.bytecode_version == 18
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    assert [item.name for item in proto.graph.output] == ["output0"]
    assert not re.search(rb"/(work|tmp|home|usr|root)/|\.py\b", data)


def test_equal_models_give_equal_bytes():
    graph, low = made("fp32")
    again = lowered(graph, (IMAGE,), folder() / "again", "onnx", backend="ort")
    assert again.path.read_bytes() == low.path.read_bytes()


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Rare(nn.Module):
    """Has a part with an operator that ONNX lacks."""

    def __init__(self):
        super().__init__()
        self.part = Bessel()

    def forward(self, x):
        return self.part(x)


def test_an_operator_that_onnx_lacks_is_named_with_its_module_and_line():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    graph = quantized(loaded(Rare(), spec), "onnx", "fp32", backend="ort")
    with pytest.raises(UnsupportedError) as caught:
        lowered(graph, (spec,), folder() / "rare", "onnx", backend="ort")
    assert "special_bessel_j0" in caught.value.what
    assert "module part, " in caught.value.what
    assert "test_onnx.py:" in caught.value.what


def test_each_scheme_of_the_shipped_profiles_has_a_method():
    from edgeq.target import load_target

    for name in ("linux-x86_64-ort", "android-arm64-ort"):
        assert all(("onnx", scheme) in METHODS for scheme in load_target(name).schemes)
