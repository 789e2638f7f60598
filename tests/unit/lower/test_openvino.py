from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_models import IMAGE, MIXED, Mixture, dataset, folder, forward, loaded, lowered, quantized, sample, small_net
from torch import nn
from verify_cases import spec_of

from edgeq.check.artifact import equivalence_gates, parity_gate
from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, batches
from edgeq.core.system import openvino
from edgeq.verify.host import HostRuntime
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runtimes import RUNNERS
from edgeq.verify.verify import verify

SCHEMES = ["fp32", "fp16", "weight-only-int8", "static-int8"]

MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]

WEIGHTS = (216, 72, 128, 80)  # elements


def written(graph, specs, name):
    return lowered(graph, specs, folder() / name, "openvino", backend="openvino")


@functools.cache
def made(scheme):
    graph = quantized(small_net(), "openvino", scheme, backend="openvino", reduce_range=True)
    return graph, written(graph, (IMAGE,), f"openvino-{scheme}")


def opened(low):
    runner = RUNNERS["openvino"](low.path, "openvino", 1, trusted=True)
    return runner, runner.load()


def constants(low, kind):
    """The constants of one element type that have more than one axis."""
    model = openvino().Core().read_model(str(low.path))
    ops = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return [op.data for op in ops if op.get_element_type().get_type_name() == kind and op.data.ndim > 1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_gives_the_graphs_outputs_and_states_what_it_takes(scheme):
    graph, low = made(scheme)
    runner, said = opened(low)
    assert (said["names"], said["inputs"]) == (["x"], [["float32", [1, 3, 16, 16]]])
    assert (said["outputs"], said["threads"]) == ([["float32", [1, 5]]], 1)
    batch = list(batches(dataset((IMAGE,), 9), (IMAGE,)))[-1]  # not what was exported or calibrated with
    (expected,), (came,) = forward(graph.graph)(batch), runner.run(batch.inputs)
    if scheme == "static-int8":
        assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001
    else:
        assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max()
    assert not runner.overwritten


@pytest.mark.parametrize(("scheme", "share"), [("fp32", 0.0), ("weight-only-int8", 0.0), ("static-int8", 1.0)])
def test_the_executed_graph_tells_each_layer_by_its_module(scheme, share, tmp_path):
    _, low = made(scheme)
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    found = kernel_share("openvino", opened(low)[0].profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (share, "")
    assert [(layer.name, layer.macs) for layer in low.layers] == MACS


@pytest.mark.parametrize(
    ("scheme", "kind", "least", "width"),
    [("fp16", "f16", 496, 2), ("weight-only-int8", "i8", 496, 1), ("static-int8", "i8", 496, 1), ("fp32", "f32", 0, 4)],
)
def test_weights_take_the_bytes_of_their_scheme(scheme, kind, least, width):
    _, low = made(scheme)
    assert sum(array.size for array in constants(low, kind)) >= least
    assert dict(low.stored).get({"f16": "float16", "i8": "int8", "f32": "float32"}[kind], 0) >= least
    sizes = [layer.weight_bytes for layer in low.layers]
    assert all(width * n <= size <= width * (n + 17) + 80 for size, n in zip(sizes, WEIGHTS, strict=True)), sizes
    assert sum(path.stat().st_size for path in low.files) > sum(sizes)


def test_static_weights_keep_to_seven_bits_where_they_must():
    assert all(np.abs(array.astype(int)).max() == 63 for array in constants(made("static-int8")[1], "i8"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_models_give_equal_bytes_whatever_the_process_lowered_before(scheme):
    graph, low = made(scheme)
    openvino().Core().read_model(str(low.path))  # OpenVINO counts the operators that it makes
    again = written(graph, (IMAGE,), f"again-{scheme}")
    assert [path.name for path in low.files] == ["model.bin", "model.xml"]
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in low.files]
    text = low.path.read_bytes()
    assert not re.search(rb"/(work|tmp|home|usr|root)/|\.py\b|2026|fused_names", text)


def test_weight_only_says_in_the_file_that_inputs_stay_float():
    low = made("weight-only-int8")[1]
    assert b'<DYNAMIC_QUANTIZATION_GROUP_SIZE value="0"' in low.path.read_bytes()
    compiled = openvino().Core().compile_model(str(low.path), "CPU")  # as an app does
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_an_artifact_with_the_weights_of_one_layer_changed_fails_its_gates(scheme):
    graph, right = made(scheme)
    low = written(graph, (IMAGE,), f"changed-{scheme}")
    path = low.path.with_suffix(".bin")
    data = bytearray(path.read_bytes())
    (weight,) = [array for array in constants(right, "f32" if scheme == "fp32" else "i8") if array.shape[:1] == (5,)]
    place = data.index(weight.tobytes())
    data[place : place + weight.nbytes] = weight[:, ::-1].tobytes()  # of the last layer, its inputs in another order
    path.write_bytes(data)
    outcomes = []
    with HostRuntime() as runtime:
        for one in (right, low):
            spec = spec_of(one, graph, small_net().model, (IMAGE,), dataset((IMAGE,), 8), backend="openvino")
            report, _ = verify(spec, runtime)
            gates = (parity_gate(scheme, report.parity), *equivalence_gates(one, scheme, report.parity))
            outcomes.append({gate.outcome for gate in gates})
            assert (report.kernels.int8_macs, report.findings) == (float(scheme != "fp32"), ())
    assert outcomes == [{"ok"}, {"failed"}]


@functools.cache
def mixture():
    model = loaded(Mixture, *MIXED)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)
        model.model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(("scheme", "dtype"), [("fp16", "float16"), ("weight-only-int8", "int8")])
def test_short_weights_of_every_kind_of_layer(scheme, dtype):
    graph = quantized(mixture(), "openvino", scheme, backend="openvino")
    low = written(graph, MIXED, f"mixture-{scheme}")
    stored = dict(low.stored)
    assert stored[dtype] / sum(stored.values()) > 0.9
    assert set(graph.quantized) >= {"conv", "groups", "up", "line", "words", "lstm", "gru", "head"}
    (batch,) = batches(dataset(MIXED, 1), MIXED)
    (expected,), (came,) = forward(graph.graph)(batch), opened(low)[0].run(batch.inputs)
    assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max()
    (before,) = forward(mixture().model)(batch)
    assert 0 < np.abs(expected - before).max() < 0.05 * np.abs(before).max()  # rounded, and not much


def test_static_int8_names_transposed_and_grouped_layers_and_leaves_recurrent_ones(tmp_path):
    graph = quantized(mixture(), "openvino", "static-int8", backend="openvino", reduce_range=True)
    low = written(graph, MIXED, "mixture-static")
    (batch,) = batches(dataset(MIXED, 1), MIXED)
    found = kernel_share("openvino", opened(low)[0].profile(batch.inputs, tmp_path), low.layers)
    kinds = dict(zip((layer.name for layer in low.layers), found.precisions, strict=True))
    assert {kinds[name] for name in ("conv", "groups", "up", "line", "head")} == {"int8"}
    assert {layer.name: kinds[layer.name] for layer in low.layers if layer.op in ("LSTM", "GRU")} == {
        "lstm": "other",
        "gru": "other",
    }


def test_a_kept_layer_stays_in_float(tmp_path):
    graph = quantized(small_net(), "openvino", "static-int8", backend="openvino", keep=("depth",), reduce_range=True)
    low = written(graph, (IMAGE,), "kept")
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    found = kernel_share("openvino", opened(low)[0].profile(batch.inputs, tmp_path), low.layers)
    assert found.precisions == ("int8", "other", "int8", "int8")


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named():
    spec = TensorSpec(name="x", dtype="float32", shape=(2, 3))
    graph = quantized(loaded(Bessel, spec), "openvino", "fp32", backend="openvino")
    with pytest.raises(UnsupportedError, match=r"no operator for aten\.special_bessel_j0"):
        written(graph, (spec,), "rare")


def test_openvino_reports_nothing_to_its_makers():
    code = "import sys; from edgeq.core.system import openvino; openvino().Core(); "
    code += "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OLD_PROCESSOR = """
import sys
import numpy as np
from edgeq.verify.runtimes import RUNNERS
from pathlib import Path
runner = RUNNERS["openvino"](Path(sys.argv[1]), "openvino", 1, trusted=True)
runner.load()
arrays = (np.ones((1, 16, 4, 4), np.float32),)
assert any("jit_sse42_1x1_I8 u8" in name for name in runner.profile(arrays, Path())), "not the kernels of an old CPU"
print(float(runner.run(arrays)[0].mean()))
"""


@pytest.mark.parametrize("reduced", [True, False])
def test_processors_without_vnni_need_weights_of_seven_bits(reduced):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 16, 4, 4))
    model = loaded(nn.Conv2d(16, 8, 1, bias=False), spec)
    with torch.no_grad():
        model.model.weight.fill_(0.5)
    bright = Dataset(origin="bright", count=2, read=lambda i: sample(np.full(spec.shape, i, np.float32)))
    graph = quantized(model, "openvino", backend="openvino", reduce_range=reduced, calibration=bright)
    low = written(graph, (spec,), f"old-{reduced}")
    done = subprocess.run(
        [sys.executable, "-c", OLD_PROCESSOR, str(low.path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41"},
    )
    exact = abs(float(done.stdout) - 8.0) <= 0.1
    assert exact == reduced, done.stdout  # 255 * 127 * 2 is more than 16 bits hold


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish, nn.Sigmoid, nn.LeakyReLU])
def test_a_layer_and_its_activation_are_rounded_once(activation, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 4, 3))
    graph = quantized(loaded(net, IMAGE), "openvino", backend="openvino")
    low = lowered(graph, (IMAGE,), tmp_path, "openvino", backend="openvino")
    ops = openvino().Core().read_model(str(low.path)).get_ops()
    # the input, what the activation gives, the output
    assert [op.get_type_name() for op in ops].count("FakeQuantize") == 3
    runner = RUNNERS["openvino"](low.path, "openvino", 1, trusted=True)
    runner.load()
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    (came,), (expected,) = runner.run(batch.inputs), forward(graph.graph)(batch)
    assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001
    found = kernel_share("openvino", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")


class OfConstants(nn.Module):
    """A convolution of an input, and one of the waves that encode its positions, as EdgeNeXt has it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.conv = nn.Conv2d(64, 128, 1), nn.Conv2d(3, 128, 3, padding=1)

    def forward(self, x):
        steps = torch.arange(1, 13, dtype=torch.float32)[:, None] / torch.arange(1, 33)
        rows = torch.stack((steps.sin(), steps.cos()), 2).flatten(1)
        waves = (rows[:, None] + rows[None]).permute(2, 0, 1).unsqueeze(0)
        positions = self.project(waves).flatten(2).transpose(1, 2)
        return self.conv(x).flatten(2).transpose(1, 2) + positions


@pytest.mark.parametrize("scheme", ["weight-only-int8", "fp16"])
def test_weights_that_a_constant_is_multiplied_by_can_be_loaded(scheme, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 12, 12), low=-1.0)
    model = loaded(OfConstants, spec)
    low = lowered(quantized(model, "openvino", scheme, backend="openvino"), (spec,), tmp_path, "openvino",
                  backend="openvino")  # fmt: skip
    assert dict(low.stored)["int8" if scheme == "weight-only-int8" else "float16"] >= 3 * 128 * 9
    runner = RUNNERS["openvino"](low.path, "openvino", 1, trusted=True)
    runner.load()
    x = torch.rand(spec.shape) * 2 - 1
    np.testing.assert_allclose(runner.run((x.numpy(),))[0], model.model(x).detach().numpy(), atol=0.02)


class HalfSpectra(nn.Module):
    """The power of frames, from the parts of their spectra."""

    def forward(self, x):
        spectra = torch.fft.rfft(x)
        return spectra.real.square() + spectra.imag.square(), torch.view_as_real(spectra).flatten(-2)


def test_parts_of_half_spectra_have_the_shapes_that_onnx_states(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16), low=-1.0)
    model = loaded(HalfSpectra, spec)
    low = lowered(quantized(model, "openvino", "fp32", backend="openvino"), (spec,), tmp_path, "openvino",
                  backend="openvino")  # fmt: skip
    runner = RUNNERS["openvino"](low.path, "openvino", 1, trusted=True)
    runner.load()
    x = torch.rand(1, 3, 16) * 2 - 1
    for came, expected in zip(runner.run((x.numpy(),)), model.model(x), strict=True):
        assert came.shape == expected.shape
        np.testing.assert_allclose(came, expected.numpy(), atol=1e-5)


class Filtered(nn.Module):
    """Signals from half spectra that were multiplied, along each axis, of even and odd lengths."""

    def forward(self, x):
        gain = torch.linspace(1, 0, 9)
        last = torch.fft.irfft(torch.fft.rfft(x) * gain, n=16)
        first = torch.fft.irfft(torch.fft.rfft(x, dim=1) * gain[:4, None, None], n=7, dim=1)
        return last, first, torch.fft.irfft2(torch.fft.rfft2(x))


def test_half_spectra_become_signals_again_along_the_axis_that_is_meant(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 7, 3, 16), low=-1.0)
    model = loaded(Filtered, spec)
    low = lowered(quantized(model, "openvino", "fp32", backend="openvino"), (spec,), tmp_path, "openvino",
                  backend="openvino")  # fmt: skip
    runner = RUNNERS["openvino"](low.path, "openvino", 1, trusted=True)
    runner.load()
    x = torch.rand(1, 7, 3, 16) * 2 - 1
    for came, expected in zip(runner.run((x.numpy(),)), model.model(x), strict=True):
        np.testing.assert_allclose(came, expected.numpy(), atol=1e-5)


class Unread(nn.Module):
    """Reads the second of its three inputs only."""

    def forward(self, lengths, x, mask):  # noqa: ARG002
        return x * 2


def test_inputs_that_nothing_reads_stay_in_their_places(tmp_path):
    specs = (
        TensorSpec(name="lengths", dtype="int64", shape=(1,), high=6.0),
        TensorSpec(name="x", dtype="float32", shape=(1, 3)),
        TensorSpec(name="mask", dtype="bool", shape=(1, 6)),
    )
    graph = quantized(loaded(Unread, *specs), "openvino", "fp32", backend="openvino")
    runner, said = opened(lowered(graph, specs, tmp_path, "openvino", backend="openvino"))
    assert said["names"] == ["lengths", "x", "mask"]
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(runner.run((np.array([6]), x, np.ones((1, 6), bool)))[0], 2 * x)


class Determinant(nn.Module):
    def forward(self, x):
        return torch.linalg.det(x)


def test_an_operator_that_openvino_cannot_read_is_named(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 3), low=-1.0)
    graph = quantized(loaded(Determinant, spec), "openvino", "fp32", backend="openvino")
    with pytest.raises(UnsupportedError, match=r"cannot read the ONNX graph: No conversion rule .*Det-18"):
        lowered(graph, (spec,), tmp_path, "openvino", backend="openvino")


class Products(nn.Module):
    """Products over two axes: after one another, of the same value, and of a sum."""

    def __init__(self, *, bias):
        super().__init__()
        self.first, self.second = nn.Linear(12, 16, bias=bias), nn.Linear(16, 16, bias=bias)
        self.third, self.fourth = nn.Linear(16, 16, bias=bias), nn.Linear(16, 4, bias=bias)

    def forward(self, x):
        y = self.first(x).relu()
        return self.fourth(self.second(y) + self.third(y))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 6])
def test_products_that_follow_one_another_are_right_on_any_number_of_threads(rows, bias, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(rows, 12), low=-2.0, high=2.0)
    graph = quantized(loaded(Products(bias=bias), spec), "openvino", "static-int8", backend="openvino",
                      reduce_range=True)  # fmt: skip
    low = lowered(graph, (spec,), tmp_path, "openvino", backend="openvino")
    drawn = [*batches(dataset((spec,), 4), (spec,))]
    for threads in (1, 8):
        runner = RUNNERS["openvino"](low.path, "openvino", threads, trusted=True)
        runner.load()
        for batch in drawn:
            (came,), (expected,) = runner.run(batch.inputs), forward(graph.graph)(batch)
            assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001
        found = kernel_share("openvino", runner.profile(drawn[0].inputs, tmp_path), low.layers)
        assert (found.int8_macs, found.why_unmatched) == (1.0, "")


class Heads(nn.Module):
    """Attention of four heads over the rows of x [1, tokens, 32]."""

    def __init__(self):
        super().__init__()
        self.split, self.join = nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x):
        query, key, value = self.split(x).reshape(1, -1, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind()
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.join(seen.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("tokens", [4, 6])
def test_attention_of_as_many_heads_as_tokens_is_right(tokens, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, tokens, 32), low=-2.0, high=2.0)
    model = loaded(Heads, spec)
    graph = quantized(model, "openvino", "fp32", backend="openvino")
    runner, _ = opened(lowered(graph, (spec,), tmp_path, "openvino", backend="openvino"))
    x = torch.rand(spec.shape) * 4 - 2
    np.testing.assert_allclose(runner.run((x.numpy(),))[0], model.model(x).detach().numpy(), atol=1e-5)
