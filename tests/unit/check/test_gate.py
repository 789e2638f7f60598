from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.check.gate import amount, at_most, unverified
from edgeq.core.errors import ExitCode


def held(limit, measured, dimension="bytes"):
    return at_most(name="size", limit=limit, measured=measured, dimension=dimension, code=ExitCode.SIZE)


@given(st.integers(min_value=0, max_value=10**12))
def test_exactly_the_limit_passes_and_one_byte_more_does_not(limit):
    assert held(limit, limit).outcome == "ok"
    assert held(limit, limit + 1).outcome == "failed"
    assert held(limit, limit + 1).detail == "+1 B over"


@given(st.floats(min_value=0, max_value=1e6))
def test_the_smallest_float_over_a_limit_fails(limit):
    assert held(limit, limit, "ms").outcome == "ok"
    assert held(limit, math.nextafter(limit, math.inf), "ms").outcome == "failed"


@pytest.mark.parametrize(("limit", "measured"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)])
def test_nan_never_passes(limit, measured):
    gate = held(limit, measured, "ms")
    assert gate.outcome == "failed"
    assert gate.detail == "not a number"


def test_infinity_fails():
    assert held(40.0, math.inf, "ms").outcome == "failed"


def test_values_that_print_alike_are_compared_unrounded():
    gate = held(5_000_000, 5_000_001)
    assert gate.limit.endswith(gate.measured)
    assert not gate.passed


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (999, "bytes", "999 B"),
        (12_345, "bytes", "12.3 kB (12,345 B)"),
        (0.5, "bytes", "1 B"),
        (0.0012, "ms", "0.0012 ms"),
        (0.25, "pp", "0.25 pp"),
    ],
)
def test_a_difference_never_reads_as_zero(value, dimension, text):
    assert amount(value, dimension) == text


def test_unverified_is_a_verification_failure():
    gate = unverified("latency", "<= 40 ms", "no timing")
    assert (gate.outcome, gate.exit_code, gate.passed) == ("unverified", ExitCode.VERIFICATION, False)
