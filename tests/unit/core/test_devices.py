"""The cost model: exact where the rows are, and never below zero."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.core.devices import (
    FITTED_MS,
    PUBLISHED_FIT,
    QUANTILE,
    Observation,
    Speed,
    fit,
    groups,
    leave_one_out,
    load_device,
    predict,
)
from edgeq.core.results.measured import CLASSES, COUNTERS, Counts, total

ROWS = Path(__file__).parents[3] / "scripts" / "latency_rows.json"
CORE = Speed(width=2, clock_ghz=1.5)


def observation(instructions, lines, latency_ms, *, group="a", threads=1, speed=CORE):
    counts = Counts(scalar=instructions, lines_32k=lines)
    return Observation(group=group, speed=speed, threads=threads, counts=counts, latency_ms=latency_ms)


def made(instructions, lines, *, slot, line, group="a", threads=1):
    cycles = slot * instructions / (2 * threads) + line * lines
    return observation(instructions, lines, cycles / 1.5e6, group=group, threads=threads)


@given(st.floats(0.1, 10), st.floats(0.1, 100))
def test_constants_are_found_again(slot, line):
    rows = [
        made(1_000_000, 1_000, slot=slot, line=line),
        made(2_000_000, 50_000, slot=slot, line=line, group="b"),
        made(5_000_000, 10_000, slot=slot, line=line, group="c", threads=4),
    ]
    found = fit(rows)
    assert found.slot_cycles == pytest.approx(slot, rel=1e-6)
    assert found.line_cycles == pytest.approx(line, rel=1e-6)
    assert found.spread == pytest.approx(0, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 10**7), st.floats(0.01, 1e4)), min_size=1, max_size=8))
def test_no_constant_is_negative_and_no_prediction_is_nan(rows):
    observed = [observation(*row, group=str(i)) for i, row in enumerate(rows)]
    found = fit(observed)
    assert found.slot_cycles >= 0
    assert found.line_cycles >= 0
    assert all(math.isfinite(value) and value >= 0 for value in leave_one_out(observed))


def test_one_group_says_nothing_of_other_devices():
    assert fit([observation(1_000_000, 1000, 5.0)]).spread == math.inf


def test_nothing_to_fit_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        fit([])


def test_threads_share_instructions_but_not_the_second_level():
    alone = predict(Counts(scalar=3_000_000), CORE, 1).estimate_ms
    assert predict(Counts(scalar=3_000_000), CORE, 4).estimate_ms == pytest.approx(alone / 4)
    fetching = predict(Counts(lines_32k=1000), CORE, 1).estimate_ms
    assert predict(Counts(lines_32k=1000), CORE, 4).estimate_ms == pytest.approx(fetching)


def test_the_interval_holds_the_estimate_and_what_lies_outside_the_fit_is_said():
    told = predict(Counts(scalar=10_000_000), CORE, 1)
    assert told.low_ms < told.estimate_ms < told.high_ms
    assert told.extrapolated
    assert not predict(Counts(scalar=100_000_000), CORE, 1).extrapolated
    assert predict(Counts(scalar=10**9), CORE, 1).extrapolated


def published():
    data = json.loads(ROWS.read_text())
    rows = []
    for row in data["rows"]:
        device = load_device(row["device"])
        counts = Counts(**data["counts"][f"{row['model']}-{row['scheme']}@{device.core}"])
        speed = Speed(width=device.width, clock_ghz=device.clock_ghz)
        rows.append(
            Observation(
                group=row["group"], speed=speed, threads=row["threads"], counts=counts, latency_ms=row["latency_ms"]
            )
        )
    return rows


def test_the_shipped_constants_are_those_of_the_published_rows():
    rows, found = published(), fit(published())
    assert found.slot_cycles == pytest.approx(PUBLISHED_FIT.slot_cycles, rel=1e-3)
    assert found.line_cycles == pytest.approx(PUBLISHED_FIT.line_cycles, rel=1e-3)
    assert found.spread == pytest.approx(PUBLISHED_FIT.spread, rel=1e-3)
    assert (min(row.latency_ms for row in rows), round(max(row.latency_ms for row in rows))) == FITTED_MS


def test_the_published_rows_lie_in_the_interval_of_a_fit_on_the_other_devices():
    rows = published()
    factor = math.exp(QUANTILE * PUBLISHED_FIT.spread)
    ratios = [row.latency_ms / value for row, value in zip(rows, leave_one_out(rows), strict=True)]
    held = [1 / factor <= ratio <= factor for ratio in ratios]
    assert sum(held) / len(held) >= 0.95
    assert len(groups(rows)) == 8


def test_counts_add_and_subtract():
    one, two = Counts(scalar=3, load=2, bytes_loaded=16), Counts(scalar=1, branch=4)
    assert (one + two) - two == one
    assert total([one, two, one]).instructions == 15
    assert set(CLASSES) < set(COUNTERS)
    assert Counts(lines_1024k=7).lines(900) == 7
