"""How far a fitted device's predictions may be off; the whole of `edgeq devices fit` is in tests/unit/cli."""

from __future__ import annotations

import numpy as np
import pytest

from edgeq.core.devices import PUBLISHED_FIT, QUANTILE
from edgeq.pipeline.fit_device import Measurement, logs_of, spread_of


@pytest.mark.parametrize("count", [4, 6, 12])
def test_the_interval_holds_the_next_model_19_times_of_20(count):
    draws = np.random.default_rng(count).normal(0.3, 0.1, (4000, count + 1))
    inside = [abs(one[-1] - one[:-1].mean()) <= QUANTILE * spread_of(one[:-1].tolist()) for one in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_one_model_measured_again_and_again_says_nothing_of_others():
    again = [(Measurement(bundle="a", latency_ms=10.0 + i / 100), 8.0) for i in range(20)]
    assert len(logs_of(again)) == 1
    assert spread_of(logs_of(again)) == PUBLISHED_FIT.spread
    others = [
        (Measurement(bundle="b", latency_ms=10.0), 9.0),
        (Measurement(bundle="b", latency_ms=6.0, threads=2), 9.0),
    ]
    assert len(logs_of([*again, *others])) == 3


def test_few_measurements_claim_no_less_than_the_published_fit():
    assert spread_of([0.1, 0.1]) == pytest.approx(PUBLISHED_FIT.spread / 2**0.5)
    assert spread_of([0.0, 0.5]) > PUBLISHED_FIT.spread
