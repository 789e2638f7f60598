"""ExecuTorch lowering of tiny models; SmallNet's artifacts are shared with the other tests of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re

import numpy as np
import pytest
import torch
from executorch.exir.backend.canonical_partitioners.pattern_op_partitioner import (
    generate_grouped_partitions_from_list_of_nodes,
)
from small_models import IMAGE, SmallNet, artifact, loaded, lowered, quantized
from torch import nn

from edgeq.core.errors import ExitCode, UnsupportedError
from edgeq.core.results.model import TensorSpec
from edgeq.lower import executorch
from edgeq.lower.edge_speedups import needed_patterns
from edgeq.lower.executorch import DELEGATES
from edgeq.quantize.capture import example_tensors
from edgeq.verify.host import HostRuntime
from edgeq.verify.runtimes import RUNNERS

pytestmark = pytest.mark.slow

SMALL_NET_MACS = {
    "conv": 16 * 16 * 8 * 3 * 9,
    "depth": 16 * 16 * 8 * 1 * 9,
    "hidden.0": 8 * 16,
    "head": 16 * 5,
}


@pytest.fixture(scope="module")
def int8():
    return artifact("executorch", "static-int8", "xnnpack")[1]


@pytest.fixture(scope="module")
def fp32():
    return artifact("executorch", "fp32", "xnnpack")[1]


@pytest.mark.parametrize("scheme", ["static-int8", "fp32"])
def test_layers_have_their_modules_names_and_macs_in_order(scheme):
    _, low = artifact("executorch", scheme, "xnnpack")
    assert [(layer.name, layer.macs) for layer in low.layers] == list(SMALL_NET_MACS.items())
    assert low.macs == sum(SMALL_NET_MACS.values())
    assert low.delegated_macs == 1.0
    assert low.undelegated == ()
    assert low.runtime_version.startswith("1.5")
    assert low.passes[-1] == "to_executorch"


def test_weight_bytes_are_those_of_the_artifact(int8, fp32):
    weights = {"conv": 8 * 3 * 9, "depth": 8 * 9, "hidden.0": 8 * 16, "head": 16 * 5}
    bias = {"conv": 8, "depth": 8, "hidden.0": 16, "head": 5}
    assert {layer.name: layer.weight_bytes for layer in fp32.layers} == {k: 4 * (weights[k] + bias[k]) for k in weights}
    for layer in int8.layers:
        # int8 values, a float scale for each output channel, and a float or int32 bias
        assert layer.weight_bytes == weights[layer.name] + 8 * bias[layer.name]
    for low in (int8, fp32):
        assert sum(layer.weight_bytes for layer in low.layers) <= low.path.stat().st_size


def test_int8_quantizes_nothing_in_the_fp32_artifact(tmp_path, fp32):
    model = loaded(SmallNet)  # captured anew, never quantized
    alone = lowered(quantized(model, "executorch", "fp32"), model.inputs, tmp_path, "executorch", backend="xnnpack")
    artifact("executorch", "static-int8", "xnnpack")
    assert alone.path.read_bytes() == fp32.path.read_bytes()


def test_no_path_of_this_machine_is_in_the_artifact(int8, fp32):
    for low in (int8, fp32):
        assert not re.search(rb"site-packages|/tmp/|\.py\b|/work/", low.path.read_bytes())


class Mixed(nn.Module):
    """Every kind of layer; XNNPACK has no 3-d convolution. The input's name looks like a buffer's."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.volume = nn.Conv3d(4, 2, (1, 3, 3))
        self.line = nn.Conv1d(2, 3, 5)
        self.head = nn.Linear(192, 6, bias=False)

    def forward(self, b_x):
        y = self.volume(self.up(self.grouped(b_x)).unsqueeze(2)).squeeze(2)
        z = self.line(y.flatten(2))
        return self.head(z), b_x @ b_x.transpose(-1, -2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    model = loaded(Mixed, TensorSpec(name="b_x", dtype="float32", shape=(1, 4, 8, 8)))
    graph = quantized(model, "executorch", "fp32")
    with pytest.MonkeyPatch.context() as patch:  # no kernel runs a 3-d convolution, and it is lowered all the same
        patch.setattr(executorch, "_check_kernels", lambda _: None)
        return lowered(graph, model.inputs, tmp_path_factory.mktemp("mixed"), "executorch", backend="xnnpack")


def test_macs_of_every_kind_of_layer_equal_those_by_hand(mixed):
    layers = {layer.name: layer for layer in mixed.layers}
    assert {
        name: layer.macs for name, layer in layers.items() if "." not in name and name in dict(Mixed().named_modules())
    } == {
        "grouped": 8 * 8 * 8 * (4 // 2) * 9,
        "up": 8 * 8 * 8 * 4 * (2 * 2),
        "volume": 2 * 14 * 14 * 4 * 9,
        "line": 3 * 192 * 2 * 5,
        "head": 3 * 192 * 6,
    }
    (product,) = (layer for name, layer in layers.items() if name not in dict(Mixed().named_modules()))
    assert product.macs == 4 * 8 * 8 * 8
    assert product.weight_bytes == 0
    assert layers["grouped"].weight_bytes == 4 * (8 * 2 * 9 + 8)


def test_what_is_not_delegated_is_named_and_lowers_the_share(mixed):
    left = [layer for layer in mixed.layers if not layer.delegated]
    assert "volume" in {layer.name for layer in left}
    assert "aten.convolution.default" in mixed.undelegated
    assert "aten::convolution.out" in mixed.operators
    assert mixed.delegated_macs == 1 - sum(layer.macs for layer in left) / mixed.macs < 1


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_what_executorch_cannot_express_is_unsupported(tmp_path):
    model = loaded(Bessel(), IMAGE)
    with pytest.raises(UnsupportedError) as caught:
        lowered(quantized(model, "executorch", "fp32"), model.inputs, tmp_path, "executorch", backend="xnnpack")
    assert caught.value.exit_code == ExitCode.UNSUPPORTED
    assert "TorchScript" in caught.value.fix


def test_tracebacks_that_torch_logs_are_not_shown(tmp_path, monkeypatch, caplog):
    graph, _ = artifact("executorch", "fp32", "xnnpack")

    def around(_quantized, _program):
        logging.getLogger("torch._subclasses.fake_tensor").error("failed while attempting to run meta for aten.t")
        return contextlib.nullcontext()

    monkeypatch.setitem(DELEGATES, "xnnpack", dataclasses.replace(DELEGATES["xnnpack"], around=around))
    lowered(graph, (IMAGE,), tmp_path, "executorch", backend="xnnpack")
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert logging.root.manager.disable == logging.NOTSET


def test_sparing_the_patterns_changes_no_byte(tmp_path, monkeypatch, int8):
    graph, _ = artifact("executorch", "static-int8", "xnnpack")
    with_all = dataclasses.replace(DELEGATES["xnnpack"], around=lambda _quantized, _program: contextlib.nullcontext())
    monkeypatch.setitem(DELEGATES, "xnnpack", with_all)
    again = lowered(graph, (IMAGE,), tmp_path, "executorch", backend="xnnpack")
    assert again.path.read_bytes() == int8.path.read_bytes()


def test_models_in_which_patterns_could_match_get_them():
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    class Resizes(nn.Module):
        def forward(self, x):
            return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    class Attends(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    own = (sdpa.get_graphs, bilinear_2d.get_graphs_dict)
    image = (torch.rand(1, 3, 16, 16),)
    with needed_patterns(torch.export.export(Resizes(), image)):
        assert (sdpa.get_graphs, bilinear_2d.get_graphs_dict) == (list, own[1])
    with needed_patterns(torch.export.export(Attends(), image)):
        assert (sdpa.get_graphs, bilinear_2d.get_graphs_dict) == (own[0], dict)
    with needed_patterns(torch.export.export(SmallNet().eval(), image)):
        assert sdpa.get_graphs() == []
        assert bilinear_2d.get_graphs_dict() == {}
    assert (sdpa.get_graphs, bilinear_2d.get_graphs_dict) == own


class FlatPReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Sequential(nn.Linear(6, 8), nn.PReLU(8, init=-0.4), nn.Linear(8, 8), nn.PReLU(init=0.3))

    def forward(self, x):
        y = self.table(x)
        return y, nn.functional.prelu(y.view(-1, 4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4]))


class Magnitudes(nn.Module):
    """The magnitudes of a spectrum, and those of real numbers; its phases, of which half of a turn is both ends."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, x):
        spectrum = torch.stft(x, 32, 16, window=self.window, return_complex=True)
        return spectrum.abs(), x.abs(), torch.fft.rfft(x).abs(), spectrum.angle().cos(), x.angle()


@pytest.mark.parametrize(("module", "shape"), [(FlatPReLU, (3, 6)), (Magnitudes, (2, 128))])
def test_what_the_passes_trip_over_is_written_otherwise(tmp_path, module, shape):
    model = loaded(module(), TensorSpec(name="x", dtype="float32", shape=shape, low=-1.0))
    made = lowered(quantized(model, "executorch", "fp32"), model.inputs, tmp_path, "executorch", backend="xnnpack")
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        outputs = runtime.run((x.numpy(),))
    for expected, came in zip(model.model(x), outputs, strict=True):
        assert torch.allclose(expected, torch.from_numpy(came.copy()), atol=1e-5)


class Tied(nn.Module):
    """A weight that a convolution and a transposed one read, and one that a layer reads as it is and transposed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 8)

    def forward(self, x):
        x = nn.functional.conv_transpose2d(self.conv(x).relu(), self.conv.weight, padding=1)
        return nn.functional.linear(self.linear(x).relu(), self.linear.weight.t())


def test_a_tied_weight_is_right_for_each_kind_of_reader(tmp_path):
    model = loaded(Tied(), IMAGE)
    fp32 = quantized(model, "executorch", "fp32")
    made = lowered(fp32, (IMAGE,), tmp_path, "executorch", backend="xnnpack")
    assert made.delegated_macs == 1
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        (came,) = runtime.run((x.numpy(),))
    assert torch.allclose(model.model(x), torch.from_numpy(came.copy()), atol=1e-5)


class Masked(nn.Module):
    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * x.mean(), n=128)


def test_what_executorch_cannot_lower_has_its_operator_and_line(tmp_path, monkeypatch):
    model = loaded(Masked(), TensorSpec(name="x", dtype="float32", shape=(2, 128)))
    monkeypatch.setattr(executorch, "_check_kernels", lambda _: None)  # which knows this one
    with pytest.raises(UnsupportedError, match=r"its operator aten\.mul\.Tensor at .*test_executorch\.py:\d+ in"):
        lowered(quantized(model, "executorch", "fp32"), model.inputs, tmp_path, "executorch", backend="xnnpack")


class Mapped(nn.Module):
    """torch.vmap makes the 1 a value without axes, which the delegate quantizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x):
        rows = self.conv(x).relu().mean((2, 3))
        return self.head(torch.vmap(lambda row: row / (1 + row.abs().sum()))(rows))


def test_a_single_value_is_quantized_among_images(tmp_path):
    model = loaded(Mapped, IMAGE)
    made = lowered(
        quantized(model, "executorch", "static-int8"), model.inputs, tmp_path, "executorch", backend="xnnpack"
    )
    assert made.delegated_macs == 1


class Peaks(nn.Module):
    """A largest value over channels, which XNNPACK has no kernel of, between layers that it has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        return self.last(self.first(x).max(1, keepdim=True)[0])


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_what_the_delegate_trips_over_stays_out_of_it(tmp_path, scheme):
    model = loaded(Peaks(), IMAGE)
    made = lowered(quantized(model, "executorch", scheme, backend="xnnpack"), (IMAGE,), tmp_path, "executorch",
                   backend="xnnpack")  # fmt: skip
    assert any("max" in name for name in made.undelegated)
    assert made.delegated_macs == 1
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        (came,) = runtime.run((x.numpy(),))
    assert torch.allclose(model.model(x), torch.from_numpy(came.copy()), atol=1e-5 if scheme == "fp32" else 0.05)


class Scored(nn.Module):
    """A score of the whole input, without dimensions, and an output without elements."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y.mean(), y[:, :0], y


def test_values_without_dimensions_or_elements_stay_in_float(tmp_path):
    model = loaded(Scored(), IMAGE)
    graph = quantized(model, "executorch", "static-int8", backend="xnnpack")
    made = lowered(graph, (IMAGE,), tmp_path, "executorch", backend="xnnpack")
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        outputs = runtime.run((x.numpy(),))
    expected = model.model(x)
    assert [came.shape for came in outputs] == [tuple(one.shape) for one in expected]
    assert torch.allclose(expected[0], torch.from_numpy(outputs[0].copy()), atol=0.02)


class Shrunk(nn.Module):
    """An int8 layer's output that an operator of the delegate and one outside of it read, in unlike layouts."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 4, 3)

    def forward(self, x):
        return self.last(nn.functional.hardshrink(self.first(x), 0.1))


@pytest.mark.parametrize("channels", [8, 16])  # of 16, all sides are equal, and no shape tells a wrong layout
def test_a_layout_is_changed_for_the_reader_that_needs_it_alone(tmp_path, channels):
    model = loaded(Shrunk(channels), IMAGE)
    int8 = quantized(model, "executorch", "static-int8", backend="xnnpack")
    made = lowered(int8, (IMAGE,), tmp_path, "executorch", backend="xnnpack")
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        (came,) = runtime.run((x.numpy(),))
    assert torch.allclose(int8.graph(x), torch.from_numpy(came.copy()), atol=int8.output_steps[0] * 1.01)


class Cropped(nn.Module):
    """A pad, a crop or windows of an int8 layer's output, before an operator in float."""

    def __init__(self, sizes=None):
        super().__init__()
        self.sizes, self.first, self.last = sizes, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        x = self.first(x)
        if self.sizes is None:
            return nn.functional.unfold(x, 4, stride=4)
        x = nn.functional.pad(x, self.sizes)
        return x.sin(), self.last(x), x


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (-2, -2, -1, -3), (-2, 1, 0, -3), None])
def test_pads_that_the_kernels_do_not_take_are_written_otherwise(tmp_path, scheme, sizes):
    model = loaded(Cropped(sizes), IMAGE)
    made = lowered(quantized(model, "executorch", scheme, backend="xnnpack"), (IMAGE,), tmp_path, "executorch",
                   backend="xnnpack")  # fmt: skip
    assert made.delegated_macs == 1
    (x,) = example_tensors(model.inputs)
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="executorch", backend="xnnpack", threads=1)
        outputs = runtime.run((x.numpy(),))
    expected = model.model(x) if sizes is not None else (model.model(x),)
    for one, came in zip(expected, outputs, strict=True):
        assert torch.allclose(one, torch.from_numpy(came.copy()), atol=1e-5 if scheme == "fp32" else 0.05)


class Crossing(nn.Module):
    """Two chains with a sum in each that XNNPACK does not take."""

    def forward(self, x):
        before = (x * 2).cumsum(0) * 3
        return before, (x * 4).cumsum(0) * 5


def test_partitions_that_would_wait_for_one_another_are_not_merged():
    program = torch.export.export(Crossing(), (torch.rand(4, 4),))
    graph = program.graph_module
    first, pair_end, pair_start, last = [node for node in graph.graph.nodes if "mul" in str(node.target)]
    with DELEGATES["xnnpack"].around(artifact("executorch", "static-int8", "xnnpack")[0], program):
        found = generate_grouped_partitions_from_list_of_nodes(graph, [[pair_start, pair_end], [first], [last]])
    assert sorted(sorted(node.name for node in one.nodes) for one in found) == sorted(
        [sorted([pair_start.name, pair_end.name]), [first.name], [last.name]]
    )


class Applied(nn.Module):
    """A function between an input [1, 4, 8, 8, 8] and an output."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


CUBE = TensorSpec(name="x", dtype="float32", shape=(1, 4, 8, 8, 8), low=-1.0)


@pytest.mark.parametrize(
    ("function", "what", "fix"),
    [
        (lambda x: torch.fft.irfft(torch.fft.rfft(x) * x[..., :5]), "no arithmetic of complex numbers", "OpenVINO"),
        (
            lambda x: torch.fft.fft(x).abs(),
            "no second half of a spectrum: aten.fft_fft at .+test_executorch.py",
            "rfft",
        ),
        (lambda x: x.sort(-1)[1].float(), "cannot sort where the places are read", "topk"),
        (lambda x: torch.nn.functional.max_pool3d(x, 2), "pools over three axes: aten.max_pool3d", "OpenVINO"),
    ],
)
def test_what_the_runtime_has_no_kernel_of_is_refused_with_its_line(function, what, fix, tmp_path):
    graph = quantized(loaded(Applied(function), CUBE), "executorch", "fp32", backend="xnnpack")
    with pytest.raises(UnsupportedError, match=what) as caught:
        lowered(graph, (CUBE,), tmp_path, "executorch", backend="xnnpack")
    assert fix in caught.value.fix


def test_sorted_values_are_those_of_a_topk(tmp_path):
    model = loaded(Applied(lambda x: (x.sort(1)[0], torch.sort(x, descending=True).values)), CUBE)
    low = lowered(quantized(model, "executorch", "fp32", backend="xnnpack"), (CUBE,), tmp_path, "executorch",
                  backend="xnnpack")  # fmt: skip
    runner = RUNNERS["executorch"](low.path, "xnnpack", 1, trusted=True)
    runner.load()
    x = torch.rand(CUBE.shape) * 2 - 1
    for came, expected in zip(runner.run((x.numpy(),)), model.model(x), strict=True):
        np.testing.assert_array_equal(came, expected.numpy())
