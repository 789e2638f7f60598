"""PT2E on one tiny captured model: importing executorch takes seconds, so the tests share it."""

from __future__ import annotations

import pytest
import torch
from small_models import IMAGE, SmallNet, artifact, captured_net, dataset, loaded, outputs_of, quantized, small_net
from torch import nn

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError
from edgeq.core.results.model import TensorSpec
from edgeq.quantize.calibrate import activation_observer
from edgeq.quantize.capture import capture, run_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return small_net()


@pytest.fixture(scope="module")
def captured():
    return captured_net()


@pytest.fixture(scope="module")
def int8():
    return artifact("executorch", "static-int8", "xnnpack")[0]


def test_every_layer_is_int8_and_known_by_its_module(int8):
    assert sorted(int8.quantized) == ["conv", "depth", "head", "hidden.0"]
    assert int8.kept_fp32 == ()
    assert not [node for node in int8.graph.graph.nodes if "batch_norm" in str(node.target)]


def test_every_layer_is_compared_with_the_float_graph(int8):
    found = int8.layer_sqnrs
    assert [one.layer for one in found.layers] == ["conv", "depth", "hidden.0", "head"]
    assert all(15 < one.sqnr_db < 60 and 15 < one.own_db < 60 for one in found.layers)
    assert found.layers[0].sqnr_db == found.layers[0].own_db


def test_quantizing_leaves_the_model_and_its_capture_alone(model, captured, int8):
    fresh = loaded(SmallNet)
    assert int8.quantized
    for ours, theirs in (
        (captured.state_dict, fresh.model.state_dict()),
        (model.model.state_dict(), captured.state_dict),
    ):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    (expected,) = outputs_of(fresh.model, model.inputs)
    assert (outputs_of(captured.module(), model.inputs)[0][0] == expected[0]).all()


def test_the_output_step_is_the_distance_of_output_values(model, int8):
    (step,) = int8.output_steps
    values = outputs_of(int8.graph, model.inputs)[0][0] / step
    assert abs(values - values.round()).max() < 1e-3
    assert abs(values).max() > 1


def test_layers_are_kept_in_float_by_name_and_by_type(model, captured):
    # drop leaves no node in the graph, and is no mistake all the same
    result = quantized(model, "executorch", captured=captured, keep=["depth", "Linear", "drop"])
    assert sorted(result.kept_fp32) == ["depth", "head", "hidden.0"]
    assert result.quantized == ("conv",)


def test_an_unknown_layer_offers_the_nearest(model, captured):
    with pytest.raises(UsageError, match="Did you mean 'hidden'"):
        quantized(model, "executorch", captured=captured, keep=["hiden"])


def test_nothing_to_quantize_is_an_error_not_a_silent_float_model(model, captured):
    with pytest.raises(UnsupportedError, match="quantized nothing"):
        quantized(model, "executorch", captured=captured, keep=["Conv2d", "Linear"])


def test_the_percentile_cuts_an_outlier_off():
    specs = (TensorSpec(name="x", dtype="float32", shape=(1, 4096)),)
    linear, data = loaded(nn.Linear(4096, 4), *specs), dataset(specs, 16)
    plain = data.read

    def read(i):
        found = plain(i)
        if i == 0:
            found.inputs[0][0, 0] = 100.0
        return found

    object.__setattr__(data, "read", read)
    graph = quantized(linear, "executorch", observer="percentile", calibration=data).graph
    node = next(node for node in graph.graph.nodes if "quantize_per_tensor" in str(node.target))
    assert 1 / 255 <= node.args[1] < 0.2 * 100 / 255


def test_observers_of_pt2e_differ_on_data_with_an_outlier():
    from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver

    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 100.0
    scales = []
    for name in ("histogram", "minmax", "percentile"):
        observer = activation_observer(name, HistogramObserver, MinMaxObserver)(dtype=torch.int8)
        observer(values)
        scales.append(float(observer.calculate_qparams()[0]))
    histogram, minmax, percentile = scales
    assert minmax == pytest.approx(100 / 255, rel=0.01)
    assert percentile < 0.02 < minmax
    assert histogram not in (minmax, percentile)


def test_a_torch_that_renamed_what_the_percentile_replaces_is_refused():
    class Renamed:
        pass

    with pytest.raises(EnvironmentProblem, match="_non_linear_param_search"):
        activation_observer("percentile", Renamed, Renamed)
    assert activation_observer("minmax", Renamed, int) is int


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


def test_control_flow_that_depends_on_data_names_the_line():
    with pytest.raises(UnsupportedError, match=r"test_pt2e\.py:\d+ in Branching\.forward") as caught:
        capture(loaded(Branching()))
    assert "torch.where" in caught.value.fix


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(7, 2)

    def forward(self, x, y):
        return {"map": self.conv(x), "scores": torch.softmax(self.linear(y), 1)}


def test_several_inputs_and_outputs_of_a_dict():
    model = loaded(Several, IMAGE, TensorSpec(name="y", dtype="float32", shape=(1, 7)))
    captured = capture(model)
    result = quantized(model, "executorch", captured=captured)
    assert [step is not None for step in result.output_steps] == [True, False]
    (came,), (expected,) = (outputs_of(module, model.inputs) for module in (result.graph, model.model))
    assert [array.shape for array in came] == [array.shape for array in expected]
    assert quantized(model, "executorch", "fp32", captured=captured).output_steps == (None, None)


def test_a_misfit_shows_before_minutes_are_spent(model):
    assert [(spec.dtype, spec.shape) for spec in run_once(model)[0]] == [("float32", (1, 5))]
    wrong = loaded(SmallNet, TensorSpec(name="x", dtype="float32", shape=(1, 4, 16, 16)))
    with pytest.raises(UsageError, match=r"float32 \[1, 4, 16, 16\]\) at .*small_models\.py:\d+ in SmallNet\.forward"):
        run_once(wrong)


def test_a_model_in_half_is_told_what_it_lacks():
    with pytest.raises(UsageError, match=r"expected scalar type|dtype|Half") as caught:
        run_once(loaded(SmallNet().half()))
    assert caught.value.fix.startswith("its weights are float16: give it in float32 (model.float())")


def test_a_model_that_returns_no_tensors_is_refused():
    class Counting(nn.Module):
        def forward(self, x):
            return x, 3

    with pytest.raises(UnsupportedError, match="returns Tensor, int"):
        run_once(loaded(Counting()))


def test_the_float_weights_that_became_int8_are_let_go(int8):
    held = dict(int8.graph.named_parameters()) | dict(int8.graph.named_buffers())
    used = {node.target for node in int8.graph.graph.nodes if node.op == "get_attr"}
    assert set(held) <= used
    assert any(tensor.dtype == torch.int8 for tensor in held.values())
    largest = max(tensor.numel() for tensor in held.values() if tensor.dtype == torch.int8)
    assert all(tensor.numel() < largest for tensor in held.values() if tensor.dtype.is_floating_point)


class AloneNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y + x.mean()), y


@pytest.mark.parametrize(("make", "exports"), [(SmallNet, 0), (AloneNorm, 12)])
def test_patterns_with_norms_are_exported_where_norms_are_left(monkeypatch, make, exports):
    """They decide nothing without one: the prepared graph is that of the plain quantizer."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils as utils
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    from edgeq.quantize import pt2e

    monkeypatch.setattr(pt2e, "_NORM_PATTERNS", {})  # what tests before this one exported
    made = []
    export = utils._get_aten_graph_module_for_pattern
    monkeypatch.setattr(
        utils, "_get_aten_graph_module_for_pattern", lambda *args: (made.append(args), export(*args))[1]
    )
    program = torch.export.export(make().eval(), (torch.randn(1, 3, 16, 16),))
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = pt2e._prepared(program.module(), quantizer)
    assert len(made) == exports
    assert prepared.code == prepare_pt2e(program.module(), quantizer).code
    assert len(made) == exports + 12  # the annotators are the quantizer's own again


class Branches(nn.Module):
    """Convolutions in a list, which is itself never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        return torch.cat([head(self.stem(x)) for head in self.heads], 1)


def test_a_list_of_modules_is_kept_in_float_by_its_name():
    result = quantized(loaded(Branches), "onnx", backend="ort", keep=["heads"])
    assert result.kept_fp32 == ("heads.0.0", "heads.1.0")
