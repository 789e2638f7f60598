"""ONNX files quantized by ONNX Runtime's own tools: the kernels that come of it, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_models import IMAGE, Silent, artifact, dataset, folder, loaded, lowered, quantized, sample
from torch import nn

from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import Dataset, batches
from edgeq.lower.onnx import lower_file
from edgeq.lower.spec import LowerSpec
from edgeq.quantize.onnx import FileSpec, quantize_file
from edgeq.verify.kernels import kernel_share
from edgeq.verify.metrics import Comparison
from edgeq.verify.runtimes import RUNNERS


class Words(nn.Module):
    """An embedding, attention, an LSTM of which the exporter leaves the weights in parts, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.head = nn.Linear(64, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.encoder(self.embedding(tokens)))[0][:, -1])


TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 12), low=0, high=49)


def float_file(kind):
    if kind == "image":
        return artifact("onnx", "fp32", "ort")[1].path, IMAGE
    path = folder() / "words" / "model.onnx"
    if not path.exists():
        lowered(quantized(loaded(Words, TOKENS), "onnx", "fp32", backend="ort"), (TOKENS,), path.parent, "onnx")
    return path, TOKENS


def made(kind, scheme, tmp_path, **given):
    path, spec = float_file(kind)
    options = {"observer": "minmax", "keep_fp32": (), "calibration": dataset((spec,)), **given}
    file = FileSpec(
        path=path, folder=tmp_path, inputs=(spec,), reduce_range=True, progress=Silent(), label="small", **options
    )
    return quantize_file(scheme, file), path, spec


def run(path, spec, tmp_path, count=4):
    runner = RUNNERS["onnx"](path, "ort", 1, trusted=True)
    runner.load()
    seen = list(batches(dataset((spec,), count + 8), (spec,)))[8:]
    return [runner.run(batch.inputs) for batch in seen], runner.profile(seen[0].inputs, tmp_path)


@pytest.mark.parametrize(
    ("kind", "scheme", "least_db", "layers"),
    [
        ("image", "static-int8", 25, 4),
        ("image", "static-a16w8", 30, 4),
        ("image", "dynamic-int8", 30, 2),
        ("words", "dynamic-int8", 30, 6),
        ("words", "fp16", 50, 6),
        ("image", "fp16", 50, 4),
    ],
)
def test_each_method_gives_its_kernels_and_nearly_the_outputs(kind, scheme, least_db, layers, tmp_path):
    result, source, spec = made(kind, scheme, tmp_path)
    target = LowerSpec(inputs=(spec,), backend="ort", folder=tmp_path, progress=Silent(), label="small")
    low = lower_file(source, result.proto, target)
    expected, _ = run(source, spec, tmp_path)
    came, kernels = run(low.path, spec, tmp_path)
    sums = Comparison()
    for left, right in zip(expected, came, strict=True):
        sums.add(left, right)
    assert sums.sqnr_db >= least_db
    assert len(result.quantized) == layers
    if scheme == "static-a16w8":  # no CPU has kernels for it: judged on the NPU's emulator
        assert dict(low.stored)["int8"] / sum(count for _, count in low.stored) > 0.7
        assert "QuantizeLinear" in {node.op_type for node in result.proto.graph.node}
        return
    share = kernel_share("onnx", kernels, low.layers)
    assert share.why_unmatched == ""
    if scheme == "static-int8":
        assert share.int8_macs == 1.0
    if scheme == "dynamic-int8":
        assert share.int8_linear_macs == 1.0
    if kind == "words":
        assert low.path.stat().st_size < source.stat().st_size
    if scheme == "fp16":
        assert dict(low.stored)["float16"] / sum(count for _, count in low.stored) > 0.9


def test_the_table_of_an_embedding_is_kept_in_eight_bits(tmp_path):
    result, source, _ = made("words", "dynamic-int8", tmp_path)

    def tables(proto):
        kinds = onnx.TensorProto.DataType
        return [kinds.Name(item.data_type) for item in proto.graph.initializer if tuple(item.dims) == (50, 64)]

    assert tables(onnx.load(source)) == ["FLOAT"]
    assert tables(result.proto) == ["UINT8"]


def test_the_calibrators_cut_outliers_off(tmp_path):
    def read(i):
        array = np.random.default_rng(i).random(IMAGE.shape).astype(np.float32)
        array[0, 0, 0, 0] = 9 if i == 31 else 0.5
        return sample(array)

    outliers = Dataset(origin="outliers", count=32, read=read)

    def scales(name):
        (tmp_path / name).mkdir()
        proto = made("image", "static-int8", tmp_path / name, observer=name, calibration=outliers)[0].proto
        scalars = [item for item in proto.graph.initializer if "scale" in item.name and not item.dims]
        return {item.name: onnx.numpy_helper.to_array(item).item() for item in scalars}

    minmax, percentile, entropy = (scales(name) for name in ("minmax", "percentile", "entropy"))
    assert minmax["x_scale"] == pytest.approx(9 / 255, rel=1e-3)
    assert percentile["x_scale"] < 0.99 * minmax["x_scale"]
    # ONNX Runtime's starts from as many bins as steps, and so keeps the range of what came first
    assert all(entropy[name] <= minmax[name] * 1.001 for name in minmax)


def test_layers_stay_in_float_by_their_modules_name(tmp_path):
    result, *_ = made("image", "static-int8", tmp_path, keep_fp32=("head", "conv"))
    assert (result.quantized, result.kept_fp32) == (("depth", "hidden.0"), ("conv", "head"))
    with pytest.raises(
        UsageError,
        match=(
            r"'haed' does not match any module .*did you mean|'haed' does not match "
            r"any module"
        ),
    ):
        made("image", "static-int8", tmp_path, keep_fp32=("haed",))


def test_what_cannot_be_quantized_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="qat-int8 needs a PyTorch model"):
        made("image", "qat-int8", tmp_path)
    with pytest.raises(UsageError, match="the histogram observer needs a PyTorch model"):
        made("image", "static-int8", tmp_path, observer="histogram")
    with pytest.raises(UsageError, match="there are none"):
        made("image", "static-int8", tmp_path, calibration=dataset((IMAGE,), 0))
    with pytest.raises(UnsupportedError, match="quantized nothing"):
        made("image", "dynamic-int8", tmp_path, keep_fp32=("Gemm",))


def test_a_file_that_is_quantized_is_not_quantized_again(tmp_path):
    path = artifact("onnx", "static-int8", "ort")[1].path
    file = FileSpec(
        path=path,
        folder=tmp_path,
        inputs=(IMAGE,),
        observer="minmax",
        keep_fp32=(),
        calibration=dataset((IMAGE,)),
        reduce_range=True,
        progress=Silent(),
        label="small",
    )
    with pytest.raises(UnsupportedError, match="already quantized") as caught:
        quantize_file("static-int8", file)
    assert "--scheme pretrained" in caught.value.fix


def test_an_old_opset_is_converted_first(tmp_path):
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((256, 5)).astype(np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    values = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 16, 16])]
    result = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])]
    graph = helper.make_graph(nodes, "old", values, result, [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=7)
    onnx.save(proto, str(tmp_path / "old.onnx"))
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1, 16, 16))
    file = FileSpec(
        path=tmp_path / "old.onnx",
        folder=tmp_path,
        inputs=(spec,),
        observer="minmax",
        keep_fp32=(),
        calibration=dataset((spec,)),
        reduce_range=True,
        progress=Silent(),
        label="old",
    )
    made = quantize_file("static-int8", file)
    assert next(item.version for item in made.proto.opset_import if not item.domain) == 18
    assert made.quantized == ("MatMul_1",)  # a node without a name gets one


class Tied(nn.Module):
    """A language model's ends: a head that multiplies by the table of the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(700, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 700, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.mix(self.embedding(tokens)))


class TiedToTheMean(Tied):
    """The head multiplies one row, by a Gemm that transposes its weights."""

    def forward(self, tokens):
        return self.head(self.mix(self.embedding(tokens)).mean(1))


class TiedTwice(Tied):
    """Two products and a lookup read one table."""

    def forward(self, tokens):
        x = self.mix(self.embedding(tokens))
        return self.head(x), x[:, 0] @ self.embedding.weight.t()


@pytest.mark.parametrize("kind", [Tied, TiedToTheMean, TiedTwice])
@pytest.mark.parametrize(("keep", "in_int8"), [((), ["head", "mix"]), (("head",), ["mix"])])
def test_a_tied_head_stays_tied_and_multiplies_in_int8(kind, keep, in_int8, tmp_path):
    model = loaded(kind, TOKENS)
    path = lowered(quantized(model, "onnx", "fp32", backend="ort"), (TOKENS,), tmp_path / "float", "onnx").path
    file = FileSpec(path=path, folder=tmp_path, inputs=(TOKENS,), reduce_range=False, progress=Silent(), label="small",
                    observer="minmax", keep_fp32=keep, calibration=dataset((TOKENS,)))  # fmt: skip
    result = quantize_file("dynamic-int8", file)
    onnx.checker.check_model(result.proto, full_check=True)
    assert [name for name in sorted(result.quantized) if name in ("head", "mix")] == in_int8
    # the table once, in eight bits
    sizes = [
        (item.data_type, int(np.prod(item.dims))) for item in result.proto.graph.initializer if len(item.dims) == 2
    ]
    assert [size for _, size in sizes if size >= 700 * 64] == [700 * 64]
    assert (onnx.TensorProto.FLOAT in [kind for kind, _ in sizes]) is False
    onnx.save(result.proto, tmp_path / "tied.onnx")
    (ours, *_), (exact, *_) = (run(one, TOKENS, tmp_path, 1)[0][0] for one in (tmp_path / "tied.onnx", path))
    assert float((exact**2).sum()) > 1000 * float(((ours - exact) ** 2).sum())


class CalledTwice(nn.Module):
    """One square matrix multiplies two rows: transposed in place for each, it would be right for neither."""

    def __init__(self, width):
        super().__init__()
        self.shared, self.head = nn.Linear(width, width), nn.Linear(2 * width, 5)

    def forward(self, x):
        return self.head(torch.cat((self.shared(x), self.shared(x.flip(-1).relu())), -1))


# of more axes and 8,192 values, as the layers of ALBERT, the exporter leaves its transposition in the graph
@pytest.mark.parametrize("shape", [(1, 8), (1, 4, 96)])
def test_a_layer_that_is_called_twice_is_quantized_once(shape, tmp_path):
    row = TensorSpec(name="x", dtype="float32", shape=shape, low=-1.0)
    model = loaded(CalledTwice(shape[-1]), row)
    path = lowered(quantized(model, "onnx", "fp32", backend="ort"), (row,), tmp_path / "float", "onnx").path
    file = FileSpec(path=path, folder=tmp_path, inputs=(row,), reduce_range=False, progress=Silent(), label="small",
                    observer="minmax", keep_fp32=(), calibration=dataset((row,)))  # fmt: skip
    result = quantize_file("dynamic-int8", file)
    onnx.checker.check_model(result.proto, full_check=True)
    square = [item.data_type for item in result.proto.graph.initializer if list(item.dims) == [shape[-1]] * 2]
    assert square == [onnx.TensorProto.INT8]
    onnx.save(result.proto, tmp_path / "twice.onnx")
    (ours, *_), (exact, *_) = (run(one, row, tmp_path, 1)[0][0] for one in (tmp_path / "twice.onnx", path))
    assert float((exact**2).sum()) > 1000 * float(((ours - exact) ** 2).sum())
