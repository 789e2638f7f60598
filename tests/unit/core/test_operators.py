"""Deformable convolutions as a plain convolution of sampled pixels, and recurrent cells as linear layers."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scheme_models import Steps
from small_models import dataset, forward, loaded, lowered, outputs_of, quantized
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d

from edgeq.core.operators import DEFORM, plain_deform_conv2d, plain_layers, plain_operators
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches
from edgeq.quantize.capture import capture
from edgeq.quantize.fx_workarounds import open_layers
from edgeq.verify.host import HostRuntime
from edgeq.verify.metrics import Comparison

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16))
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


def sqnr_db(model, run):
    """Of what `run` makes of a batch, against the model."""
    told = Comparison()
    for batch in batches(dataset(model.inputs, 4), model.inputs):
        told.add(forward(model.model)(batch), run(batch))
    return told.sqnr_db


@given(
    kernel=PAIR,
    stride=PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from((1, 2)),
    offset_groups=st.sampled_from((1, 2, 4)),
    use_mask=st.booleans(),
    far=st.sampled_from((0.0, 0.5, 20.0)),
)
def test_the_plain_form_gives_torchvisions_values(
    kernel, stride, padding, dilation, groups, offset_groups, use_mask, far
):
    size = (9, 11)
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=generator)
    weight = torch.randn(6, 4 // groups, *kernel, generator=generator)
    offset = torch.randn(2, offset_groups * kernel[0] * kernel[1] * 2, *out, generator=generator) * far
    mask = torch.rand(2, offset_groups * kernel[0] * kernel[1], *out, generator=generator)
    bias = torch.randn(6, generator=generator)
    given = (x, weight, offset, mask, bias, *stride, *padding, *dilation, groups, offset_groups, use_mask)

    torch.testing.assert_close(
        plain_deform_conv2d(*given), torch.ops.torchvision.deform_conv2d(*given), atol=1e-4, rtol=1e-4
    )


class Deform(nn.Module):
    """A convolution, a deformable one with a mask and a norm, and one that a function calls, without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 18, 3, padding=1)
        self.mask = nn.Conv2d(8, 9, 3, padding=1)
        self.deform = DeformConv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.deform(x, self.offset(x), torch.sigmoid(self.mask(x)))))
        return deform_conv2d(x, torch.ones(x.shape[0], 2, 16, 16) * 0.25, self.weight)


def test_the_operator_is_torchvisions_again_after_the_block():
    before = torch.ops.torchvision.deform_conv2d
    with plain_operators():
        assert torch.ops.torchvision.deform_conv2d is plain_deform_conv2d
    assert torch.ops.torchvision.deform_conv2d is before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "backend", "scheme"),
    [
        ("executorch", "xnnpack", "static-int8"),
        ("onnx", "ort", "static-int8"),
        ("torchscript", "qnnpack", "static-int8"),
        ("torchscript", "x86", "fp32"),
    ],
)
def test_an_artifact_of_any_runtime_does_what_the_model_does(runtime, backend, scheme, tmp_path):
    model = loaded(Deform)
    result = quantized(model, runtime, scheme, backend=backend, calibration=dataset((IMAGE,), 16))
    assert scheme == "fp32" or "deform" in result.quantized

    host = HostRuntime()
    made = lowered(result, (IMAGE,), tmp_path, runtime, backend=backend)
    host.load(made.path, runtime=runtime, backend=backend, threads=1)

    assert sqnr_db(model, lambda batch: host.run(batch.inputs)) > (100 if scheme == "fp32" else 25)


def test_an_exported_program_that_holds_the_operator_is_taken_too():
    model = loaded(Deform)
    program = torch.export.export(model.model, (torch.rand(1, 3, 16, 16),))
    assert DEFORM in {str(node.target) for node in program.graph.nodes}

    captured = capture(dataclasses.replace(model, kind="exported", model=program))

    assert DEFORM not in {str(node.target) for node in captured.graph.nodes}
    (expected,), (given,) = (outputs_of(one, (IMAGE,))[0] for one in (model.model, captured.module()))
    torch.testing.assert_close(torch.tensor(given), torch.tensor(expected), atol=1e-4, rtol=1e-4)


class Far(nn.Module):
    """A deformable convolution and a warp of 192 pixels, where a step of int8 is 1.5 pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.flow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.offset, self.deform = nn.Conv2d(8, 18, 3, padding=1), DeformConv2d(8, 4, 3, padding=1)
        axis = torch.linspace(-1, 1, 192)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None])

    def forward(self, x):
        x = self.first(x)
        x = nn.functional.grid_sample(
            x, self.grid + 0.05 * self.flow(x).tanh().permute(0, 2, 3, 1), align_corners=False
        )
        return self.deform(x, self.offset(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "backend", "scheme"),
    [
        ("executorch", "xnnpack", "static-int8"),
        ("torchscript", "x86", "static-int8"),
        ("onnx", "ort", "fp16"),
        ("executorch", "xnnpack", "fp16"),
    ],
)
def test_positions_stay_in_float(runtime, backend, scheme):
    model = loaded(Far, spec := TensorSpec(name="x", dtype="float32", shape=(1, 3, 192, 192)))
    result = quantized(model, runtime, scheme, backend=backend, calibration=dataset((spec,), 2))
    graph = forward(result.graph, backend if runtime == "torchscript" else None)
    assert sqnr_db(model, graph) > (50 if scheme == "fp16" else 20)
    if scheme == "fp16":
        assert any("grid_sampler" in remark for remark in result.remarks)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, functools.partial(nn.RNNCell, nonlinearity="relu")]
)
def test_cells_are_linear_layers_of_the_same_values(cell, bias):
    torch.manual_seed(0)
    plain, x, hidden = cell(6, 4, bias=bias), torch.randn(3, 6), torch.randn(3, 4)
    state = (hidden, torch.randn(3, 4)) if isinstance(plain, nn.LSTMCell) else hidden

    def opened_for(x):
        holder = nn.Sequential(copy.deepcopy(plain))
        open_layers(holder, (x,))
        return holder[0]

    opened = opened_for(x)
    assert isinstance(opened, type(plain))
    assert not hasattr(opened, "weight_ih")
    for inputs in ((x, state), (x,)):
        expected = plain(*inputs)
        torch.testing.assert_close(opened(*inputs), expected)
        with plain_layers():
            torch.testing.assert_close(plain(*inputs), expected)
            program = torch.export.export(plain, inputs)
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count("aten.linear.default") == 2
        assert not [target for target in targets if target.endswith("_cell.default")]
    row = (x[0], tuple(one[0] for one in state)) if isinstance(state, tuple) else (x[0], state[0])
    torch.testing.assert_close(opened_for(x[0])(*row), plain(*row))
    torch.testing.assert_close(opened_for(x[0])(x[0]), plain(x[0]))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_no_product_by_a_first_state_of_zeros_is_left(kind):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4, 16))
    model = loaded(Steps(kind), spec)
    program = torch.export.export(model.model, (torch.randn(1, 4, 16),))
    assert [node for node in program.graph.nodes if str(node.target).endswith("_cell.default")]
    for source in (model, dataclasses.replace(model, model=program, kind="exported")):
        graph = capture(source).graph
        targets = [str(node.target) for node in graph.nodes]
        assert not [target for target in targets if target.endswith("_cell.default")]
        assert targets.count("aten.linear.default") == 4 + 3 + 1  # of inputs, of states but the first, the head's


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveMaxPool1d(5), (2, 3, 16)),
        (nn.AdaptiveMaxPool2d(1), (2, 3, 6, 8)),
        (nn.AdaptiveMaxPool2d((4, None)), (2, 3, 7, 8)),
        (nn.AdaptiveMaxPool2d((9, 3)), (1, 3, 7, 8)),
        (nn.AdaptiveMaxPool3d((1, 2, 3)), (1, 2, 4, 4, 7)),
    ],
)
def test_adaptive_maxima_are_those_of_pytorch(pool, shape):
    x = torch.randn(shape)
    with plain_layers():
        program = torch.export.export(pool, (x,))
    assert not [node for node in program.graph.nodes if "adaptive" in str(node.target)]
    assert torch.equal(program.module()(x), pool(x))


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_layers_are_linear_ones_and_a_product(bias):
    layer = nn.Bilinear(5, 7, 3, bias=bias)
    left, right = torch.randn(2, 4, 5), torch.randn(2, 4, 7)
    with plain_layers():
        program = torch.export.export(layer, (left, right))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.linear.default" in targets
    assert not [target for target in targets if "linear" in target.removeprefix("aten.linear")]
    torch.testing.assert_close(program.module()(left, right), layer(left, right))


class ChannelAttention(nn.Module):
    """Channels weighted by the mean and the maximum of each, as in CBAM (Woo et al. 2018): images to [N, 4]."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)])
        self.weigh = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))

    def forward(self, x):
        x = torch.relu(self.body(x))
        weights = torch.sigmoid(self.weigh(self.pools[0](x)) + self.weigh(self.pools[1](x)))
        return self.head((x * weights).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "backend"), [("executorch", "xnnpack"), ("torchscript", "x86")])
def test_channel_attention_is_quantized(runtime, backend, tmp_path):
    model = loaded(ChannelAttention(), IMAGE)
    made = lowered(quantized(model, runtime, backend=backend), (IMAGE,), tmp_path, runtime, backend=backend)
    host = HostRuntime()
    host.load(made.path, runtime=runtime, backend=backend, threads=1)
    assert sqnr_db(model, lambda batch: host.run(batch.inputs)) > 25
