"""Which activations are rounded: none between layers in float, so that what a layer costs is what it costs alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_models import Silent, loaded
from torch import nn
from torch.nn import functional

from edgeq.core.samples import batches
from edgeq.quantize import fx, fx_observers, pt2e, rank_layers
from edgeq.quantize.calibrate import calibrate
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QuantizeSpec

from .qat_cases import scenes

ROUTES = [("torchscript", "qnnpack"), ("torchscript", "x86"), ("executorch", "xnnpack")]
LAYERS = ("stem", "body", "squeeze", "excite", "head")


class Gated(nn.Module):
    """A sum, a product, a pool and a sigmoid between layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.body(x)
        y = y * self.sigmoid(self.excite(self.relu(self.squeeze(self.pool(y)))))
        return self.head(torch.flatten(self.pool(x + y), 1))


class Unnamed(nn.Module):
    """A functional layer, which no name keeps in float, after one that has a name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 392)), nn.Parameter(torch.randn(5))

    def forward(self, x):
        return functional.linear(torch.flatten(self.stem(x), 1), self.weight, self.bias)


@pytest.fixture
def model():
    torch.manual_seed(3)
    net = Gated()
    with torch.no_grad():  # so that the gate matters
        net.squeeze.weight.mul_(8)
        net.excite.weight.mul_(8)
    return loaded(net)


def spec_of(model, runtime, backend) -> QuantizeSpec:
    return QuantizeSpec(
        model=model,
        captured=capture(model) if runtime == "executorch" else None,
        backend=backend,
        observer="histogram",
        keep_fp32=(),
        calibration=scenes(4, seed=1),
        progress=Silent(),
        label="gated",
    )


def converted(spec, kept, runtime):
    spec = dataclasses.replace(spec, keep_fp32=tuple(kept))
    prepared = fx.prepare(spec) if runtime == "torchscript" else pt2e.prepare(spec.captured.module(), spec)
    with spec.progress.task("") as task:
        calibrate(prepared, spec.calibration, spec.inputs, task)
    return fx.convert(prepared) if runtime == "torchscript" else pt2e.convert(prepared, "xnnpack")


@torch.no_grad()
def sqnr_db(spec, graph):
    signal = noise = 0.0
    for batch in batches(spec.calibration, spec.inputs):
        x = torch.from_numpy(batch.inputs[0].copy())
        exact = spec.model.model(x)
        signal += float(exact.square().sum())
        noise += float((exact - graph(x)).square().sum())
    return 10 * math.log10(signal / noise) if noise else math.inf


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_with_all_layers_in_float_nothing_is_rounded(model, runtime, backend):
    spec = spec_of(model, runtime, backend)
    with fx.engine("qnnpack" if backend == "xnnpack" else backend):
        assert sqnr_db(spec, converted(spec, LAYERS, runtime)) > 100


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_the_ranking_says_what_a_converted_model_with_one_layer_in_int8_measures(model, runtime, backend):
    spec = spec_of(model, runtime, backend)
    ranking = {item.layer: item.alone_db for item in rank_layers(runtime, spec).layers}
    assert set(ranking) == set(LAYERS)
    with fx.engine("qnnpack" if backend == "xnnpack" else backend):
        for layer in ("body", "squeeze", "head"):  # beside the product, the pool and the sum
            graph = converted(spec, [other for other in LAYERS if other != layer], runtime)
            assert ranking[layer] == pytest.approx(sqnr_db(spec, graph), abs=0.5), layer


def test_a_sum_is_in_int8_as_long_as_all_layers_beside_it_are(model):
    spec = spec_of(model, "torchscript", "qnnpack")
    with fx.engine("qnnpack"):
        assert "quantized.add" in converted(spec, (), "torchscript").code
        assert "quantized.add" in converted(spec, ("squeeze",), "torchscript").code
        assert "quantized.add" not in converted(spec, ("stem", "body"), "torchscript").code


def test_a_functional_layer_stays_in_int8_beside_one_in_float():
    spec = spec_of(loaded(Unnamed()), "torchscript", "qnnpack")
    with fx.engine("qnnpack"):
        graph = converted(spec, ("stem",), "torchscript")
    assert fx_observers.split_layers(graph) == (("linear",), ("stem",))
    assert 20 < sqnr_db(spec, graph) < 60
