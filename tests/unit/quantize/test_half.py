"""Half precision where it holds, float32 where it does not, by what the calibration samples show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import (
    IMAGE,
    Silent,
    SmallNet,
    captured_net,
    dataset,
    loaded,
    lowered,
    outputs_of,
    quantized,
    small_net,
)
from torch import nn

from edgeq.core.errors import AccuracyError, ExitCode, UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset
from edgeq.load.model import load_model
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture, example_tensors
from edgeq.quantize.half import HEADROOM
from edgeq.quantize.spec import QuantizeSpec
from edgeq.verify.metrics import Comparison

VECTOR = TensorSpec(name="x", dtype="float32", shape=(1, 8))
TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 6), low=0, high=19)
HALF = ("fp16", "bf16")


class Steep(nn.Module):
    """Three linear layers; the middle one, followed by a layer norm, multiplies by `gain`."""

    def __init__(self, gain):
        super().__init__()
        self.first, self.steep, self.norm, self.last = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
        )
        with torch.no_grad():
            self.steep.weight.copy_(gain * torch.eye(8))
            self.steep.bias.zero_()
            self.first.weight.copy_(torch.eye(8))
            self.first.bias.zero_()

    def forward(self, x):
        return self.last(self.norm(self.steep(self.first(x))))


class Attention(nn.Module):
    """An encoder layer, a mask of -1e9, softmax, and a second output."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 5)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, tokens):
        x = self.layer(self.embedding(tokens)).masked_fill((tokens == 0)[..., None], -1e9)
        return self.head(torch.softmax(x, 1).sum(1)), x.amax(1)


class Variance(nn.Module):
    """The spread around a large mean, where half has no digits left."""

    def __init__(self):
        super().__init__()
        self.lift, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.lift.weight.copy_(torch.eye(8))
            self.lift.bias.fill_(3000.0)

    def forward(self, x):
        y = self.lift(x)
        return self.head(y - y.mean(-1, keepdim=True))


def sqnr_db(graph, model, count=4):
    sums = Comparison()
    expected, measured = (outputs_of(module, model.inputs, count) for module in (model.model, graph.graph))
    for left, right in zip(expected, measured, strict=True):
        sums.add(left, right)
    return sums.sqnr_db


def dtypes(graph):
    """The dtype of each operator's result, by the module that it came from; of casts nothing."""
    found = {}
    for node in graph.exported.graph.nodes:
        name = node.meta.get("custom", {}).get("edgeq_module")
        if name and hasattr(node.meta.get("val"), "dtype"):
            found.setdefault(name, set()).add(node.meta["val"].dtype)
    return found


@pytest.mark.parametrize("scheme", [*HALF, "storage-fp16", "fp32"])
def test_outputs_stay_near_and_keep_their_dtype(scheme):
    model = small_net()
    graph = quantized(model, "cuda", scheme, backend="cuda", captured=captured_net())
    least = {"fp16": 55, "bf16": 35, "storage-fp16": 60, "fp32": 100}[scheme]
    assert sqnr_db(graph, model) > least
    assert {array.dtype.name for array in outputs_of(graph.graph, model.inputs)[0]} == {"float32"}
    assert graph.quantized == (() if scheme == "fp32" else ("conv", "depth", "hidden.0", "head"))
    assert graph.remarks == graph.kept_fp32 == ()


def test_batch_norm_is_folded_and_what_it_read_is_gone():
    graph = quantized(small_net(), "cuda", "fp16", backend="cuda", captured=captured_net())
    assert not any("batch_norm" in str(node.target) for node in graph.exported.graph.nodes)
    assert not any("norm" in name for name in graph.exported.state_dict)
    assert {tensor.dtype for tensor in graph.exported.state_dict.values()} == {torch.float16}


def test_the_model_itself_is_not_changed():
    model = loaded(SmallNet)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    quantized(model, "cuda", "fp16", backend="cuda")
    after = model.model.state_dict()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def test_a_layer_that_overflows_stays_in_float32_and_is_named():
    model = loaded(Steep(1e6), VECTOR)
    graph = quantized(model, "cuda", "fp16", backend="cuda")
    assert graph.quantized == ("first", "last")
    assert graph.kept_fp32 == ("steep", "norm")
    assert "half holds at most 65504" in graph.remarks[0]
    assert "steep (" in graph.remarks[0]
    assert dtypes(graph)["steep"] == dtypes(graph)["norm"] == {torch.float32}
    assert dtypes(graph)["first"] == dtypes(graph)["last"] == {torch.float16}
    assert sqnr_db(graph, model) > 50


def test_headroom_for_samples_to_come():
    most = float(max(abs(dataset((VECTOR,)).read(i).inputs[0]).max() for i in range(8)))
    kept = [
        quantized(loaded(Steep(share * 65504 / most), VECTOR), "cuda", "fp16", backend="cuda").kept_fp32
        for share in (0.99 / HEADROOM, 1.01 / HEADROOM)
    ]
    assert kept == [("norm",), ("steep", "norm")]


@pytest.mark.parametrize("share", [0.6, 0.99, 3.0])
def test_no_nan_at_the_edge_of_the_range(share):
    model = loaded(Steep(share * 65504), VECTOR)
    graph = quantized(model, "cuda", "fp16", backend="cuda")
    assert sqnr_db(graph, model, 8) > 45  # NaN compares as false


def test_bfloat16_has_the_range():
    graph = quantized(loaded(Steep(1e6), VECTOR), "cuda", "bf16", backend="cuda")
    assert graph.quantized == ("first", "steep", "last")
    assert graph.kept_fp32 == ("norm",)


def test_a_layer_that_loses_too_much_stays_in_float32_with_what_it_reads():
    model = loaded(Variance, VECTOR)
    graph = quantized(model, "cuda", "fp16", backend="cuda")
    assert "lift" in graph.kept_fp32
    assert graph.quantized == ("head",)
    assert "loses too much" in graph.remarks[0]
    assert sqnr_db(graph, model) > 50


def test_masks_softmax_and_norms_are_float32():
    model = loaded(Attention, TOKENS)
    graph = quantized(model, "cuda", "fp16", backend="cuda")
    assert set(graph.quantized) == {"embedding", "layer.self_attn", "layer.linear1", "layer.linear2", "head"}
    assert set(graph.kept_fp32) == {"layer.norm1", "layer.norm2", "amax"}  # the last reads the mask's numbers
    results = {
        str(node.target): node.meta["val"].dtype for node in graph.exported.graph.nodes if node.op == "call_function"
    }
    assert results["aten.masked_fill.Scalar"] == results["aten.softmax.int"] == torch.float32
    assert results["aten.scaled_dot_product_attention.default"] == torch.float16
    assert sqnr_db(graph, model) > 50


@pytest.mark.parametrize("scheme", ["fp16", "storage-fp16"])
@pytest.mark.parametrize(("keep", "left"), [("depth", ("depth",)), ("Linear", ("hidden.0", "head"))])
def test_keep_fp32_by_name_and_by_type(scheme, keep, left):
    graph = quantized(small_net(), "cuda", scheme, backend="cuda", keep=[keep], captured=captured_net())
    assert graph.kept_fp32 == left
    weights = {f"{name}.weight" for name in left}
    assert {
        name for name, tensor in graph.exported.state_dict.items() if tensor.ndim > 1 and tensor.dtype == torch.float32
    } == weights


def test_keep_fp32_of_nothing():
    with pytest.raises(UsageError, match="dephts"):
        quantized(small_net(), "cuda", "fp16", backend="cuda", keep=["dephts"], captured=captured_net())


def test_all_layers_kept_is_nothing_done():
    with pytest.raises(UnsupportedError, match="quantized nothing"):
        quantized(small_net(), "cuda", "fp16", backend="cuda", keep=["Conv2d", "Linear"], captured=captured_net())


def test_an_exported_program_knows_its_modules():
    model = loaded(SmallNet)
    program = capture(model)
    given = loaded(SmallNet)
    exported = type(given)(**{**{k: getattr(given, k) for k in given.__slots__}, "kind": "exported", "model": program})
    graph = quantized(exported, "cuda", "fp16", backend="cuda", keep=["Conv2d"], captured=program)
    assert graph.kept_fp32 == ("conv", "depth")


def test_every_layer_overflows():
    model = loaded(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), VECTOR)
    with torch.no_grad():
        for layer in model.model:
            layer.weight.fill_(1e5)
    with pytest.raises(AccuracyError, match="no layer") as caught:
        quantized(model, "cuda", "fp16", backend="cuda")
    assert caught.value.exit_code == ExitCode.ACCURACY
    assert "bf16" in caught.value.fix


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    graph = quantized(loaded(Tied, TOKENS), "cuda", "fp16", backend="cuda")
    assert len({tensor.data_ptr() for tensor in graph.exported.state_dict.values()}) == 1


def test_without_calibration_data_it_says_so():
    nothing = Dataset(origin="none", count=0, read=().__getitem__)
    spec = QuantizeSpec(
        model=small_net(),
        captured=captured_net(),
        backend="cuda",
        observer="minmax",
        keep_fp32=(),
        calibration=nothing,
        progress=Silent(),
        label="small",
    )
    assert "--calibration-data" in quantize("cuda", "fp16", spec).remarks[0]


class Resized(nn.Module):
    """A position embedding that forward resizes by an operator without half kernels, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.positions, self.head = nn.Parameter(torch.randn(1, 4, 4, 4)), nn.Linear(4, 3)

    def forward(self, image):
        grid = nn.functional.interpolate(self.positions, (6, 6), mode="bicubic", antialias=True)
        return self.head((image + grid).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kept", [(), ("head",)])
def test_a_constant_that_half_cannot_compute_is_computed_before(kept):
    image = TensorSpec(name="image", dtype="float32", shape=(1, 4, 6, 6), low=-1.0)
    model = loaded(Resized().eval(), image)
    result = quantized(model, "executorch", "fp16", backend="coreml", keep=kept)
    assert (result.quantized, result.kept_fp32) == ((("add",), ("head",)) if kept else (("add", "head"), ()))
    kinds = {str(node.target) for node in result.exported.graph.nodes if node.op == "call_function"}
    assert not any("upsample" in kind for kind in kinds)
    assert result.remarks == ()  # nothing had to be computed in float32
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(result.graph(x), model.model(x), atol=0.01, rtol=0.01)


def test_what_stays_in_float32_beside_such_a_constant_is_named():
    class Normed(Resized):
        def forward(self, image):
            return torch.softmax(super().forward(image), -1)

    image = TensorSpec(name="image", dtype="float32", shape=(1, 4, 6, 6), low=-1.0)
    result = quantized(loaded(Normed().eval(), image), "executorch", "fp16", backend="xnnpack")
    assert result.remarks == ("computed in float32: softmax",)


class Moved(nn.Module):
    """Positions that a layer gives, with no arithmetic between."""

    def __init__(self):
        super().__init__()
        self.places = nn.Conv2d(4, 2, 1)

    def forward(self, image):
        return nn.functional.grid_sample(image, self.places(image).permute(0, 2, 3, 1), align_corners=False)


def test_pixels_are_sampled_in_float32():
    image = TensorSpec(name="image", dtype="float32", shape=(1, 4, 6, 6), low=-1.0)
    result = quantized(loaded(Moved, image), "executorch", "fp16", backend="xnnpack")
    assert any("grid_sampler" in remark for remark in result.remarks)
    assert all(np.isfinite(values).all() for (values,) in outputs_of(result.graph, (image,), 4))


@pytest.mark.parametrize("kind", ["program", "archive"])
def test_a_graph_gets_casts_at_its_inputs(tmp_path, kind):
    net = loaded(SmallNet).model
    if kind == "program":
        torch.export.save(torch.export.export(net, example_tensors((IMAGE,))), tmp_path / "net.pt2")
        model = load_model(str(tmp_path / "net.pt2"), weights=None, inputs=(), name=None, seed=0)
    else:
        torch.jit.trace(net, example_tensors((IMAGE,))).save(tmp_path / "net.pt")
        model = load_model(str(tmp_path / "net.pt"), weights=None, inputs=("1x3x16x16",), name=None, seed=0)
    result = quantized(model, "onnx", "fp16", backend="ort")
    stored = dict(lowered(result, model.inputs, tmp_path, "onnx", backend="ort").stored)
    assert stored["float16"] > 0.9 * sum(stored.values())
