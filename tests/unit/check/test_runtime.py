from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgeq.check.runtime import LITE_RUNTIMES, operators_of, runtime_gate
from edgeq.core.errors import ExitCode

from .gate_builders import lowered, target

LITE = "android-arm64-qnnpack"


def field(*runtimes, name="android-arm64-xnnpack"):
    return target(name, app={"runtimes": runtimes})


def ptl(version="2.15.0", bytecode=8, operators=("aten::conv2d",)):
    return lowered(runtime="torchscript", version=version, bytecode=bytecode, operators=operators)


@pytest.mark.parametrize(
    ("exporter", "oldest", "outcome"),
    [
        ("1.5.1", "1.5", "ok"),
        ("1.5.1", "1.5.0", "ok"),
        ("1.4.0", "1.5", "ok"),
        ("1.9.0", "1.10", "ok"),
        ("1.6.0", "1.5.9", "failed"),
        ("1.10.0", "1.9", "failed"),
        ("2.0.0", "1.9", "failed"),
    ],
)
def test_an_artifact_runs_on_its_own_minor_version_and_newer_ones(exporter, oldest, outcome):
    assert runtime_gate(field(oldest), lowered(version=exporter)).outcome == outcome


def test_a_field_older_than_the_export_fails_with_both_versions_and_code_3():
    gate = runtime_gate(field("1.4.0", "1.5"), lowered())
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.UNSUPPORTED)
    assert "1.5.1" in gate.detail
    assert "1.4.0" in gate.detail


def test_the_oldest_counts_wherever_it_stands():
    assert runtime_gate(field("1.5", "1.4"), lowered()).outcome == "failed"


def test_an_unknown_exporter_is_unverified():
    gate = runtime_gate(field("1.5"), lowered(version="unknown"))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)


def test_operators_that_no_list_covers_are_said_to_be_unchecked():
    assert "operators not checked: no list for 1.5" in runtime_gate(field("1.5"), lowered()).detail
    ios = runtime_gate(field("1.5", name="ios-arm64-xnnpack"), lowered())
    assert "not checked" not in ios.detail


def test_an_artifact_of_another_runtime_fails():
    assert runtime_gate(target(LITE), lowered()).outcome == "failed"


@pytest.mark.parametrize(("version", "outcome"), [("2.15.0", "ok"), ("2.15.1+cpu", "ok"), ("2.16.0", "failed")])
def test_torchscript_on_a_host_goes_by_torch_version(version, outcome):
    # bytecode and operators are those of the host's own libtorch: an operator unknown to 2.1.0 is no matter
    model = ptl(version=version, bytecode=None, operators=("aten::rms_norm",))
    assert runtime_gate(target("linux-x86_64-x86"), model).outcome == outcome


def test_a_board_with_the_lite_interpreter_goes_by_bytecode_and_operators_too():
    board = target("linux-arm64-qnnpack")
    assert runtime_gate(board, ptl()).outcome == "ok"
    gate = runtime_gate(board, ptl(operators=("aten::rms_norm",)))
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.UNSUPPORTED)
    assert gate.detail == "torch 2.1.0 lacks aten::rms_norm"


@pytest.mark.parametrize(
    ("bytecode", "outcome"), [(3, "failed"), (4, "ok"), (8, "ok"), (9, "ok"), (10, "failed"), (None, "failed")]
)
def test_android_lite_goes_by_bytecode_whatever_torch_wrote_it(bytecode, outcome):
    gate = runtime_gate(target(LITE), ptl(bytecode=bytecode))
    assert (gate.outcome, gate.exit_code) == (outcome, ExitCode.UNSUPPORTED)


def test_operators_that_the_android_library_lacks_are_named():
    gate = runtime_gate(target(LITE), ptl(operators=("aten::conv2d", "aten::rms_norm", "my::op")))
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.UNSUPPORTED)
    assert "lacks aten::rms_norm, my::op" in gate.detail
    assert "conv2d" not in gate.detail


def test_an_archive_whose_operators_are_not_known_lacks_none_that_anybody_saw():
    gate = runtime_gate(target(LITE), ptl(operators=()))
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)


def test_a_long_list_of_missing_operators_is_cut():
    gate = runtime_gate(target(LITE), ptl(operators=tuple(f"my::op{i}" for i in range(7))))
    assert "my::op4 and 2 more" in gate.detail


def test_a_lite_runtime_that_nothing_is_known_of_is_unverified():
    gate = runtime_gate(field("1.13.1", name=LITE), ptl())
    assert (gate.outcome, gate.exit_code) == ("unverified", ExitCode.VERIFICATION)
    assert "1.13.1" in gate.detail


@pytest.mark.parametrize("runtime", LITE_RUNTIMES.values())
def test_operator_lists_hold_what_quantized_vision_models_need(runtime):
    names = operators_of(runtime)
    assert {
        "aten::adaptive_avg_pool2d",
        "aten::add.Tensor",
        "aten::dequantize.self",
        "aten::flatten.using_ints",
        "aten::quantize_per_tensor",
        "prim::NumToTensor.Scalar",
        "quantized::add_relu",
        "quantized::conv2d.new",
        "quantized::conv2d_relu.new",
        "quantized::linear",
    } <= names
    assert all("::" in name and name == name.strip() for name in names)
    # neither full JIT nor newer than the runtime
    assert not {name for name in names if name.startswith(("prim::MKLDNN", "static_runtime::"))}
    assert "aten::rms_norm" not in names


@pytest.mark.parametrize(
    ("oldest", "opset", "outcome"),
    [("1.18", 18, "ok"), ("1.18", 22, "failed"), ("1.20.1", 21, "ok"), ("1.99", 26, "ok"), ("1.12", 18, "unverified")],
)
def test_an_onnx_file_is_held_to_the_opset_of_the_oldest_onnxruntime(oldest, opset, outcome):
    model = lowered(runtime="onnx", version="1.31.1", bytecode=opset, operators=("ai.onnx::Conv",))
    gate = runtime_gate(field(oldest, name="android-arm64-ort"), model)
    assert gate.outcome == outcome
    assert oldest in gate.detail


def test_an_operator_of_a_domain_that_onnxruntime_has_not_fails():
    model = lowered(runtime="onnx", version="1.31.1", bytecode=18, operators=("mine::Magic",))
    gate = runtime_gate(field("1.18", name="android-arm64-ort"), model)
    assert (gate.outcome, gate.exit_code) == ("failed", ExitCode.UNSUPPORTED)
    assert "mine::Magic" in gate.detail


def mobile(version):
    return target("android-arm64-ort", app={"runtimes": (version,), "build": "mobile"})


@pytest.mark.parametrize(
    ("path", "operators", "outcome", "why"),
    [
        ("model.ort", ("ai.onnx::Conv@11", "com.microsoft::QLinearAdd@1"), "ok", "has all 2 operators"),
        ("model.ort", ("ai.onnx::ReduceMean@18",), "failed", "1.17 lacks ai.onnx::ReduceMean@18: ship the full build"),
        ("model.ort", ("com.microsoft::QGemm@1",), "failed", "lacks com.microsoft::QGemm@1"),
        ("model.onnx", ("ai.onnx::Conv",), "failed", "reads .ort files only"),
        ("model.ort", (), "unverified", "the operators that the artifact needs are not known"),
    ],
)
def test_the_mobile_build_has_few_operators(path, operators, outcome, why):
    model = dataclasses.replace(lowered(runtime="onnx", bytecode=18, operators=operators), path=Path(path))
    gate = runtime_gate(mobile("1.17"), model)
    assert gate.outcome == outcome
    assert why in gate.detail


def test_a_mobile_build_whose_list_is_not_known_is_unverified():
    assert runtime_gate(mobile("1.18"), lowered(runtime="onnx", bytecode=18)).outcome == "unverified"
