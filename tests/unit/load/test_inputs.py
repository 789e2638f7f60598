from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.load.inputs import DTYPES, MAX_ELEMENTS, bounded, parse_input, parse_inputs, random_inputs

SEQ = VaryingSize(axis=1, name="seq", least=8, most=128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", TensorSpec(name="input2", dtype="float32", shape=(1, 3, 224, 224))),
        ("image=1x3x8x8", TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 8))),
        ("float16:7", TensorSpec(name="input2", dtype="float16", shape=(7,))),
        (
            "tokens=int64:1x128:0..30521",
            TensorSpec(name="tokens", dtype="int64", shape=(1, 128), low=0.0, high=30521.0),
        ),
        ("1x4:-1.5..2e2", TensorSpec(name="input2", dtype="float32", shape=(1, 4), low=-1.5, high=200.0)),
        ("mask=bool:1x8", TensorSpec(name="mask", dtype="bool", shape=(1, 8))),
        ("a.b=int8:2:-128..127", TensorSpec(name="a.b", dtype="int8", shape=(2,), low=-128.0, high=127.0)),
        ("int32:2:5..5", TensorSpec(name="input2", dtype="int32", shape=(2,), low=5.0, high=5.0)),
        (
            "tokens=int64:1x{seq=8..128}:0..99",
            TensorSpec(name="tokens", dtype="int64", shape=(1, 128), high=99.0, varying=(SEQ,)),
        ),
        (
            "1x{8..128}",
            TensorSpec(name="input2", dtype="float32", shape=(1, 128), varying=(replace(SEQ, name="size2_1"),)),
        ),
        (
            "1x{ax=8..128/8}x2:-1..1",
            TensorSpec(
                name="input2", dtype="float32", shape=(1, 128, 2), low=-1.0, varying=(replace(SEQ, name="ax", step=8),)
            ),
        ),
    ],
)
def test_parses_every_form(text, expected):
    assert parse_input(text, 2) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a shape"),
        ("1x", "is not a shape"),
        ("1X3", "is not a shape"),
        ("1x0x3", "at least 1"),
        ("-1x3", "is not a shape"),
        ("65536x65536", f"exceed the maximum of {MAX_ELEMENTS}"),
        ("=1x3", "is not a valid name"),
        ("two words=1x3", "is not a valid name"),
        ("int64:1x8", "needs its range"),
        ("1x3:0..", "is not a range"),
        ("1x3:5..1", "is empty"),
        ("1x3:1..1", "is empty"),
        ("0..1", "shape is missing"),
        ("a:b:c:0..1", "too many parts"),
        ("uint8:1x3:0..256", "exceeds that of uint8"),
        ("float16:1:0..1e6", "exceeds that of float16"),
        ("float64:1:-1e308..1e308", "exceeds that of float64"),
        ("int64:1:0..9223372036854775807", "exceeds that of int64"),
        ("int64:1:0..1.5", "whole numbers"),
        ("1x3:nan..1", "is not a range"),
        ("1x3:0..1e999", "exceeds that of float32"),
        ("flaot32:1x3", "Did you mean 'float32'?"),
        ("١x٣", "is not a shape"),
        ("9" * 5000, "is not a shape"),
        ("1x{8..8}", "expected 1 <= LEAST < MOST"),
        ("1x{0..8}", "expected 1 <= LEAST < MOST"),
        ("1x{seq=8..130/8}", "both multiples of 8"),
        ("1x{seq=8..128/0}", "expected 1 <= LEAST < MOST"),
        ("1x{seq=8..128", "is not a range of sizes"),
        ("1x{seq}", "is not a range of sizes"),
        ("1x{2s=8..128}", "is not a range of sizes"),
        ("{n=1..65536}x65536", f"exceed the maximum of {MAX_ELEMENTS}"),
    ],
)
def test_says_what_is_wrong(text, reason):
    with pytest.raises(UsageError) as caught:
        parse_input(text, 0)
    assert reason in caught.value.what
    assert caught.value.exit_code == ExitCode.USAGE
    assert "1x3x224x224" in caught.value.fix or "0..30521" in caught.value.fix or "float32" in caught.value.fix


@st.composite
def specs(draw):
    dtype = draw(st.sampled_from(DTYPES))
    name = draw(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True))
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    if dtype == "bool":
        low, high = draw(st.sampled_from([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]))
    elif dtype.startswith("float"):
        most = min(float(np.finfo(dtype).max), 8e307)
        low, high = sorted(draw(st.lists(st.floats(-most, most), min_size=2, max_size=2, unique=True)))
        if low == high:  # 0.0 and -0.0
            high = 1.0
    else:
        info = np.iinfo(dtype)
        whole = st.integers(max(info.min, -(2**53)), min(info.max, 2**53)).map(float)
        low, high = sorted((draw(whole), draw(whole)))
    return TensorSpec(name=name, dtype=dtype, shape=shape, low=low, high=high)


def format_input(spec):
    whole = not spec.dtype.startswith("float")
    low, high = (str(int(value)) if whole else repr(float(value)) for value in (spec.low, spec.high))
    return f"{spec.name}={spec.dtype}:{'x'.join(map(str, spec.shape))}:{low}..{high}"


@given(specs())
def test_formatting_then_parsing_gives_the_same(spec):
    assert parse_input(format_input(spec), 0) == spec


@given(st.one_of(st.text(), st.from_regex(r"([a-z]+=)?([a-z0-9]+:)?[0-9x]+(:[-0-9.e]+)?")))
def test_any_text_gives_a_spec_or_a_usage_error(text):
    try:
        spec = parse_input(text, 0)
    except UsageError as err:
        assert "\n" not in err.what  # noqa: PT017
    else:
        assert spec.shape


@given(specs().filter(lambda spec: np.prod(spec.shape) < 10_000), st.integers(0, 2**63))
def test_random_inputs_stay_within_their_ranges(spec, seed):
    sample = random_inputs([spec], 3, seed, None).read(2)
    (array,) = sample.inputs
    assert array.shape == spec.shape
    assert array.dtype == spec.dtype
    assert array.min() >= np.asarray(spec.low).astype(spec.dtype)
    assert array.max() <= np.asarray(spec.high).astype(spec.dtype)


def test_random_integers_reach_both_ends():
    spec = parse_input("int8:1000:-2..2", 0)
    assert set(random_inputs([spec], 1, 0, None).read(0).inputs[0].tolist()) == {-2, -1, 0, 1, 2}


def test_random_inputs_depend_on_seed_and_index_alone():
    spec = parse_input("1x3x8x8", 0)
    first, again, other = (random_inputs([spec], 4, seed, None) for seed in (7, 7, 8))
    assert first.read(3).digest == again.read(3).digest
    assert len({sample.digest for data in (first, other) for sample in data}) == 8
    assert first.count == 4
    assert not first.labelled


def test_images_are_drawn_within_the_preprocessed_range_and_other_inputs_within_their_own():
    specs = [parse_input(text, 0) for text in ("1x3x8x8", "scale=1x64", "tokens=int64:1x64:0..9")]
    image, scale, tokens = random_inputs(specs, 1, 0, (-2.0, -1.0)).read(0).inputs
    assert -2 <= image.min() <= image.max() <= -1
    assert 0 <= scale.min() <= scale.max() <= 1
    assert 0 <= tokens.min() <= tokens.max() <= 9
    (only,) = random_inputs(specs[1:2], 1, 0, (-2.0, -1.0)).read(0).inputs
    assert only.max() <= -1


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="seed of 0 or more"):
        random_inputs([parse_input("1x3", 0)], 1, -1, None)


TABLES = (2000, 50, 7)


def looked_up(arrays):
    """Like three embedding tables, one for each column of the first input."""
    for column, rows in zip(arrays[0].T, TABLES, strict=True):
        if column.max() >= rows or column.min() < 0:
            raise IndexError("index out of range in self")


def test_each_column_of_a_table_s_ids_has_its_own_bound():
    specs = (parse_input("ids=int64:2x3:0..1999", 0), parse_input("dense=2x5", 1))
    ids, dense = bounded(specs, looked_up)
    assert ids.highs == (1999.0, 49.0, 6.0)
    assert (ids.low, ids.high, dense) == (0.0, 1999.0, specs[1])
    drawn = np.concatenate([random_inputs((ids, dense), 40, 0, None).read(i).inputs[0] for i in range(40)])
    assert (drawn.max(0) < TABLES).all()
    assert drawn[:, 0].max() > 1000
    assert set(drawn[:, 2]) == set(range(7))


@pytest.mark.parametrize("text", ["ids=int64:2x3:0..6", "ids=int64:2x3:0..5000", "ids=int64:1x3:-4..-1"])
def test_a_range_that_all_columns_or_none_take_stays_as_it_was_written(text):
    specs = (parse_input(text, 0),)
    assert bounded(specs, looked_up) == specs


@pytest.mark.parametrize(("least", "low"), [(1, 1.0), (5, 5.0), (8, 8.0), (0, 0.0), (9, 0.0)])
def test_lengths_begin_where_the_model_takes_them(least, low):
    specs = (parse_input("x=2x8", 0), parse_input("lengths=int64:2:0..8", 1), parse_input("ids=int64:2x3:0..4", 2))

    def packed(arrays):
        if arrays[1].min() < least:
            raise ValueError("Length of all samples has to be greater than 0")

    assert bounded(specs, packed) == (specs[0], replace(specs[1], low=low), specs[2])


def test_a_name_stands_for_one_range():
    with pytest.raises(UsageError, match=r"'seq' is 8\.\.64, but 8\.\.128 in 'a=1x{seq=8\.\.128}'"):
        parse_inputs(["a=1x{seq=8..128}", "b=1x{seq=8..64}"])


def test_random_inputs_have_the_largest_smallest_and_middle_sizes_first_and_share_them():
    specs = parse_inputs(["a=int64:1x{seq=8..128}:0..99", "b=1x3x{seq=8..128}"])
    samples = list(random_inputs(specs, 8, 0, None))
    assert [sample.inputs[0].shape[1] for sample in samples[:3]] == [128, 8, 68]
    assert all(8 <= sample.inputs[0].shape[1] == sample.inputs[1].shape[2] <= 128 for sample in samples)
    assert len({sample.inputs[0].shape[1] for sample in samples}) > 3
