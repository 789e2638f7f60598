"""What a number of samples can prove at best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.intervals import beyond_proof, least_provable_drop, samples_for_drop


@given(st.floats(0.05, 20))
def test_so_many_samples_prove_a_limit_and_a_tenth_of_them_do_not(limit_pp):
    needed = samples_for_drop(limit_pp / 100, 0, 0)
    assert beyond_proof(needed, limit_pp) == ""
    if needed >= 100:
        assert f"{limit_pp:g} pp needs {needed:,}" in beyond_proof(needed // 10, limit_pp)


@pytest.mark.parametrize(("count", "least"), [(599, 0.33), (2000, 0.10), (50, 3.77)])
def test_the_least_drop_is_that_of_no_change_at_all(count, least):
    assert least_provable_drop(count) == pytest.approx(least, abs=0.005)
    assert f"{count:,} distinct samples prove a drop within {least:.2f} pp at best" in beyond_proof(count, least / 2)
