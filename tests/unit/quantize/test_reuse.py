"""What of a shipped model stays beyond its scales: biases, near ranges and int8 values, as the accuracy allows."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from small_models import SmallNet, artifact, dataset, forward, loaded, quantized, small_net

from edgeq.core.results.model import Scores
from edgeq.core.samples import batches
from edgeq.lower.shipped import shipped_layers
from edgeq.quantize.reuse import MOST_LOST_DB, STRICT
from edgeq.quantize.spec import ReuseSpec

SAMPLES = dataset(small_net().inputs, 8)


def moved(model, steps, bias=0.0, *, inwards=True):
    """The model with its `conv` moved by so many int8 steps of each channel, towards zero or all upwards."""
    module = copy.deepcopy(model.model)
    with torch.no_grad():
        scale = module.conv.weight.abs().amax((1, 2, 3), keepdim=True) / 127.5
        way = -module.conv.weight.sign() if inwards else torch.ones_like(module.conv.weight)
        module.conv.weight += steps * scale * way * (module.conv.weight.abs() < 120 * scale)  # the range stays
        module.conv.bias += bias
    return dataclasses.replace(model, model=module)


def sqnr_against(model, backend=None):
    def score(graph):
        noise = signal = 0.0
        for batch in batches(SAMPLES, model.inputs):
            exact, came = forward(model.model)(batch)[0], forward(graph, backend)(batch)[0]
            noise, signal = noise + float(((exact - came) ** 2).sum()), signal + float((exact**2).sum())
        return Scores(sqnr_db=10 * math.log10(signal / noise), agreement=1.0, drop_pp=None)

    return score


def sticky(score, runtime="torchscript", backend="x86"):
    _, lowered = artifact(runtime, "static-int8", backend)
    return ReuseSpec(layers=shipped_layers(lowered.path, runtime), score=score, samples=8)


def always(_graph):
    return Scores(sqnr_db=30.0, agreement=1.0, drop_pp=0.0)


def values(result, name="conv"):
    return result.graph.get_submodule(name).weight().int_repr().numpy().astype(int)


@pytest.fixture(scope="module")
def shipped():
    return artifact("torchscript", "static-int8", "x86")[0]


def again(model, spec, shipped):
    return quantized(model, backend="x86", shipped=shipped.qparams, sticky=spec, calibration=dataset(model.inputs))


def test_values_less_than_a_step_away_stay_where_nothing_is_lost(shipped):
    tuned = moved(small_net(), 0.45)  # and rounding was off by half a step at most
    without, kept = again(tuned, None, shipped), again(tuned, sticky(always), shipped)
    assert (values(without) != values(shipped)).mean() > 0.3
    assert np.array_equal(values(kept), values(shipped))
    assert without.kept is None
    assert kept.kept.values >= (values(without) != values(shipped)).sum()
    assert kept.kept.tolerances.values == 1.0


def test_values_more_than_a_step_away_never_stay(shipped):
    tuned = moved(small_net(), 2.2)
    without, kept = again(tuned, None, shipped), again(tuned, sticky(always), shipped)
    far = abs(values(without) - values(shipped)) > 1
    assert far.any()
    assert np.array_equal(values(kept)[far], values(without)[far])


def test_a_training_that_would_be_lost_is_not(shipped):
    """All values moved the same way: to leave them where they were would undo the training, and its cost shows."""
    tuned = moved(small_net(), 0.45, inwards=False)
    score = sqnr_against(tuned, "x86")
    without, kept = again(tuned, None, shipped), again(tuned, sticky(score), shipped)
    assert kept.kept.sqnr_strict_db == pytest.approx(score(without.graph).sqnr_db, abs=1e-3)
    assert score(kept.graph).sqnr_db >= score(without.graph).sqnr_db - MOST_LOST_DB
    assert score(again(tuned, sticky(always), shipped).graph).sqnr_db < score(without.graph).sqnr_db - MOST_LOST_DB
    assert kept.kept.values < again(tuned, sticky(always), shipped).kept.values


@pytest.mark.parametrize(
    "worse",
    [
        Scores(sqnr_db=math.nan, agreement=1.0, drop_pp=0.0),
        Scores(sqnr_db=30.0 - 1.01 * MOST_LOST_DB, agreement=1.0, drop_pp=0.0),
        Scores(sqnr_db=60.0, agreement=0.99, drop_pp=0.0),
        Scores(sqnr_db=60.0, agreement=1.0, drop_pp=0.1),
    ],
)
def test_what_is_worse_in_any_measure_is_not_taken(shipped, worse):
    told = iter([always(None)])  # what fits alone is judged first
    tuned = moved(small_net(), 0.7)
    kept = again(tuned, sticky(lambda _graph: next(told, worse)), shipped)
    assert np.array_equal(values(kept), values(again(tuned, None, shipped)))
    assert kept.kept.tolerances == STRICT
    assert (kept.kept.values, kept.kept.biases, kept.kept.ranges) == (0, 0, 0)


def test_biases_stay_where_they_moved_less_than_rounding_moves_the_outputs(shipped):
    def bias(result):
        return result.graph.get_submodule("conv").bias().detach().numpy()

    near, far = (again(moved(small_net(), 0.0, by), sticky(always), shipped) for by in (1e-4, 0.5))
    assert np.array_equal(bias(near), bias(shipped))
    assert near.kept.biases > 0
    assert not (bias(far) == bias(shipped)).any()


def test_layers_of_another_model_are_left_alone(shipped):
    other = quantized(loaded(SmallNet, seed=5), backend="x86")
    spec = dataclasses.replace(sticky(always), layers=tuple(_shuffled(sticky(always).layers)))
    kept = again(moved(small_net(), 0.7), spec, shipped)
    assert kept.kept.layers == 0
    assert other.kept is None


def _shuffled(layers):
    for layer in layers:
        yield dataclasses.replace(layer, scales=tuple(2 * one for one in layer.scales))


@pytest.mark.slow
def test_pt2e_keeps_too():
    first, _ = artifact("executorch", "static-int8", "xnnpack")
    tuned = moved(small_net(), 0.45, bias=1e-4)
    spec = sticky(always, "executorch", "xnnpack")
    made = [
        quantized(tuned, "executorch", backend="xnnpack", shipped=first.qparams, sticky=one) for one in (None, spec)
    ]

    def constants(result):
        return {name: value for name, value in result.graph.state_dict().items() if value.dtype == torch.int8}

    without, kept = (
        sum(int((value != constants(first)[name]).sum()) for name, value in constants(one).items()) for one in made
    )
    assert without > 20
    assert kept == 0
    assert made[1].kept.biases > 0
    assert made[1].kept.layers == 4
    # the user's model is not touched
    again_same = moved(small_net(), 0.45, bias=1e-4)
    assert torch.equal(tuned.model.conv.weight, again_same.model.conv.weight)
