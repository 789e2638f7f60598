from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from scheme_models import Steps
from small_models import IMAGE, SmallNet, dataset, loaded, outputs_of, quantized
from torch import nn
from torch.ao.nn.intrinsic.quantized import ConvReLU2d, LinearReLU

from edgeq.core.errors import ExitCode, UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.quantize.fx import engine

ENGINES = ("qnnpack", "x86", "fbgemm")


@pytest.mark.parametrize("backend", ENGINES)
def test_conv_bn_relu_and_linear_relu_become_one_int8_module(backend):
    before = torch.backends.quantized.engine
    result = quantized(loaded(SmallNet), backend=backend)
    parts = dict(result.graph.named_modules())
    assert isinstance(parts["conv"], ConvReLU2d)
    assert isinstance(parts["hidden.0"], LinearReLU)
    assert "norm" not in {str(node.target) for node in result.graph.graph.nodes}
    assert sorted(result.quantized) == ["conv", "depth", "head", "hidden.0"]
    assert result.kept_fp32 == ()
    per_channel = parts["conv"].weight().qscheme() == torch.per_channel_affine
    assert per_channel == (backend != "qnnpack")
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("backend", ENGINES)
def test_int8_stays_near_float(backend):
    model = loaded(SmallNet)
    result = quantized(model, backend=backend)
    for ours, theirs in zip(
        outputs_of(result.graph, model.inputs, 4, backend), outputs_of(model.model, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 0.1 * abs(theirs[0]).max()


def hooked_net():
    """SmallNet whose hooks change the input of the whole and the output of a layer."""
    net = SmallNet()
    net.register_forward_pre_hook(lambda _module, args: (args[0] * 2 - 1,))
    net.head.register_forward_hook(lambda _module, _args, result: result * 3 + 1)
    return net


def test_hooks_of_the_users_are_kept():
    model = loaded(hooked_net())
    result = quantized(model, backend="x86")
    for ours, theirs in zip(
        outputs_of(result.graph, model.inputs, 4, "x86"), outputs_of(model.model, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 0.1 * abs(theirs[0]).max()


def test_the_engine_is_restored_after_a_failure():
    before = torch.backends.quantized.engine
    other = next(name for name in ENGINES if name != before)
    with contextlib.suppress(KeyError), engine(other):
        assert torch.backends.quantized.engine == other
        raise KeyError
    assert torch.backends.quantized.engine == before
    with pytest.raises(UsageError):
        quantized(loaded(SmallNet), backend=other, keep=["no such"])
    assert torch.backends.quantized.engine == before


def test_an_engine_that_this_torch_has_not():
    with pytest.raises(UnsupportedError, match="no quantized engine 'hexagon'") as caught, engine("hexagon"):
        pass
    assert caught.value.exit_code == ExitCode.UNSUPPORTED


def test_quantizing_leaves_the_float_model_alone():
    model = loaded(SmallNet)
    state, (expected,) = copy.deepcopy(model.model.state_dict()), outputs_of(model.model, model.inputs)
    attributes = {name: sorted(vars(part)) for name, part in model.model.named_modules()}
    for backend in ENGINES:
        quantized(model, backend=backend)
    assert all(torch.equal(value, state[key]) for key, value in model.model.state_dict().items())
    assert {name: sorted(vars(part)) for name, part in model.model.named_modules()} == attributes
    assert (outputs_of(model.model, model.inputs)[0][0] == expected[0]).all()


def test_observers_differ_on_data_with_an_outlier():
    specs = (TensorSpec(name="x", dtype="float32", shape=(1, 1024)),)
    model = loaded(nn.Sequential(nn.Identity(), nn.Linear(1024, 4)), *specs)
    data = dataset(specs, 64)
    plain = data.read

    def read(i):
        found = plain(i)
        if i == 0:
            found.inputs[0][0, 0] = 100.0
        return found

    object.__setattr__(data, "read", read)
    scales = {}
    for observer in ("histogram", "minmax", "percentile"):
        graph = quantized(model, observer=observer, calibration=data).graph
        node = next(node for node in graph.graph.nodes if node.target is torch.quantize_per_tensor)
        scales[observer] = float(getattr(graph, node.args[1].target))
    assert scales["minmax"] == pytest.approx(100 / 255, rel=0.02)
    assert scales["percentile"] < 0.2 * scales["minmax"]
    assert len(set(scales.values())) == 3


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(["depth"], {"depth"}), (["Linear"], {"hidden.0", "head"}), (["hidden", "conv"], {"hidden.0", "conv"})],
)
def test_layers_are_kept_in_float_by_name_and_by_type(keep, kept):
    result = quantized(loaded(SmallNet), keep=keep)
    assert set(result.kept_fp32) == kept
    assert set(result.quantized) == {"conv", "depth", "hidden.0", "head"} - kept


def test_an_unknown_layer_offers_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'hidden'"):
        quantized(loaded(SmallNet), keep=["hiden"])


@pytest.mark.parametrize(
    ("module", "keep"),
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), ()),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), ("Conv2d",)),
        (nn.Sequential(nn.LayerNorm(16)), ()),
    ],
)
def test_nothing_to_quantize_is_an_error_not_a_silent_float_model(module, keep):
    with pytest.raises(UnsupportedError, match="quantized nothing") as caught:
        quantized(loaded(module), keep=keep)
    assert caught.value.exit_code == ExitCode.UNSUPPORTED


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight, None, (1, 1), (0, 0), (1, 1), 1)


class Unpackable(Functional):
    def forward(self, x):
        return torch.nn.functional.conv_transpose2d(x, self.weight.transpose(0, 1))


def test_functional_layers_count_as_quantized():
    assert len(quantized(loaded(Functional)).quantized) == 1


def test_what_the_engine_cannot_pack_is_unsupported_not_internal():
    with pytest.raises(UnsupportedError, match="FX cannot convert the model") as caught:
        quantized(loaded(Unpackable))
    assert "--keep-fp32" in caught.value.fix


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        if x.sum() > 0:  # the line that the message names
            x = -x
        return self.conv(x)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.opaque = Branching()

    def forward(self, x):
        return self.opaque(self.conv(x))


def test_what_fx_cannot_trace_is_named_by_module_and_line():
    with pytest.raises(UnsupportedError, match=r"test_fx\.py:\d+ in Branching\.forward") as caught:
        quantized(loaded(Branching))
    line = int(caught.value.what.partition("test_fx.py:")[2].partition(" ")[0])
    with open(__file__) as file:  # noqa: PTH123
        assert "the line that the message names" in file.readlines()[line - 1]
    assert "--keep-fp32" in caught.value.fix


def test_keeping_the_untraceable_module_in_float_helps_as_the_message_says():
    result = quantized(loaded(Wrapped), keep=["opaque"])
    assert result.quantized == ("conv",)
    assert result.kept_fp32 == ("opaque.conv",)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).flatten(1)


class Soft(Flat):
    def forward(self, x):
        return torch.log(self.conv(x).abs() + 1)


class Residual(Flat):
    def forward(self, x):
        y = self.conv(x)
        return y + torch.relu(y)


class Pooled(Flat):
    def forward(self, x):
        return torch.nn.functional.max_pool2d(self.conv(x), 2)


@pytest.mark.parametrize(
    ("kind", "known"), [(SmallNet, True), (Flat, True), (Residual, True), (Pooled, True), (Soft, False)]
)
def test_the_output_step_is_the_distance_of_output_values(kind, known):
    model = loaded(kind)
    result = quantized(model)
    (step,) = result.output_steps
    assert (step is not None) == known
    if step is not None:
        values = outputs_of(result.graph, model.inputs, 1, "qnnpack")[0][0] / step
        assert abs(values - values.round()).max() < 1e-3
        assert abs(values).max() > 1


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(7, 2)

    def forward(self, x, y):
        return {"map": self.conv(x), "scores": torch.softmax(self.linear(y), 1), "hidden": [self.linear(y)]}


def test_several_inputs_and_outputs_of_a_dict():
    model = loaded(Several, IMAGE, TensorSpec(name="y", dtype="float32", shape=(1, 7)))
    result = quantized(model)
    (came,) = outputs_of(result.graph, model.inputs, 1, "qnnpack")
    (expected,) = outputs_of(model.model, model.inputs)
    assert [array.shape for array in came] == [array.shape for array in expected]
    assert [step is not None for step in result.output_steps] == [True, False, True]


def test_calibration_does_not_change_the_samples():
    model = loaded(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)))
    data = dataset(model.inputs, 2, scale=-1.0)
    fixed = [data.read(i) for i in range(2)]
    object.__setattr__(data, "read", fixed.__getitem__)
    quantized(model, calibration=data)
    assert all((sample.inputs[0] <= 0).all() and sample.inputs[0].any() for sample in fixed)


def test_no_samples_are_refused_rather_than_ranges_made_up():
    with pytest.raises(UsageError, match="there are none"):
        quantized(loaded(SmallNet), calibration=dataset((IMAGE,), 0))


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        return self.head(self.table(tokens))


def test_a_sample_that_the_model_fails_on_is_named():
    specs = (TensorSpec(name="tokens", dtype="int64", shape=(1, 3), high=3.0),)
    wide = (TensorSpec(name="tokens", dtype="int64", shape=(1, 3), low=9.0, high=9.0),)
    with pytest.raises(UsageError, match="calibration fails on s0"):
        quantized(loaded(Picky, *specs), calibration=dataset(wide))


class Divides(SmallNet):
    def forward(self, image):
        return super().forward(image / 0.0 * 0.0)


def test_a_model_that_computes_nan_on_a_sound_sample_is_told_from_a_bad_sample():
    with pytest.raises(UsageError, match=r"calibration fails on s0.*the sample is finite, so the model itself"):
        quantized(loaded(Divides), calibration=dataset((IMAGE,), 2))
    net = SmallNet()
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(UsageError, match="weights hold NaN or Inf: ") as caught:
        quantized(loaded(net), calibration=dataset((IMAGE,), 2))
    assert "sample" not in caught.value.fix


def test_a_cell_is_kept_in_float_in_each_step():
    model = loaded(Steps(nn.GRUCell), TensorSpec(name="x", dtype="float32", shape=(1, 4, 16)))
    result = quantized(model, keep=["cell"])
    assert result.quantized == ("head",)
    assert len(result.kept_fp32) == 2 * 4
