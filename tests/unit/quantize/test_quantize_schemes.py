"""Every scheme on every route, from the float model to the gates, by the real libraries and runtimes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from bundle_items import artifact, inputs
from scheme_models import PIXELS, TOKENS, Encoder, Language, Steps, Stubbed, UNet
from small_models import dataset, folder, forward, loaded, lowered, quantized
from torch import nn
from verify_cases import spec_of

from edgeq.check.evaluate import check
from edgeq.core.config import GateOptions
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.core.targets import load_target
from edgeq.demo import digits
from edgeq.load.model import load_model
from edgeq.quantize import METHODS
from edgeq.verify.host import HostRuntime
from edgeq.verify.verify import verify

QNNPACK, X86 = "android-arm64-qnnpack", "linux-x86_64-x86"
ROUTES = {"xnnpack": "android-arm64-xnnpack", "qnnpack": QNNPACK, "x86": X86}
SHORT = TensorSpec(name="tokens", dtype="int64", shape=(1, 4), low=0, high=99)  # ExecuTorch unrolls every step
STEPS = TensorSpec(name="x", dtype="float32", shape=(1, 4, 16))
ROWS = TensorSpec(name="x", dtype="float32", shape=(1, 6, 32))
SMALL_IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 64, 64))
DIGIT = TensorSpec(name="x", dtype="float32", shape=(1, 1, 32, 32))


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


def gates(runtime, model, scheme, backend, failing=()):
    """Make an artifact of `model`, run it, and judge it by the shipped profile."""
    target = load_target(ROUTES[backend])
    graph = quantized(model, target.runtime, scheme, backend=backend)
    place = folder() / f"scheme-{len(list(folder().iterdir()))}"
    low = lowered(graph, model.inputs, place, target.runtime, backend=backend)
    fp32 = None if scheme == "pretrained" else model.model
    spec = spec_of(low, graph, fp32, model.inputs, dataset(model.inputs, 8), scheme=scheme, backend=backend, runs=2)
    report, golden = verify(spec, runtime)
    made = artifact(low, report, scheme)
    judged = check(made, inputs(model), target, scheme, GateOptions(), download_bytes=made.size_bytes)
    failed = [(gate.name, gate.measured, gate.detail) for gate in judged.gates if not gate.passed]
    assert {name for name, _, _ in failed} == set(failing), failed
    return graph, low, report, golden


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "x86", "xnnpack"])
@pytest.mark.parametrize("scheme", ["dynamic-int8", "weight-only-int8", "fp16"])
def test_an_encoder_keeps_its_outputs_and_shrinks(runtime, scheme, backend):
    model = loaded(Encoder(depth=1), TOKENS)
    graph, low, report, _ = gates(runtime, model, scheme, backend)
    linears = [name for name, part in model.model.named_modules() if type(part) is nn.Linear]
    assert set(linears) <= set(graph.quantized)
    assert report.fidelity.sqnr_db > (55 if scheme == "fp16" else 30)
    dtype = "float16" if scheme == "fp16" else "int8"
    elements = sum(model.model.get_submodule(name).weight.numel() for name in linears)
    assert dict(low.stored)[dtype] >= elements
    if scheme == "dynamic-int8":
        assert report.kernels.int8_linear_macs == 1
        assert report.kernels.int8_macs < 1  # attention's own products
    elif backend == "xnnpack" and scheme == "fp16":
        assert report.kernels.half_macs == 1
    else:
        assert report.kernels.int8_macs == report.kernels.half_macs == 0  # stored, not computed


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "x86", "xnnpack"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_language_model_runs_its_cells_in_int8(runtime, kind, backend):
    model = loaded(Language(kind, depth=1), SHORT)
    _, low, report, _ = gates(runtime, model, "dynamic-int8", backend)
    assert report.kernels.int8_macs == 1, report.kernels
    gates_of = {nn.LSTM: 4, nn.GRU: 3}[kind]
    assert low.macs == 4 * (2 * gates_of * 32 * 32 + 32 * 100)
    assert report.fidelity.sqnr_db > 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend", "scheme"),
    [
        (nn.GRUCell, "x86", "dynamic-int8"),
        (nn.LSTMCell, "qnnpack", "static-int8"),
        (nn.GRUCell, "xnnpack", "static-int8"),
        (nn.RNNCell, "xnnpack", "dynamic-int8"),
        (nn.LSTMCell, "x86", "weight-only-int8"),
    ],
)
def test_a_cell_in_a_loop_runs_in_int8(runtime, kind, backend, scheme):
    _, low, report, _ = gates(runtime, loaded(Steps(kind), STEPS), scheme, backend)
    products = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}[kind] * 32 * (16 + 32)
    if scheme == "weight-only-int8":
        assert dict(low.stored)["int8"] >= products + 32 * 5
    else:
        assert report.kernels.int8_macs == 1, report.kernels
        assert low.macs in (4 * products + 32 * 5, 4 * products + 32 * 5 - products * 32 // 48)  # no product by zeros
    assert report.fidelity.sqnr_db > 25


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["x86", "xnnpack"])
def test_a_language_model_in_half(runtime, backend):
    _, _, report, _ = gates(runtime, loaded(Language(depth=1), SHORT), "fp16", backend)
    assert report.fidelity.sqnr_db > 55


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "xnnpack"])
def test_attention_of_pytorch_becomes_linear_layers(runtime, backend):
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    _, _, report, _ = gates(runtime, loaded(layer, ROWS), "dynamic-int8", backend)
    assert report.kernels.int8_linear_macs == 1
    assert report.fidelity.sqnr_db > 30


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "x86", "xnnpack"])
def test_a_unet_in_static_int8(runtime, backend):
    # FBGEMM cannot save transposed convolutions, so that one stays in float, and the audit says so
    left = () if backend in ("qnnpack", "xnnpack") else ("up",)
    graph, _, report, _ = gates(runtime, loaded(UNet, PIXELS), "static-int8", backend, {"int8_macs"} if left else ())
    assert len(graph.quantized) == 5 - len(left)
    assert graph.kept_fp32 == left
    assert report.fidelity.sqnr_db > 15


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "x86", "xnnpack"])
def test_the_digits_in_half(runtime, backend):
    gates(runtime, loaded(digits.model(), DIGIT), "fp16", backend)


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_a_module_with_stubs_goes_through_eager_mode(runtime, backend):
    model = loaded(Stubbed, PIXELS)
    graph, _, report, _ = gates(runtime, model, "static-int8", backend)
    assert type(graph.graph.norm) is nn.Identity  # folded into the convolution
    assert set(graph.quantized) == {"conv", "other", "head"}
    assert report.kernels.int8_macs == 1


def test_torchvisions_own_fusion_is_used():
    model = loaded(torchvision.models.quantization.resnet18(weights=None, num_classes=102), PIXELS)
    graph = quantized(model, backend="x86")
    assert len(graph.quantized) == 21
    assert "ConvReLU2d" in type(graph.graph.conv1).__name__


class Shared(nn.Module):
    """Uses what a convolution gives before its batch norm too."""

    def __init__(self):
        super().__init__()
        stubbed = Stubbed()
        self.quant, self.dequant, self.conv, self.norm = stubbed.quant, stubbed.dequant, stubbed.conv, stubbed.norm
        self.add = stubbed.add

    def forward(self, x):
        y = self.conv(self.quant(x))
        return self.dequant(self.add.add(y, self.norm(y)))


def test_fusion_that_would_change_the_model_is_refused():
    with pytest.raises(UnsupportedError, match=r"fusing .* changes what the model computes"):
        quantized(loaded(Shared, PIXELS), backend="x86")


class Misplaced(Stubbed):
    """Adds two int8 tensors by the plain operator, which eager mode has no kernel for."""

    def forward(self, x):
        x = self.quant(x)
        return self.dequant(self.conv(x) + self.conv(x))


def test_what_eager_mode_cannot_run_is_told():
    with pytest.raises(UnsupportedError, match="does not run") as caught:
        quantized(loaded(Misplaced, PIXELS), backend="x86")
    assert "FloatFunctional" in caught.value.fix


@pytest.fixture(scope="module")
def quantized_weights(tmp_path_factory):
    """What torchvision publishes for its quantized models, of a net with random weights: a converted state dict."""
    torch.manual_seed(0)
    net = torchvision.models.quantization.mobilenet_v2(weights=None).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.fill_(0.1)
    converted = quantized(loaded(net, SMALL_IMAGE), backend="qnnpack").graph
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2_qnnpack.pt"
    torch.save(converted.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_a_pretrained_model_is_taken_as_it_is(runtime, quantized_weights, backend):
    before = torch.backends.quantized.engine
    model = load_model(
        "torchvision:quantization.mobilenet_v2",
        weights=str(quantized_weights),
        inputs=("1x3x64x64",),
        name=None,
        seed=0,
    )
    assert torch.backends.quantized.engine == before
    assert (model.name, model.weights) == ("quantized_mobilenet_v2", "file")
    assert 13_900_000 < model.fp32_bytes < 14_200_000
    graph, low, report, _ = gates(runtime, model, "pretrained", backend)
    assert len(graph.quantized) == 53
    assert report.kernels.int8_macs == 1
    assert low.path.stat().st_size < 4_300_000
    with pytest.raises(UnsupportedError, match="already quantized") as caught:
        quantized(model, scheme="dynamic-int8", backend=backend)
    assert "--scheme pretrained" in caught.value.fix


def test_a_float_model_is_not_pretrained():
    with pytest.raises(UnsupportedError, match="not quantized"):
        quantized(loaded(UNet, PIXELS), scheme="pretrained")
    with pytest.raises(UsageError, match="--keep-fp32"):
        quantized(loaded(UNet, PIXELS), scheme="pretrained", keep=("head",))


@pytest.mark.parametrize(
    ("runtime_name", "scheme"),
    [("torchscript", "dynamic-int8"), ("executorch", "dynamic-int8"), ("executorch", "weight-only-int8")],
)
def test_a_scheme_without_a_layer_to_work_on_says_so(runtime_name, scheme):
    with pytest.raises(UnsupportedError, match=f"{scheme} quantized nothing: the model has no [lL]inear") as caught:
        quantized(loaded(nn.Conv2d(3, 4, 3), PIXELS), runtime_name, scheme)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("scheme", ["dynamic-int8", "weight-only-int8", "fp16"])
@pytest.mark.parametrize("runtime_name", ["torchscript", "executorch"])
def test_layers_are_kept_in_float(runtime_name, scheme):
    model = loaded(Encoder, TOKENS)
    graph = quantized(model, runtime_name, scheme, keep=("head", "blocks.1"))
    assert not [name for name in graph.quantized if name == "head" or name.startswith("blocks.1")]
    assert {"head", "blocks.1.up"} <= set(graph.kept_fp32)
    samples = dataset((TOKENS,), 1)
    (exact,) = forward(model.model)(_batch(samples))
    (came,) = forward(graph.graph, "qnnpack" if runtime_name == "torchscript" else None)(_batch(samples))
    assert 0 < abs(exact - came).max() < 0.05


def _batch(samples):
    from edgeq.core.samples import batches

    return next(iter(batches(samples, (TOKENS,))))


@pytest.mark.parametrize("runtime_name", ["torchscript", "executorch"])
def test_what_half_cannot_hold_is_refused(runtime_name):
    model = loaded(Encoder, TOKENS)
    model.model.head.weight.data[0, 0] = 70_000
    with pytest.raises(UnsupportedError, match=r"head\.weight holds 7e\+04"):
        quantized(model, runtime_name, "fp16")
    quantized(model, runtime_name, "fp16", keep=("head",))


def test_every_scheme_of_every_profile_has_a_method():
    for name in (*ROUTES.values(), "ios-arm64-xnnpack", "linux-x86_64-xnnpack", "linux-x86_64-fbgemm"):
        target = load_target(name)
        of_others = {("executorch", "static-a16w8"), ("executorch", "weight-only-palette4")}  # Ethos-U's and Core ML's
        assert {(target.runtime, scheme) for scheme in target.schemes} == {
            pair for pair in METHODS if pair[0] == target.runtime and pair not in of_others
        }
