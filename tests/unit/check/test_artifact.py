"""An artifact that nothing here can run: its graph can fail it, and can prove nothing of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bundle_items import artifact, inputs

from edgeq.check.evaluate import check
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode
from edgeq.core.results.measured import GraphOnly, VerifyReport

from .gate_builders import fidelity, interval, lowered, sized, target, verified

WHY = "Core ML runs on Apple's devices only"
GOOD = interval(0.2, -0.1, 0.4)


def unrun(drop=GOOD, findings=()) -> VerifyReport:
    report = verified(parity=None, fidelity=None, timing=None, kernels=None, peak_memory_bytes=None, load_ms=None)
    only = GraphOnly(why=WHY, fidelity=fidelity(drop=drop), findings=findings)
    return dataclasses.replace(report, host="nothing", graph_only=only)


def gates(report, allow=(), limits=()):
    options = GateOptions(limits=limits, allow_unmeasured=allow)
    made = artifact(sized(lowered(), 1000), report, "fp16")
    checked = check(made, inputs(), target("ios-arm64-coreml"), "fp16", options, download_bytes=900)
    return checked.exit_code, {gate.name: gate for gate in checked.gates}


def test_nothing_of_the_artifact_passes_without_being_allowed():
    limits = (("size", 1000.0), ("accuracy_drop", 0.5), ("latency", 40.0), ("peak_memory", 1e9), ("load", 900.0))
    code, found = gates(unrun(), limits=limits)
    assert code == ExitCode.VERIFICATION
    unverified = {name for name, gate in found.items() if gate.outcome == "unverified"}
    assert unverified == {"parity", "outputs", "accuracy_drop", "latency", "peak_memory", "load"}
    assert all(WHY in found[name].detail for name in unverified)
    assert {found[name].outcome for name in ("graph", "delegated_macs", "runtime", "size")} == {"ok"}
    code, found = gates(unrun(), allow=tuple(unverified), limits=limits)
    assert code == ExitCode.OK
    assert {found[name].outcome for name in unverified} == {"allowed"}


@pytest.mark.parametrize("drop", [interval(0.4, 0.1, 0.6), interval(math.nan, math.nan, math.nan)])
def test_a_graph_that_drops_too_much_fails_even_where_unmeasured_is_allowed(drop):
    allow = ("parity", "outputs", "accuracy_drop")
    code, found = gates(unrun(drop), allow=allow, limits=(("accuracy_drop", 0.5),))
    assert code == ExitCode.ACCURACY
    assert "converted graph" in found["accuracy_drop"].detail


def test_a_graph_that_is_wrong_fails():
    code, found = gates(unrun(findings=("output0 holds NaN or Inf",)), allow=("parity", "outputs"))
    assert code == ExitCode.VERIFICATION
    assert (found["graph"].outcome, found["graph"].detail) == ("failed", "output0 holds NaN or Inf")
