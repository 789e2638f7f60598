from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest
import torch
from small_models import IMAGE, Silent, artifact, dataset, folder, forward, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.core.errors import UnsupportedError
from edgeq.core.ort_format import reduced_build_config
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches
from edgeq.lower.onnx import file_work, lower_file, onnx_layers
from edgeq.lower.spec import LowerSpec
from edgeq.quantize import FILE_METHODS, METHODS
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runtimes import RUNNERS

MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]


@functools.cache
def made(scheme):
    if scheme == "fp32":
        return artifact("onnx", scheme, "ort")
    graph = quantized(small_net(), "onnx", scheme, backend="ort", reduce_range=True)
    return graph, lowered(graph, (IMAGE,), folder() / f"{scheme}-ort", "onnx", backend="ort")


def opened(scheme):
    graph, low = made(scheme)
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
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


class Gated(nn.Module):
    """What EfficientNet is made of: SiLUs behind convolutions, and a gate by the mean over all pixels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.squeeze, self.widen = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.act, self.head = nn.SiLU(), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x * torch.sigmoid(self.widen(self.act(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x)


def test_silu_and_means_over_pixels_run_in_int8(tmp_path):
    model = loaded(Gated, IMAGE)
    graph = quantized(model, "onnx", backend="ort", reduce_range=True)
    low = lowered(graph, (IMAGE,), tmp_path, "onnx", backend="ort")
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    kernels = to_file(low.path, (IMAGE,), "gated", file_format="ort").operators
    ran = {name.partition("@")[0] for name in kernels}
    assert {"com.microsoft::QLinearSigmoid", "com.microsoft::QLinearGlobalAveragePool"} <= ran
    assert not ran & {"ai.onnx::Sigmoid", "ai.onnx::Mul", "ai.onnx::ReduceMean"}
    (came,), (expected,) = runner.run(batch.inputs), forward(graph.graph)(batch)
    assert np.abs(came - expected).max() <= graph.output_steps[0] * 2.001
    exact = model.model(torch.from_numpy(batch.inputs[0])).detach().numpy()
    assert ((came - exact) ** 2).sum() < 1e-3 * (exact**2).sum()


class Repeated(nn.Module):
    """Calls a layer four times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        for _ in range(4):
            x = torch.relu(self.layer(x))
        return x


def test_a_layer_that_is_called_again_has_its_weight_once(tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 64))
    graph = quantized(loaded(Repeated, spec), "onnx", backend="ort", reduce_range=True)
    low = lowered(graph, (spec,), tmp_path, "onnx", backend="ort")
    weights = [item for item in onnx.load(low.path).graph.initializer if len(item.dims) == 2]
    assert [tuple(item.dims) for item in weights] == [(64, 64)]
    assert [layer.op for layer in low.layers] == ["Gemm"] * 4
    assert low.path.stat().st_size < 4 * 64 * 64  # of floats


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Singular(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x).S


class Histogram(nn.Module):
    def forward(self, x):
        return torch.histc(x)


class Rare(nn.Module):
    """Has a part with an operator that ONNX lacks, or that its exporter refuses."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Bessel(), "special_bessel_j0"),
        (Singular(), "linalg_svd"),
        (Histogram(), "torch.onnx cannot export aten.histc.default (module part, "),
    ],
)
def test_an_operator_that_onnx_lacks_is_named_with_its_module_and_line(part, name):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    graph = quantized(loaded(Rare(part), spec), "onnx", "fp32", backend="ort")
    with pytest.raises(UnsupportedError) as caught:
        lowered(graph, (spec,), folder() / "rare", "onnx", backend="ort")
    assert name in caught.value.what
    assert "module part, " in caught.value.what
    assert "test_onnx.py:" in caught.value.what


def test_each_scheme_of_the_shipped_profiles_has_a_method():
    from edgeq.core.targets import load_target

    known = {*METHODS, *(("onnx", scheme) for scheme in FILE_METHODS)}
    for name in ("linux-x86_64-ort", "android-arm64-ort"):
        assert all(("onnx", scheme) in known for scheme in load_target(name).schemes)


def to_file(source, inputs, place, **given):
    target = folder() / place
    target.mkdir()
    spec = LowerSpec(inputs=inputs, backend="ort", folder=target, progress=Silent(), label="small", **given)
    return lower_file(source, None, spec)


def test_a_file_is_taken_byte_by_byte_and_its_layers_are_known():
    source = made("static-int8")[1]
    low = to_file(source.path, (IMAGE,), "as-it-is")
    assert low.path.read_bytes() == source.path.read_bytes()
    assert [(layer.name, layer.macs) for layer in low.layers] == MACS
    assert (low.bytecode_version, low.passes, low.stored) == (18, (), source.stored)


def test_a_file_in_several_becomes_one():
    import onnx

    source = folder() / "split.onnx"
    proto = onnx.load(made("fp32")[1].path)
    onnx.save(proto, str(source), save_as_external_data=True, location="split.bin", size_threshold=0)
    low = to_file(source, (IMAGE,), "joined")
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    runner, before = (
        RUNNERS["onnx"](low.path, "ort", 1, trusted=True),
        RUNNERS["onnx"](made("fp32")[1].path, "ort", 1, trusted=True),
    )
    for one in (runner, before):
        one.load()
    np.testing.assert_array_equal(runner.run(batch.inputs)[0], before.run(batch.inputs)[0])


@pytest.mark.parametrize("scheme", ["fp32", "static-int8"])
def test_the_mobile_format_gives_the_same_and_says_what_it_needs(scheme, tmp_path):
    source = made(scheme)[1]
    low = to_file(source.path, (IMAGE,), f"ort-{scheme}", file_format="ort")
    assert low.path.name == "model.ort"
    assert not low.path.with_suffix(".onnx").exists()
    runner, before = (
        RUNNERS["onnx"](low.path, "ort", 1, trusted=True),
        RUNNERS["onnx"](source.path, "ort", 1, trusted=True),
    )
    for one in (runner, before):
        one.load()
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    step = 0 if scheme == "fp32" else made(scheme)[0].output_steps[0]
    assert np.abs(runner.run(batch.inputs)[0] - before.run(batch.inputs)[0]).max() <= max(step, 1e-6) * 1.001
    found = kernel_share("onnx", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (float(scheme == "static-int8"), "")
    wanted = "ai.onnx::QLinearConv@10" if scheme == "static-int8" else "ai.onnx::ReduceMean@18"
    assert wanted in low.operators
    assert runner.facts(tmp_path)["operators"] == low.operators
    in_int8 = "com.microsoft;1;QGemm,QLinearAdd,QLinearGlobalAveragePool"
    assert {"fp32": "ai.onnx;18;ReduceMean", "static-int8": in_int8}[scheme] in reduced_build_config(
        low.operators
    ).splitlines()


def test_half_is_stored_in_half():
    graph = quantized(small_net(), "onnx", "fp16", backend="ort")
    low = lowered(graph, (IMAGE,), folder() / "half", "onnx", backend="ort")
    assert dict(low.stored)["float16"] / sum(count for _, count in low.stored) > 0.9
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    assert runner.load()["inputs"] == [["float32", [1, 3, 16, 16]]]
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    (expected,), (came,) = forward(graph.graph)(batch), runner.run(batch.inputs)
    assert np.abs(came - expected).max() <= 2e-3 * np.abs(expected).max()


class Clamped(nn.Module):
    """ReLU6, ReLU and Hardtanh after a convolution, a linear layer and an addition, and a clamp above zero."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(inplace=True))
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.above = 0.0

    def forward(self, x):
        x = self.stem(x)
        x = nn.functional.hardtanh(self.left(x) + self.right(x), -0.25, 0.25)
        x = nn.functional.relu6(self.hidden(x.mean((2, 3))))
        return self.head(torch.clamp(x, min=self.above))


def clamped(above=0.0):
    model = Clamped()
    model.above = above
    graph = quantized(loaded(model), "onnx", "static-int8", backend="ort", reduce_range=True)
    return graph, lowered(graph, (IMAGE,), folder() / f"clamped-{above}", "onnx", backend="ort")


def test_clamps_become_the_saturation_of_the_layer_before_them(tmp_path):
    graph, low = clamped()
    assert not {"ai.onnx::Clip", "ai.onnx::Relu"} & set(low.operators)
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    for batch in batches(dataset((IMAGE,), 9), (IMAGE,)):
        (expected,), (came,) = forward(graph.graph)(batch), runner.run(batch.inputs)
        assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001
    found = kernel_share("onnx", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")


def test_a_clamp_that_no_range_with_zero_can_do_stays():
    _, low = clamped(above=0.125)
    assert "ai.onnx::Clip" in low.operators


class Masked(nn.Module):
    """Attention with a mask of truth values or floats, as a decoder makes from padding, or with one for each head."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, mask):
        allowed = mask[:, None, None, :].bool() & torch.ones(6, 6, dtype=torch.bool).tril()
        if self.kind != "bool":
            allowed = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
        if self.kind == "heads":
            allowed = allowed + torch.linspace(0, 1, 72).view(1, 2, 6, 6)
        heads = x.view(1, 6, 2, 4).transpose(1, 2)
        once = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=allowed)
        twice = nn.functional.scaled_dot_product_attention(once, once, heads, allowed)
        return twice.transpose(1, 2).contiguous().view(1, 6, 8)  # contiguous() is not in the graph where it copies none


@pytest.mark.parametrize("kind", ["bool", "float", "heads"])
def test_words_of_padding_on_the_left_see_nothing(kind, tmp_path):
    inputs = (
        TensorSpec(name="x", dtype="float32", shape=(1, 6, 8), low=-1.0),
        TensorSpec(name="mask", dtype="int64", shape=(1, 6), high=1.0),
    )
    model = Masked(kind)
    low = lowered(quantized(loaded(model, *inputs), "onnx", "fp32", backend="ort"), inputs, tmp_path, "onnx",
                  backend="ort")  # fmt: skip
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    x = torch.rand(1, 6, 8)
    for unseen in range(4):
        mask = (torch.arange(6) >= unseen).long()[None]
        (came,) = runner.run((x.numpy(), mask.numpy()))
        assert np.allclose(came, model(x, mask).numpy(), atol=1e-6)
        assert not came[:, :unseen].any()


class Axes(nn.Module):
    """Attention over any number of axes: of one head, or of a batch of batches; with a mask for all or for each."""

    def __init__(self, masked):
        super().__init__()
        self.masked = masked

    def forward(self, x):
        mask = {
            "none": None,
            "all": torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril(),
            "heads": (x.amax(-1, keepdim=True) > 0.5).expand(*x.shape[:-1], x.shape[-2])[-1:],
            "each": x @ x.transpose(-1, -2),
        }[self.masked]
        return nn.functional.scaled_dot_product_attention(x, 2 * x, x, attn_mask=mask)


@pytest.mark.parametrize("masked", ["none", "all", "heads", "each"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 2, 5, 4)], ids=len)
def test_attention_over_other_axes_than_four(shape, masked, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=shape, low=-1.0)
    model = Axes(masked)
    low = lowered(quantized(loaded(model, spec), "onnx", "fp32", backend="ort"), (spec,), tmp_path, "onnx",
                  backend="ort")  # fmt: skip
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    x = torch.rand(shape) * 2 - 1
    (came,) = runner.run((x.numpy(),))
    assert np.allclose(came, model(x).numpy(), atol=1e-6)


def test_layers_of_constants_are_computed_as_a_runtime_loads():
    square = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "square")
    nodes = [
        onnx.helper.make_node("MatMul", ["square", "square"], ["table"], "table"),
        onnx.helper.make_node("MatMul", ["x", "table"], ["y"], "mix"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [square]))
    assert [layer.name for layer in onnx_layers(onnx.shape_inference.infer_shapes(proto))] == ["mix"]


@pytest.mark.parametrize(("axis", "share"), [(0, 0.8), (1, 0.0)])
def test_the_tables_of_a_file_are_what_gather_reads_rows_of(axis, share, tmp_path):
    graph = onnx.parser.parse_graph(
        f"g (int64[1, 4] x) => (float[1, 4, 5] y) {{ r = Gather<axis = {axis}>(table, x)  y = MatMul(r, w) }}"
        if axis == 0
        else f"g (int64[4] x) => (float[20, 5] y) {{ r = Gather<axis = {axis}>(table, x)  y = MatMul(r, w) }}"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("table", (20, 4)), ("w", (4, 5))):
        values = rng.normal(size=shape).astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = tmp_path / "tables.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    sizes = (1, 4) if axis == 0 else (4,)
    work = file_work(path, (TensorSpec(name="x", dtype="int64", shape=sizes),))
    assert work.table_share == pytest.approx(share)
    assert work.linear_macs == (80 if axis == 0 else 400)


def test_adaptive_pools_over_three_axes_are_those_of_pytorch(tmp_path):
    cube = TensorSpec(name="x", dtype="float32", shape=(1, 2, 4, 8, 6), low=-1.0)
    model = loaded(nn.AdaptiveAvgPool3d((2, 4, 1)), cube)
    low = lowered(quantized(model, "onnx", "fp32", backend="ort"), (cube,), tmp_path, "onnx", backend="ort")
    runner = RUNNERS["onnx"](low.path, "ort", 1, trusted=True)
    runner.load()
    x = torch.rand(cube.shape) * 2 - 1
    np.testing.assert_allclose(runner.run((x.numpy(),))[0], model.model(x).numpy(), rtol=1e-5, atol=1e-6)


class Around(nn.Module):
    """Circular padding, unlike on each side, and a random relu: images [2, 3, 6, 8] to [2, 4, 9, 9]."""

    def __init__(self):
        super().__init__()
        self.pad = nn.CircularPad2d((1, 2, 0, 3))
        self.body = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
        self.relu = nn.RReLU()

    def forward(self, x):
        return self.relu(self.body(self.pad(x)))[..., :9]


@pytest.mark.parametrize(("runtime", "backend"), [("onnx", "ort"), ("openvino", "openvino")])
def test_circular_pads_and_random_relus_are_those_of_pytorch(runtime, backend, tmp_path):
    images = TensorSpec(name="x", dtype="float32", shape=(2, 3, 6, 8), low=-1.0)
    model = loaded(Around(), images)
    low = lowered(quantized(model, runtime, "fp32", backend=backend), (images,), tmp_path, runtime, backend=backend)
    runner = RUNNERS[runtime](low.path, backend, 1, trusted=True)
    runner.load()
    x = torch.rand(images.shape) * 2 - 1
    with torch.no_grad():
        expected = model.model(x).numpy()
    np.testing.assert_allclose(runner.run((x.numpy(),))[0], expected, rtol=1e-5, atol=1e-6)


class Distances(nn.Module):
    """The distances of rows [2, 6, 8] from four fixed ones, by several norms."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.centers = nn.Parameter(torch.linspace(-1, 1, 32).reshape(4, 8))

    def forward(self, x):
        x = self.body(x)
        return tuple(torch.cdist(x, self.centers, p) for p in (1.0, 2.0, 3.0, float("inf")))


@pytest.mark.parametrize(("runtime", "backend"), [("onnx", "ort"), ("openvino", "openvino")])
def test_distances_of_pairs_are_those_of_pytorch(runtime, backend, tmp_path):
    rows = TensorSpec(name="x", dtype="float32", shape=(2, 6, 8), low=-1.0)
    model = loaded(Distances(), rows)
    low = lowered(quantized(model, runtime, "fp32", backend=backend), (rows,), tmp_path, runtime, backend=backend)
    runner = RUNNERS[runtime](low.path, backend, 1, trusted=True)
    runner.load()
    x = torch.rand(rows.shape) * 2 - 1
    with torch.no_grad():
        expected = model.model(x)
    for came, wanted in zip(runner.run((x.numpy(),)), expected, strict=True):
        np.testing.assert_allclose(came, wanted.numpy(), rtol=1e-5, atol=1e-6)
