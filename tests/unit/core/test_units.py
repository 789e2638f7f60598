from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import UsageError
from edgeq.core.schemes import LIMITS, parse_limit
from edgeq.core.units import Dimension, counted, format_bytes, format_quantity, parse_quantity, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("5MB", "bytes", 5_000_000),
        ("5MiB", "bytes", 5 * 2**20),
        (" 1.5 kB ", "bytes", 1500),
        ("1KB", "bytes", 1000),
        ("1KiB", "bytes", 1024),
        ("0B", "bytes", 0),
        ("40ms", "ms", 40),
        ("0.3s", "ms", 300),
        ("250us", "ms", 0.25),
        ("0.5pp", "pp", 0.5),
        ("2%", "pp", 2),
        ("3.5Mcycles", "cycles", 3_500_000),
        ("800kcycles", "cycles", 800_000),
    ],
)
def test_quantities(text: str, dimension: Dimension, expected: float) -> None:
    assert parse_quantity(text, dimension) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "MB", "-5MB", "5,0MB", "1e3MB", ".5MB", "5 M B", "٥MB", "nanMB", "9" * 20 + "B"]
)
def test_no_number_with_a_unit(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number with a unit"):
        parse_quantity(text, "bytes")


@pytest.mark.parametrize(
    ("text", "dimension", "why"),
    [
        ("5Mb", "bytes", r"Did you mean 'MB'\?"),
        ("5ms", "bytes", "'ms'"),
        ("5MB", "ms", "'MB'"),
        ("5mb", "bytes", "'mb'"),
    ],
)
def test_a_unit_of_another_kind_is_named(text: str, dimension: Dimension, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_quantity(text, dimension)


def test_a_size_limit_never_grows() -> None:
    assert parse_size_bytes("1.0009kB") == 1000
    assert parse_size_bytes("0.1MB") == 100_000
    assert parse_size_bytes("0.3MB") == 300_000  # in binary floats 0.3 * 1e6 is 299999.99…


@given(st.integers(0, 10**15 - 1))
def test_whole_bytes_are_exact(size_bytes: int) -> None:
    assert parse_size_bytes(f"{size_bytes}B") == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (3_744_000, "3.74 MB"),
        (37_440_000, "37.4 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.00 MB"),
        (999_950_000, "1.00 GB"),
        (5_000_000_000_000, "5000.0 GB"),
    ],
)
def test_sizes_as_people_read_them(size_bytes: int, expected: str) -> None:
    assert format_bytes(size_bytes) == expected


@given(st.integers(1000, 10**12))
def test_a_printed_size_is_within_a_percent(size_bytes: int) -> None:
    number, unit = format_bytes(size_bytes).split()
    assert abs(parse_quantity(number + unit, "bytes") / size_bytes - 1) <= 0.01


@pytest.mark.parametrize(
    ("value", "dimension", "expected"),
    [
        (0, "ms", "0.00 ms"),
        (0.001, "ms", "0.001 ms"),
        (0.0094, "ms", "0.0094 ms"),
        (3.214, "ms", "3.21 ms"),
        (321.4, "ms", "321 ms"),
        (0.5, "pp", "0.50 pp"),
        (1500, "bytes", "1.50 kB"),
        (9999, "cycles", "9999 cycles"),
        (42_282, "cycles", "42.3 kcycles"),
        (10_052_947, "cycles", "10.05 Mcycles"),
    ],
)
def test_quantities_as_people_read_them(value: float, dimension: Dimension, expected: str) -> None:
    assert format_quantity(value, dimension) == expected


def test_every_limit_has_its_dimension() -> None:
    examples = {
        "bytes": ("2kB", 2000),
        "ms": ("2s", 2000),
        "pp": ("2pp", 2),
        "%": ("2%", 2),
        "dB": ("2dB", 2),
        "cycles": ("2kcycles", 2000),
    }
    for name, kind in LIMITS.items():
        text, value = examples[kind.dimension]
        assert parse_limit(f"{name}={text}") == (name, value)


@pytest.mark.parametrize(
    ("text", "why"),
    [("size", "expected a limit"), ("sise=5MB", "Did you mean 'size'"), ("size=5ms", "unknown unit 'ms'")],
)
def test_a_bad_limit_is_named(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_limit(text)


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "step", "1 step"),
        (1.0, "step", "1 step"),
        (0.9999, "step", "1 step"),
        (0.996, "step", "0.996 steps"),
        (0, "sample", "0 samples"),
        (2, "more try", "2 more tries"),
        (1, "entry", "1 entry"),
        (1024, "day", "1024 days"),
    ],
)
def test_counts_agree_with_their_noun(count, noun, text):
    assert counted(count, noun) == text


@pytest.mark.parametrize("text", ["agreement=101%", "accuracy_drop=150pp", "flips=100.5%", "class_drop=200%"])
def test_a_share_above_the_whole_is_no_limit(text: str) -> None:
    name, _, value = text.partition("=")
    with pytest.raises(UsageError, match=rf"expected {name} of at most 100(%|pp), got '{value}'"):
        parse_limit(text)
    assert parse_limit(f"{name}=100%") == (name, 100)
