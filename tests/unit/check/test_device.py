from __future__ import annotations

import dataclasses
import math

import pytest
from gate_builders import fidelity, interval, verified

from edgeq.artifacts import Agreement, DeviceRun, Emulation, Interval
from edgeq.check.device import device_gate, device_gates
from edgeq.check.limits import Measured, limit_gate
from edgeq.errors import ExitCode

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
    assert not device_gate("static-int8", apart, 26.0).passed
    assert not device_gate("static-int8", emulation(run(max_steps=9.0, sqnr_db=5.0)), 1.0).passed


def test_what_is_not_known_is_unverified_and_what_crashed_failed():
    slow = device_gate("fp32", emulation(problem="emulation did not end within 2 s", is_unmeasured=True))
    assert (slow.outcome, slow.exit_code) == ("unverified", ExitCode.VERIFICATION)
    crashed = device_gate("fp32", emulation(problem="lacks operators", exit_code=ExitCode.UNSUPPORTED))
    assert (crashed.outcome, crashed.exit_code) == ("failed", ExitCode.UNSUPPORTED)


def test_no_emulation_no_gate():
    assert device_gates("fp32", verified()) == ()


def drop_gate(limit_on, *runs):
    report = dataclasses.replace(verified(fidelity=fidelity(interval(0.1, -0.2, 0.3))), emulation=emulation(*runs))
    measured = Measured(
        size_bytes=1,
        download_bytes=1,
        verified=report,
        limit_on=limit_on,
        host_arch="x86_64",
        target_arch="arm64",
        target_platform="android",
        threads=2,
    )
    return limit_gate("accuracy_drop", 0.5, measured)


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
