from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import UsageError
from edgeq.load.selection import choose


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 2**32))
def test_classes_are_as_even_as_they_can_be(classes, limit, seed):
    chosen = choose(len(classes), limit=limit, seed=seed, classes=classes)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(limit, len(classes))
    available, taken = Counter(classes), Counter(classes[i] for i in chosen)
    most = max(taken.values())
    assert all(taken[name] >= min(available[name], most - 1) for name in available)


def test_the_seed_decides():
    picks = {seed: choose(1000, limit=10, seed=seed, classes=None) for seed in (0, 1)}
    assert picks[0] == choose(1000, limit=10, seed=0, classes=None)
    assert picks[0] != picks[1]


def test_all_are_taken_in_order_without_a_limit():
    assert choose(4, limit=None, seed=0, classes=None) == (0, 1, 2, 3)
    assert choose(4, limit=4, seed=0, classes=None) == (0, 1, 2, 3)
    assert choose(0, limit=None, seed=0, classes=None) == ()


def test_another_takes_the_place_of_an_unusable_one():
    chosen = choose(10, limit=5, seed=0, classes=None, usable=lambda i: i % 2 == 0)
    assert chosen == (0, 2, 4, 6, 8)
    assert choose(3, limit=None, seed=0, classes=None, usable=lambda i: i != 1) == (0, 2)


def test_unneeded_samples_are_not_asked_for():
    asked: list[int] = []
    choose(1000, limit=3, seed=0, classes=None, usable=lambda i: asked.append(i) is None)
    assert len(asked) == 3


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UsageError, match="at least 1 sample"):
        choose(5, limit=limit, seed=0, classes=None)
