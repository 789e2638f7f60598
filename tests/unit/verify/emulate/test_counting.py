"""Counting on the real runtime under QEMU; the attribution to operators on made-up profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.core.errors import EnvironmentProblem, UnsupportedError, UsageError
from edgeq.core.results.measured import Counts
from edgeq.verify.emulate import counting
from edgeq.verify.emulate.counting import UnclearProfileError, attribute, count, countable_cores, find_core
from edgeq.verify.runtimes import Event

SELFTEST = Path(counting.__file__).with_name("selftest")


def looks(*instructions):
    return [Counts(scalar=value) for value in instructions]


def event(name, start, end, *, in_delegate=False):
    return Event(name=name, in_delegate=in_delegate, start=start * 1000, end=end * 1000)


# ten looks: two before the runtime's clock began, then the call, then the runner's own
DELEGATED = [
    event("conv", 0, 1, in_delegate=True),
    event("pool", 1, 2, in_delegate=True),
    event("DELEGATE_CALL", 1, 6),
    event("Method::execute", 0, 7),
]


def test_operators_of_a_delegate_lie_between_its_looks():
    # the delegate begins at the third; its two own looks follow, then one after each operator
    counters = looks(5, 7, 10, 20, 100, 1000, 1300, 1307, 1400, 1500)
    parts = attribute(DELEGATED, counters)
    assert [(part.name, part.counts.instructions) for part in parts] == [("conv", 900), ("pool", 300)]


def test_operators_of_the_runtime_itself_are_taken_as_logged():
    counters = looks(0, 10, 30, 70, 150, 160)
    events = [event("native_call_add.out", 1, 2), event("OPERATOR_CALL", 1, 2), event("Method::execute", 0, 3)]
    (part,) = attribute(events, counters)
    assert (part.name, part.counts.instructions) == ("native_call_add.out", 40)


def test_a_profile_that_does_not_fit_the_looks_is_refused():
    with pytest.raises(UnclearProfileError, match="3 operators"):
        attribute([event("more", 2, 3, in_delegate=True), *DELEGATED], looks(*range(10)))
    with pytest.raises(UnclearProfileError, match=r"Method::execute"):
        attribute(DELEGATED[:3], looks(*range(10)))


def test_an_unknown_core_is_told_with_the_nearest(qemu):
    with pytest.raises(UsageError, match="cortex-a73"):
        find_core("cortex-a74")
    with pytest.raises(UnsupportedError, match="max"):
        find_core("max")


def test_cores_that_qemu_lacks_have_the_part_number_of_their_own(qemu):
    parts = {name: find_core(name).part for name in countable_cores() if name.startswith(("cortex-a5", "cortex-a7"))}
    assert len(set(parts.values())) == len(parts)
    assert find_core("cortex-a73").name == "cortex-a72"


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(counting.shutil, "which", lambda _: None)
    with pytest.raises(EnvironmentProblem, match="gcc is missing") as told:
        counting._tools()
    assert told.value.fix.startswith("apt-get install")


@pytest.fixture(scope="module")
def digits_pte():
    return SELFTEST / "digits.pte"


@pytest.fixture(scope="module")
def reports(executorch, digits_pte, digits):
    return [count(executorch, "cortex-a53", digits_pte, digits[0], operators=i == 0) for i in range(5)]


@pytest.mark.slow
def test_counts_are_equal_on_every_run(reports):
    assert len({report.total for report in reports}) == 1
    assert reports[0].total.instructions > 1_000_000
    assert reports[0].total.int_mac > 100_000
    assert reports[0].total.other == 0


@pytest.mark.slow
def test_operators_add_up_to_the_total(reports):
    report = reports[0]
    assert report.why_no_operators == ""
    assert sum(part.counts.instructions for part in report.operators) == report.total.instructions
    multiplies = [part for part in report.operators if part.name.startswith(("Convolution", "Fully Connected"))]
    assert sum(part.counts.int_mac for part in multiplies) > 0.95 * report.total.int_mac
    assert report.operators[-1].name == "(runtime)"
    assert report.operators[-1].counts.instructions < 0.5 * report.total.instructions


@pytest.mark.slow
def test_a_core_with_dot_products_takes_them(reports, executorch, digits_pte, digits):
    newer = count(executorch, "cortex-a76", digits_pte, digits[0]).total
    assert newer.dot > 100_000
    assert reports[0].total.dot == 0
    assert newer.instructions < 0.6 * reports[0].total.instructions


@pytest.mark.slow
def test_a_lite_archive_is_told_by_operator(torch_lite, digits):
    report = count(torch_lite, "cortex-a53", SELFTEST / "digits.ptl", digits[0], operators=True)
    assert report.why_no_operators == ""
    assert sum(part.counts.instructions for part in report.operators) == report.total.instructions
    convolutions = [part for part in report.operators if part.name.startswith("quantized::conv2d")]
    assert sum(part.counts.int_mac for part in convolutions) > 0.9 * report.total.int_mac


@pytest.mark.slow
@pytest.mark.parametrize(("core", "has_dot"), [("cortex-a55", True), ("cortex-a75", False)])
def test_phones_with_a_cortex_a75_have_no_dot_products(executorch, digits_pte, digits, core, has_dot):
    assert bool(count(executorch, core, digits_pte, digits[0]).total.dot) == has_dot
