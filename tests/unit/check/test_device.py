from __future__ import annotations

import dataclasses
import math

import pytest

from edgeq.check.device import device_gate, device_gates
from edgeq.check.limits import Measured, limit_gate
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import Agreement, DeviceRun, Emulation, Interval

from .gate_builders import fidelity, interval, verified

EQUAL = Agreement(
    left="host",
    right="cortex-a53",
    samples=16,
    max_abs=0.0,
    max_steps=0.0,
    sqnr_db=math.inf,
    differing=0.0,
    top1_flips=0,
)


def run(cpu: str = "cortex-a53", findings: tuple[str, ...] = (), **changes) -> DeviceRun:
    return DeviceRun(
        cpu=cpu,
        runtime="executorch 1.5.1",
        features=(),
        samples=16,
        host=dataclasses.replace(EQUAL, **changes),
        fp32=None,
        score=0.9,
        host_score=0.9,
        fp32_score=0.9,
        scored=16,
        rescored=0,
        drop_pp=Interval(estimate=0.0, low=-1.0, high=1.0),
        findings=findings,
    )


def emulation(*runs: DeviceRun, **changes) -> Emulation:
    return Emulation(emulator="QEMU 7.2.22", runs=runs, **changes)


def test_equal_runs_pass_and_are_named():
    gate = device_gate("static-int8", emulation(run(), run("cortex-a76")))
    assert gate.passed
    assert gate.measured == "equal"
    assert "cortex-a53 (executorch 1.5.1), cortex-a76 (executorch 1.5.1), over 16 samples" in gate.detail


@pytest.mark.parametrize(
    ("scheme", "changes", "passes"),
    [
        ("static-int8", {"max_steps": 1.0, "sqnr_db": 36.0}, True),
        ("static-int8", {"max_steps": 1.1, "sqnr_db": 60.0}, False),
        ("static-int8", {"max_steps": math.nan, "sqnr_db": math.nan}, False),
        ("static-int8", {"max_steps": None, "sqnr_db": 30.0}, True),
        ("static-int8", {"max_steps": None, "sqnr_db": 29.9}, False),
        ("static-int8", {"max_steps": None, "sqnr_db": math.nan}, False),
        ("fp32", {"max_steps": None, "sqnr_db": 110.0}, True),
        ("fp32", {"max_steps": 0.5, "sqnr_db": 59.9}, False),
        ("fp32", {"max_steps": None, "sqnr_db": math.nan}, False),
        ("fp32", {"max_steps": None, "sqnr_db": -math.inf}, False),
    ],
)
def test_one_bad_machine_fails_all(scheme, changes, passes):
    gate = device_gate(scheme, emulation(run("cortex-a76"), run(**changes)))
    assert gate.passed is passes
    if not passes:
        assert gate.exit_code == ExitCode.VERIFICATION
        assert "cortex-a53" in gate.detail
        assert "cortex-a76" not in gate.detail


def test_findings_fail_whatever_the_numbers():
    gate = device_gate("static-int8", emulation(run(findings=("output0 holds NaN or Inf",))))
    assert not gate.passed
    assert "NaN" in gate.detail


def test_a_deep_model_may_differ_as_much_as_its_graph_reacts():
    apart = emulation(run(max_steps=3.0, sqnr_db=25.0))
    assert not device_gate("static-int8", apart).passed
    assert device_gate("static-int8", apart, 20.0).passed
    assert not device_gate("static-int8", apart, 28.1).passed
    assert not device_gate("static-int8", emulation(run(max_steps=9.0, sqnr_db=5.0)), 1.0).passed


def test_what_is_not_known_is_unverified_and_what_crashed_failed():
    slow = device_gate("fp32", emulation(problem="emulation did not end within 2 s", is_unmeasured=True))
    assert (slow.outcome, slow.exit_code) == ("unverified", ExitCode.VERIFICATION)
    crashed = device_gate("fp32", emulation(problem="lacks operators", exit_code=ExitCode.UNSUPPORTED))
    assert (crashed.outcome, crashed.exit_code) == ("failed", ExitCode.UNSUPPORTED)


def test_no_emulation_no_gate():
    assert device_gates("fp32", verified()) == ()


def gate_of(name, limit, *runs, limit_on="interval"):
    report = verified(fidelity=fidelity(interval(0.1, -0.2, 0.3)))
    assert report.fidelity.sqnr_db >= 30
    assert report.fidelity.top1_agreement == 1
    measured = Measured(
        size_bytes=1,
        download_bytes=1,
        verified=dataclasses.replace(report, emulation=emulation(*runs)),
        limit_on=limit_on,
        host_arch="x86_64",
        target_arch="arm64",
        target_platform="android",
        threads=2,
    )
    return limit_gate(name, limit, measured)


def drop_gate(limit_on, *runs):
    return gate_of("accuracy_drop", 0.5, *runs, limit_on=limit_on)


def test_the_accuracy_gate_takes_the_worse_where_scores_differ():
    host = drop_gate("interval")
    same = drop_gate("interval", run())
    assert same == host  # the sub-set's wide interval does not count where every score is the host's
    worse = dataclasses.replace(run(), rescored=2, drop_pp=Interval(estimate=12.5, low=1.0, high=30.0))
    gate = drop_gate("interval", worse)
    assert not gate.passed
    assert gate.measured.startswith("30")
    assert "on cortex-a53 (executorch 1.5.1), 16 samples" in gate.detail
    better = dataclasses.replace(run(), rescored=2, drop_pp=Interval(estimate=-12.5, low=-30.0, high=-20.0))
    assert drop_gate("interval", better) == host
    assert drop_gate("point", worse).measured.startswith("12.5")


def unlike(fp32_db: float, fp32_flips: int, **host) -> DeviceRun:
    """Return a run that is apart from the host, with what it comes to against fp32."""
    own = dataclasses.replace(EQUAL, left="fp32", sqnr_db=fp32_db, top1_flips=fp32_flips, ranked=16)
    return dataclasses.replace(run(**host), fp32=own)


@pytest.mark.parametrize(
    ("name", "limit", "device", "passes"),
    [
        ("sqnr", 30.0, unlike(20.0, 0, sqnr_db=21.0, max_steps=1.0), False),
        ("sqnr", 30.0, unlike(math.nan, 0, sqnr_db=math.nan), False),
        ("sqnr", 30.0, unlike(31.0, 0, sqnr_db=34.0), True),
        ("sqnr", 30.0, unlike(20.0, 0), True),  # equal to the host, on samples that are hard for both
        ("agreement", 95.0, unlike(40.0, 1, top1_flips=1), False),
        ("agreement", 93.75, unlike(40.0, 1, top1_flips=1), True),
        ("agreement", 95.0, unlike(40.0, 1), True),
    ],
)
def test_what_a_device_computes_otherwise_counts_where_it_is_worse(name, limit, device, passes):
    gate = gate_of(name, limit, run(), device)
    assert gate.passed is passes
    assert passes or "on cortex-a53 (executorch 1.5.1), 16 samples" in gate.detail
