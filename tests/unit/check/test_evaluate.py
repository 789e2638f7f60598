from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
from bundle_items import MODEL, artifact, inputs

from edgeq.check.artifact import outputs_gate, parity_gate
from edgeq.check.evaluate import check, validate_options
from edgeq.check.fidelity import FIDELITY
from edgeq.check.gates import GATES, allowed_unmeasured, exit_code_of
from edgeq.check.stores import store_limits
from edgeq.core.config import GateOptions
from edgeq.core.errors import ExitCode, UsageError
from edgeq.core.results.model import Layer

from .gate_builders import lowered, parity, sized, target, verified


def checked(options=None, report=None, model=None, profile=None, *, size_bytes=1000, download_bytes=900, **said):
    report = check(
        artifact(sized(model or lowered(), size_bytes), report or verified()),
        inputs(dataclasses.replace(MODEL, **said)),
        profile or target(),
        "static-int8",
        options or GateOptions(),
        download_bytes=download_bytes,
    )
    for gate in report.gates:
        assert gate.name in (*GATES, *store_limits())
        assert gate.exit_code in (exit_code_of(gate.name), ExitCode.VERIFICATION)
    return report


def by_name(report):
    return {gate.name: gate for gate in report.gates}


def test_a_sound_artifact_passes_all_gates_that_always_run():
    report = checked()
    names = list(by_name(report))
    assert {"parity", "outputs", "fidelity", "int8_macs", "delegated_macs", "runtime"} <= set(names)
    # `check_again` finds the place of the floor's gates by the table
    order = [name for name in GATES if name in names]
    assert names[: names.index(FIDELITY)] == order[: order.index(FIDELITY)]
    assert all(gate.outcome == "ok" for gate in report.gates)
    assert report.exit_code == ExitCode.OK
    (warning,) = report.warnings
    assert "accuracy was not judged" in warning


@pytest.mark.parametrize(
    ("scheme", "max_steps", "sqnr_db", "outcome"),
    [
        ("static-int8", 1.0, 5.0, "ok"),
        ("static-int8", 1.0000001, 5.0, "ok"),
        ("static-int8", 1.5, 90.0, "failed"),
        ("static-int8", 2.0, 90.0, "failed"),
        ("static-int8", math.nan, 90.0, "failed"),
        ("static-int8", None, 30.0, "ok"),
        ("static-int8", None, 29.99, "failed"),
        ("static-int8", None, math.nan, "failed"),
        ("fp32", None, 60.0, "ok"),
        ("fp32", None, math.inf, "ok"),
        ("fp32", None, 59.99, "failed"),
        ("fp32", 0.0, 59.99, "failed"),
    ],
)
def test_parity_is_one_step_or_a_signal_ratio(scheme, max_steps, sqnr_db, outcome):
    gate = parity_gate(scheme, parity(max_steps=max_steps, sqnr_db=sqnr_db))
    assert (gate.outcome, gate.exit_code) == (outcome, ExitCode.VERIFICATION)


@pytest.mark.parametrize("missing", [None, parity(samples=0)])
def test_parity_that_was_not_measured_is_unverified(missing):
    assert parity_gate("static-int8", missing).outcome == "unverified"


def test_an_existing_artifact_has_no_parity_gate_but_a_warning():
    report = checked(report=verified(parity=None), kind="pte")
    assert "parity" not in by_name(report)
    assert report.exit_code == ExitCode.OK
    assert "converted graph" in report.warnings[0]


def test_findings_fail_and_are_quoted():
    gate = outputs_gate(verified(findings=("output0 is NaN in 3 of 32 samples", "output1 is constant")))
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.VERIFICATION)
    assert gate.detail == "output0 is NaN in 3 of 32 samples; output1 is constant"


def test_outputs_of_what_never_ran_are_unverified():
    assert outputs_gate(verified(outputs=())).outcome == "unverified"
    assert outputs_gate(verified(outputs=(), findings=("it crashed",))).outcome == "failed"


def test_every_gate_is_evaluated_and_the_lowest_code_wins():
    options = GateOptions(
        limits=(("size", 10.0), ("latency", 1.0)), store_limits=("play-base-module",), app_size_bytes=10**9
    )
    profile = target("linux-x86_64-xnnpack", platform="android", arch="x86_64", app={"runtimes": ["1.4"]})
    report = checked(options, verified(findings=("NaN",)), profile=profile)
    failed = {gate.name: gate.exit_code for gate in report.gates if not gate.passed}
    assert failed == {"outputs": 7, "runtime": 3, "size": 4, "latency": 7, "play-base-module": 4}
    assert report.exit_code == ExitCode.UNSUPPORTED


def test_unverified_fails_unless_it_is_allowed_by_name():
    asked = GateOptions(limits=(("latency", 40.0),))
    allowed = GateOptions(limits=(("latency", 40.0),), allow_unmeasured=("latency",))
    assert checked(asked).exit_code == ExitCode.VERIFICATION
    report = checked(allowed)
    assert by_name(report)["latency"].outcome == "allowed"
    assert report.exit_code == ExitCode.OK


def test_allowing_one_gate_allows_no_other():
    options = GateOptions(limits=(("latency", 40.0), ("load", 40.0)), allow_unmeasured=("latency",))
    assert by_name(checked(options))["load"].outcome == "unverified"


def test_a_measured_failure_is_not_allowed_away():
    options = GateOptions(limits=(("latency", 1.0),), allow_unmeasured=("latency",))
    report = checked(options, profile=target("linux-x86_64-xnnpack"))
    assert by_name(report)["latency"].outcome == "failed"
    assert report.exit_code == ExitCode.LATENCY


def test_size_and_download_are_not_mixed_up():
    options = GateOptions(limits=(("size", 1000.0), ("download", 900.0)))
    assert checked(options).exit_code == ExitCode.OK
    assert by_name(checked(options, download_bytes=901))["download"].outcome == "failed"
    assert by_name(checked(options, size_bytes=1001))["size"].outcome == "failed"


def test_warnings_of_random_weights_and_of_the_store():
    options = GateOptions(store_limits=("play-asset-pack",))
    model = lowered(runtime="torchscript", version="2.15.0", bytecode=8, operators=("aten::conv2d",))
    report = checked(options, model=model, profile=target("android-arm64-qnnpack"), weights="random")
    assert report.exit_code == ExitCode.OK
    assert len(report.warnings) == 3
    assert "random" in report.warnings[0]
    assert "16 KB" in report.warnings[2]


def test_a_quantized_artifact_that_is_larger_than_the_float_weights_is_said():
    steps = tuple(Layer(name=f"lstm#{i}", op="linear", macs=10, weight_bytes=10, delegated=True) for i in range(100))
    unrolled = dataclasses.replace(lowered(), layers=steps)
    (said,) = [one for one in checked(model=unrolled, size_bytes=200_000).warnings if "as large as" in one]
    assert "the graph has 100 calls of 1 layer, as recurrent layers are written out step by step" in said
    assert "--state" in said
    (said,) = [one for one in checked(size_bytes=200_000).warnings if "as large as" in one]
    assert "step by step" not in said
    assert not [one for one in checked(size_bytes=90_000).warnings if "as large as" in one]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GateOptions(allow_unmeasured=("latencey",)), "Did you mean 'latency'"),
        (GateOptions(store_limits=("play-base-modul",)), "Did you mean 'play-base-module'"),
        (GateOptions(store_limits=("play-base-module",)), "--app-size"),
    ],
)
def test_options_are_refused_before_anything_is_done(options, message):
    with pytest.raises(UsageError, match=message):
        validate_options(options)
    with pytest.raises(UsageError, match=message):
        checked(options)


def test_every_target_must_fit_the_store():
    options = GateOptions(store_limits=("play-asset-pack",))
    validate_options(options, (target(),))
    with pytest.raises(UsageError, match="ios-arm64-xnnpack"):
        validate_options(options, (target(), target("ios-arm64-xnnpack")))


@pytest.mark.parametrize("name", allowed_unmeasured("package"))
def test_every_gate_may_be_named(name):
    validate_options(GateOptions(allow_unmeasured=(name,)))


def test_importing_the_gates_loads_no_torch():
    code = "import sys, edgeq.check; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'executorch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_verify_lets_its_own_score_stay_unmeasured_and_package_has_none():
    validate_options(GateOptions(allow_unmeasured=("score",)), command="verify")
    with pytest.raises(
        UsageError,
        match=(
            r"--allow-unmeasured score: `edgeq package` always measures this gate or "
            r"never judges it"
        ),
    ):
        validate_options(GateOptions(allow_unmeasured=("score",)))
    with pytest.raises(UsageError, match=r"--allow-unmeasured scroe: unknown gate\. Did you mean 'score'"):
        validate_options(GateOptions(allow_unmeasured=("scroe",)), command="verify")


def test_what_must_be_measured_cannot_be_allowed():
    for name in ("files", "golden", "signature", "contract", "training"):
        assert name in GATES
        assert name not in allowed_unmeasured("verify")


def test_exit_codes_come_from_the_table():
    assert exit_code_of("latency") == 6
    assert exit_code_of("play-base-module") == 4
    assert exit_code_of("runtime") == 3
    assert exit_code_of("of-a-newer-edgeq") == 7
