from __future__ import annotations

import math

import pytest
import torch
from small_models import IMAGE, Silent, SmallNet, dataset, loaded, outputs_of, quantized
from torch import nn
from torch.nn import functional

from edgeq.core.results.model import LayerSqnr, LayerSqnrs
from edgeq.quantize import calibrate, fx, fx_observers
from edgeq.quantize import spec as spec_module
from edgeq.quantize.layer_error import float_run

LAYERS = ["conv", "depth", "hidden.0", "head"]


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_each_layer_is_compared_in_the_order_of_execution(backend):
    found = quantized(loaded(SmallNet), backend=backend).layer_sqnrs
    assert [one.layer for one in found.layers] == LAYERS
    assert found.samples == 8
    assert all(15 < one.sqnr_db < 60 and 15 < one.own_db < 60 for one in found.layers)
    assert found.layers[0].sqnr_db == found.layers[0].own_db
    assert found.layers[-1].own_db > found.layers[-1].sqnr_db


def test_the_ratio_is_that_of_its_definition():
    model = loaded(SmallNet)
    result = quantized(model, backend="x86")
    net, outputs = model.model, []
    result.graph.conv.register_forward_hook(lambda _part, _args, value: outputs.append(value.dequantize()))
    outputs_of(result.graph, model.inputs, 8, "x86")
    inputs = [torch.from_numpy(one.inputs[0]) for one in dataset(model.inputs, 8)]
    with torch.no_grad():
        exact = torch.stack([net.relu(net.norm(net.conv(one))) for one in inputs]).double()
    error = exact - torch.stack(outputs).double()
    expected = 10 * math.log10(float(exact.square().sum() / error.square().sum()))
    assert result.layer_sqnrs.layers[0].sqnr_db == pytest.approx(expected, abs=1e-3)


def test_a_layer_with_an_outlier_is_where_the_error_starts():
    model = loaded(SmallNet)
    with torch.no_grad():
        # a channel that is always zero, with a weight that takes QNNPACK's one scale for all channels
        model.model.conv.weight[0], model.model.conv.bias[0], model.model.norm.bias[0] = 0.0, 0.0, -1.0
        model.model.depth.weight[0] = 20.0
    found = quantized(model, backend="qnnpack").layer_sqnrs
    assert found.start is not None
    assert found.start.layer == "depth"
    assert found.before(found.start) == found.layers[0].sqnr_db


def test_layers_in_float_count_too_and_are_not_blamed():
    found = quantized(loaded(SmallNet), backend="x86", keep=["conv", "depth"]).layer_sqnrs
    plain = quantized(loaded(SmallNet), backend="x86").layer_sqnrs
    assert [one.layer for one in found.layers] == LAYERS
    assert found.layers[0].sqnr_db > plain.layers[0].sqnr_db
    assert [one.is_int8 for one in found.layers] == [False, False, True, True]


def test_a_layer_in_float_is_not_where_the_error_starts():
    def found(*is_int8):
        errors = zip(("conv", "up", "across", "head"), (35.0, 9.0, 36.0, 20.0), is_int8, strict=True)
        layers = (LayerSqnr(layer=name, sqnr_db=30.0, own_db=own, is_int8=one) for name, own, one in errors)
        return LayerSqnrs(samples=1, layers=tuple(layers))

    assert found(True, True, True, True).start.layer == "up"
    assert found(True, False, True, True).start.layer == "head"
    assert found(False, False, False, True).start.layer == "head"
    assert found(False, False, False, False).noisiest.layer == "up"


def test_the_observers_see_nothing():
    model = loaded(SmallNet)
    samples = dataset(model.inputs, 8)
    seen = []

    with fx.engine("x86"):
        spec = spec_module.QuantizeSpec(
            model=model,
            captured=None,
            backend="x86",
            observer="histogram",
            keep_fp32=(),
            calibration=samples,
            progress=Silent(),
            label="",
        )
        prepared = fx.prepare(spec)
        with Silent().task("") as task:
            calibrate.calibrate(prepared, samples, model.inputs, task)
        for _ in range(2):
            seen.append({name: value.clone() for name, value in prepared.state_dict().items()})
            float_run(
                prepared, samples, model.inputs, is_observer=fx.library().is_observer, name_of=fx_observers.layer_name
            )
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


class Clamps(nn.Module):
    """Convolutions with every kind of clamp between them. Takes [N, 3, 16, 16]."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(6))
        self.six, self.hard = nn.ReLU6(), nn.Hardtanh(0.0, 0.5, inplace=True)

    def forward(self, x):
        x = self.six(self.convs[0](x))
        x = self.hard(self.convs[1](x))
        x = functional.relu6(self.convs[2](x))
        x = functional.hardtanh(self.convs[3](x), 0.0, 0.4, inplace=True)
        x = self.convs[4](x)
        y = x.clamp_(0.0, 0.3)
        return self.convs[5](x + y).clamp(0.0, 0.3)


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_clamps_after_convolutions_keep_every_element_in_its_place(backend):
    result = quantized(loaded(Clamps), backend=backend)
    assert [one.layer for one in result.layer_sqnrs.layers] == [f"convs.{i}" for i in range(6)]
    assert min(one.sqnr_db for one in result.layer_sqnrs.layers) > 20


class Stubbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.six, self.last = nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.dequant(self.last(self.six(self.conv(self.quant(x)))))


def test_clamps_of_eager_mode_do_so_too():
    model = loaded(Stubbed, IMAGE)
    result = quantized(model, backend="qnnpack")
    assert result.layer_sqnrs is None
    for ours, theirs in zip(
        outputs_of(result.graph, model.inputs, 4, "qnnpack"), outputs_of(model.model, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 0.1 * abs(theirs[0]).max()
