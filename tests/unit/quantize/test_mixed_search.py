"""The search for the layers to leave in float: the ranking, lent ranges, and which assignment is taken."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from small_models import IMAGE, Silent, SmallNet, dataset, loaded, quantized

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import Scores
from edgeq.core.samples import batches
from edgeq.quantize import fx, fx_observers, quantize, rank_layers
from edgeq.quantize.calibrate import ObserverCache
from edgeq.quantize.capture import capture
from edgeq.quantize.mixed import fx_mixed, pt2e_mixed
from edgeq.quantize.mixed_search import EQUALIZED, TYPICAL, other_ranges
from edgeq.quantize.sensitivity import Subject, simulated
from edgeq.quantize.spec import QuantizeSpec, SearchSpec

from .qat_cases import scenes, uneven
from .test_fake_quant import Gated

ROUTES = [("torchscript", "qnnpack"), ("executorch", "xnnpack")]


def spec_of(model, runtime="torchscript", backend="qnnpack", *, calibration=None, **search) -> QuantizeSpec:
    model = dataclasses.replace(model, fp32_bytes=4 * sum(part.numel() for part in model.model.parameters()))
    samples = scenes(24, seed=2)
    asked = SearchSpec(
        **{
            "samples": samples,
            "score": lambda graph: sqnr_of(model.model, graph, samples, model.inputs, backend),
            "limits": (("sqnr", 20.0),),
            "size_limit": None,
            "state_folder": None,
            "identity": (),
            **search,
        }
    )
    return QuantizeSpec(
        model=model,
        captured=capture(model) if runtime == "executorch" else None,
        backend=backend,
        observer="histogram",
        keep_fp32=(),
        calibration=calibration or scenes(16, seed=1),
        progress=Silent(),
        label="small",
        search=asked,
    )


@torch.no_grad()
def sqnr_of(exact, graph, samples, specs, backend="qnnpack") -> Scores:
    signal = noise = 0.0
    before, torch.backends.quantized.engine = (
        torch.backends.quantized.engine,
        "qnnpack" if backend == "xnnpack" else backend,
    )
    for batch in batches(samples, specs):
        x = torch.from_numpy(batch.inputs[0].copy())
        expected = exact(x)
        signal += float(expected.square().sum())
        noise += float((expected - graph(x)).square().sum())
    torch.backends.quantized.engine = before
    return Scores(sqnr_db=10 * math.log10(signal / noise), agreement=None, drop_pp=None)


def outputs(graph, samples, specs):
    with torch.no_grad():
        return np.concatenate([graph(torch.from_numpy(b.inputs[0].copy())).numpy() for b in batches(samples, specs)])


def stubborn():
    """The same, with activations between the layers that no gain can be moved across."""
    model = uneven()
    model[1], model[3] = torch.nn.ReLU6(), torch.nn.ReLU6()
    return model


def spread_of(graph):
    """How many times larger the largest channel of the first convolution is than the smallest."""
    layer = graph.get_submodule("0")
    layer = layer[0] if isinstance(layer, torch.nn.Sequential) else layer
    weight = layer.weight().dequantize() if callable(layer.weight) else layer.weight.detach()
    ranges = weight.flatten(1).abs().amax(1)
    return float(ranges.max() / ranges.min().clamp(min=1e-6))


def test_the_layers_that_one_step_size_cannot_hold_are_ranked_first():
    found = rank_layers("torchscript", spec_of(loaded(uneven())))
    ranking, best = found.layers, found.best_kept
    assert found.order == ("0", "2", "6")
    assert best == max(ranking, key=lambda item: item.but_one_db)
    assert best.but_one_db > found.all_db
    assert ranking[-1].layer == "6"
    assert {item.layer for item in ranking} == {"0", "2", "6"}
    assert [item.alone_db for item in ranking] == sorted(item.alone_db for item in ranking)
    assert {item.layer: item.weight_bytes for item in ranking} == {"0": 216, "2": 576, "6": 160}


class Placed(torch.nn.Module):  # adds a parameter, which no layer owns, as a positional embedding is
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 3)
        self.place = torch.nn.Parameter(torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.last(self.first(x) + self.place).mean((2, 3))


def test_a_parameter_that_no_layer_owns_is_rounded_too():
    torch.manual_seed(0)
    ranking = rank_layers("torchscript", spec_of(loaded(Placed()))).layers
    assert {item.layer for item in ranking} == {"first", "last"}
    assert all(15 < item.alone_db < 80 for item in ranking)


def test_all_layers_simulated_come_near_to_the_converted_graph():
    model = loaded(uneven())
    spec = spec_of(model)
    static = quantized(model, calibration=spec.calibration)
    with fx.engine("qnnpack"):
        prepared = fx.prepare(spec)
        for batch in batches(spec.calibration, spec.inputs):
            prepared(torch.from_numpy(batch.inputs[0].copy()))
        simulation = simulated(
            Subject(prepared=prepared, library=fx.library(), layer_of=fx_observers.layer_of, ranges=ObserverCache())
        )
        samples = scenes(8, seed=4)
        exact = outputs(model.model, samples, model.inputs)
        simulation.quantize(simulation.layers)
        simulated_error = np.square(outputs(simulation.graph, samples, model.inputs) - exact).sum()
        real_error = np.square(outputs(static.graph, samples, model.inputs) - exact).sum()
        simulation.quantize(())
        np.testing.assert_array_equal(outputs(simulation.graph, samples, model.inputs), exact)
    assert 0.5 < simulated_error / real_error < 2.0


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_an_assignment_is_what_static_int8_makes_of_the_same_layers(runtime, backend):
    model = loaded(SmallNet)
    spec = spec_of(model, runtime, backend, limits=(("sqnr", 200.0),))
    found = quantize(runtime, "mixed-int8", spec)
    kept = found.search.found.kept
    assert kept
    assert not found.search.found.meets
    for remedy in (TYPICAL, EQUALIZED, *other_ranges(spec)):
        spec = remedy.apply(spec) if remedy.name in found.search.found.remedies else spec
    static = quantized(
        spec.model, runtime, backend=backend, keep=kept, calibration=spec.calibration, observer=spec.observer
    )
    assert sorted(found.kept_fp32) == sorted(static.kept_fp32)
    samples = dataset(model.inputs, 4)
    with fx.engine("qnnpack"):
        np.testing.assert_array_equal(
            outputs(found.graph, samples, model.inputs), outputs(static.graph, samples, model.inputs)
        )


def test_few_bytes_are_left_in_float():
    spec = spec_of(loaded(stubborn()), limits=(("sqnr", 10.0),))
    found = fx_mixed(spec).search
    assert not found.attempts[0].kept
    assert found.attempts[0].scores.sqnr_db < 10
    assert found.found.meets
    assert found.found.scores.sqnr_db >= 10
    meeting = [attempt for attempt in found.attempts if attempt.meets]
    assert found.found.size_bytes == min(attempt.size_bytes for attempt in meeting)
    assert 0 < len(found.found.kept) < 3


def test_layers_are_equalized_before_bytes_are_spent():
    model = loaded(uneven())
    before = copy.deepcopy(model.model.state_dict())
    found = fx_mixed(spec_of(model)).search
    assert [(attempt.remedies, attempt.meets) for attempt in found.attempts] == [((), False), ((EQUALIZED.name,), True)]
    assert (found.chosen, found.found.kept) == (1, ())
    assert found.attempts[1].size_bytes == found.attempts[0].size_bytes
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_a_calibration_sample_that_stands_out_is_left_out_before_bytes_are_spent():
    plain = scenes(16, seed=1)

    def read(i):
        sample = plain.read(i)
        bright = np.float32(50 if i == 3 else 1)
        return dataclasses.replace(sample, inputs=tuple(array * bright for array in sample.inputs))

    samples = dataclasses.replace(plain, read=read)
    spec = dataclasses.replace(spec_of(loaded(SmallNet), backend="x86", calibration=samples), observer="minmax")
    found = fx_mixed(spec).search
    assert [(attempt.remedies, attempt.meets) for attempt in found.attempts] == [((), False), ((TYPICAL.name,), True)]
    assert found.found.kept == ()


def test_on_x86_a_limit_is_met_that_the_ranking_says_one_layer_in_int8_keeps():
    spec = spec_of(loaded(Gated), backend="x86", samples=scenes(8, seed=1), calibration=scenes(8, seed=1))
    samples, model = spec.search.samples, spec.model
    alone_db = max(item.alone_db for item in rank_layers("torchscript", spec).layers)
    asked = dataclasses.replace(
        spec.search,
        limits=(("sqnr", alone_db - 1),),
        score=lambda graph: sqnr_of(model.model, graph, samples, model.inputs, "x86"),
    )
    assert fx_mixed(dataclasses.replace(spec, search=asked)).search.found.meets


def test_a_remedy_keeps_what_was_to_stay_in_float():
    spec = dataclasses.replace(spec_of(loaded(uneven())), keep_fp32=("Linear",))
    found = fx_mixed(spec)
    assert found.search.found.remedies
    assert found.kept_fp32 == ("6",)


def test_pt2e_searches_too():
    found = pt2e_mixed(spec_of(loaded(uneven()), "executorch", "xnnpack", limits=(("sqnr", 45.0),)))
    assert found.search.found.kept
    assert len(found.search.ranking) == 3
    assert set(found.kept_fp32) == set(found.search.found.kept)


def test_a_remedy_that_does_not_lead_to_the_limits_is_not_insisted_on():
    ranges = {"": 0.0, EQUALIZED.name: 1.0}

    def score(graph):
        """Evened weights help where all is int8; float helps only without them."""
        evened = spread_of(graph) < 10
        floats = sum(isinstance(part, torch.nn.Conv2d) for part in graph.modules())
        return Scores(
            sqnr_db=ranges[EQUALIZED.name if evened else ""] + 30.0 * (floats and not evened),
            agreement=None,
            drop_pp=None,
        )

    found = fx_mixed(spec_of(loaded(uneven()), score=score)).search
    assert found.found.meets
    assert found.found.remedies == ()
    assert {attempt.remedies for attempt in found.attempts if attempt.kept} == {(), (EQUALIZED.name,)}


def test_int8_as_it_is_when_it_is_good_enough():
    found = fx_mixed(spec_of(loaded(SmallNet), limits=(("sqnr", 1.0),), calibration=dataset((IMAGE,), 8)))
    assert found.search.found.kept == ()
    assert len(found.search.attempts) == 1


def test_no_assignment_beyond_the_size_is_tried():
    generous, spec = (spec_of(loaded(stubborn()), limits=(("sqnr", 10.0),)) for _ in range(2))
    first = fx_mixed(generous).search.found
    assert first.meets
    most = first.size_bytes
    tight = dataclasses.replace(spec, search=dataclasses.replace(spec.search, size_limit=most - 1))
    found = fx_mixed(tight).search
    assert not found.found.meets
    assert all(attempt.size_bytes < most for attempt in found.attempts)


def test_the_nearest_is_taken_when_none_is_good_enough():
    found = fx_mixed(spec_of(loaded(uneven()), limits=(("sqnr", 300.0),))).search
    assert not found.found.meets
    assert found.found.scores.sqnr_db == max(attempt.scores.sqnr_db for attempt in found.attempts)


def test_scores_that_are_not_finite_keep_no_limit():
    scores = Scores(sqnr_db=math.nan, agreement=None, drop_pp=math.nan)
    for limit in (("sqnr", 20.0), ("accuracy_drop", 1.0), ("agreement", 99.0)):
        found = fx_mixed(spec_of(loaded(uneven()), score=lambda _graph: scores, limits=(limit,))).search
        assert not any(attempt.meets for attempt in found.attempts)


def test_a_killed_search_goes_on_from_its_last_measurement(tmp_path):
    calls = []

    def dying(graph):
        calls.append(graph)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Scores(sqnr_db=0.0, agreement=None, drop_pp=None)

    spec = spec_of(loaded(stubborn()), state_folder=tmp_path, score=dying)
    with pytest.raises(KeyboardInterrupt):
        fx_mixed(spec)
    (state,) = tmp_path.iterdir()
    result = fx_mixed(spec)
    assert len(calls) == 1 + 1 + 4  # the first is not made again
    assert result.search_state == state
    assert [attempt.remedies for attempt in result.search.attempts] == [(), ("percentile ranges",), (), (), ()]


def test_a_torn_state_is_measured_again(tmp_path):
    spec = spec_of(loaded(uneven()), state_folder=tmp_path)
    first = fx_mixed(spec)
    first.search_state.write_bytes(first.search_state.read_bytes()[:-7])
    assert fx_mixed(spec).search == first.search


def test_a_model_without_layers_says_so():
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        fx_mixed(spec_of(loaded(torch.nn.Sequential(torch.nn.ReLU()))))
