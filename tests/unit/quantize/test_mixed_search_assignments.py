"""Which assignments of float are tried: the order by estimate, and what is tried when the estimate is wrong."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.results.model import Attempt, Scores, Sensitivity
from edgeq.quantize.mixed_search import Assignments, Cost, costs, frontier

LAYERS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.builds(Cost, weights=st.integers(1, 1000), noise=st.floats(0, 1e6, allow_subnormal=False)),
    min_size=1,
)


class Trials:
    """Attempts that are judged by a function instead of a run."""

    def __init__(self, layers, meets, fits=lambda _kept: True):
        self.layers, self.meets, self.fits = layers, meets, fits
        self.tried = []

    def run(self, kept):
        found = tuple(sorted(kept))
        assert 0 <= len(found) < len(self.layers)
        if found not in self.tried:
            self.tried.append(found)
        scores = Scores(sqnr_db=0.0, agreement=None, drop_pp=None)
        return Attempt(kept=found, size_bytes=self.weights(found), scores=scores, meets=self.meets(set(found)))

    def weights(self, kept):
        return sum(self.layers[name].weights for name in kept)

    def best(self, below=math.inf):
        Assignments(self.layers, self.run, self.fits).search(below)
        return min((self.weights(kept) for kept in self.tried if self.meets(set(kept))), default=None)


def noise_of(layers, kept):
    return sum(cost.noise for name, cost in layers.items() if name not in kept)


def assignments(layers):
    return [kept for count in range(len(layers)) for kept in itertools.combinations(layers, count)]


@given(LAYERS)
def test_no_assignment_beats_the_frontier_by_more_than_the_trimming(layers):
    points = frontier(layers)
    assert points[0] == ()
    assert all(len(kept) < len(layers) for kept in points)
    for kept in assignments(layers):
        weights, noise = (sum(layers[name].weights for name in kept), noise_of(layers, kept))
        assert any(
            sum(layers[name].weights for name in point) <= weights and noise_of(layers, point) <= noise * 1.15 + 1e-9
            for point in points
        )


@given(LAYERS, st.floats(0, 2e6))
def test_where_noise_adds_up_an_assignment_is_found_if_there_is_one(layers, most):
    trials = Trials(layers, lambda kept: noise_of(layers, kept) <= most)
    least = [trials.weights(kept) for kept in assignments(layers) if noise_of(layers, kept) <= most]
    found = trials.best()
    assert (found is None) == (not least)
    enough = [trials.weights(kept) for kept in assignments(layers) if noise_of(layers, kept) <= most / 1.15]
    if enough:
        assert found <= min(enough)


def test_the_largest_layer_is_spared_where_only_that_helps():
    """By noise for each byte it would come last, and so stay in int8."""
    layers = {"small": Cost(weights=1, noise=1.0), "large": Cost(weights=1000, noise=100.0)}
    trials = Trials(layers, lambda kept: noise_of(layers, kept) <= 10)
    assert trials.best() == 1000


def test_one_layer_in_int8_is_looked_for_where_the_estimate_is_wrong():
    layers = {name: Cost(weights=10 * i, noise=float(i)) for i, name in enumerate("abcdef", 1)}
    trials = Trials(layers, lambda kept: kept == set("abcde"))
    assert trials.best() == 150
    never = Trials(layers, lambda _kept: False)
    assert never.best() is None
    assert {kept for kept in never.tried if len(kept) == 5} == {tuple(sorted(set(layers) - {name})) for name in layers}


def test_what_does_not_fit_is_not_tried():
    layers = {name: Cost(weights=10, noise=1.0) for name in "abcd"}
    trials = Trials(layers, lambda kept: len(kept) == 3, fits=lambda kept: len(kept) < 3)
    assert trials.best() is None
    assert all(len(kept) < 3 for kept in trials.tried)


def test_only_what_is_smaller_is_tried_where_something_was_found():
    layers = {name: Cost(weights=10 * i, noise=float(i)) for i, name in enumerate("abcdef", 1)}
    trials = Trials(layers, lambda kept: noise_of(layers, kept) <= 12)
    assert trials.best(below=60) is None
    assert all(trials.weights(kept) < 60 for kept in trials.tried)


def test_layers_are_put_back_that_the_estimate_took_for_noisy():
    layers = {name: Cost(weights=10, noise=noise) for name, noise in zip("abc", (9.0, 8.0, 1.0), strict=True)}
    trials = Trials(layers, lambda kept: "b" in kept)
    assert trials.best() == 10


@pytest.mark.parametrize(("alone_db", "noise"), [(20.0, 0.01), (math.inf, 0.0), (-math.inf, 1e12)])
def test_costs_of_a_ranking(alone_db, noise):
    item = Sensitivity(layer="a", alone_db=alone_db, but_one_db=None, weight_bytes=7)
    assert costs([item]) == {"a": Cost(weights=7, noise=pytest.approx(noise))}
