"""Whether the apps in the field load a release, told by its bundle alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bundle_items import changed

from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.check.release import release_runtime_gate
from edgeq.core.manifest import Bundle
from edgeq.core.results.artifact import BundleInput
from edgeq.core.targets import TargetProfile, load_target


def ort_file(folder: Path, op: str) -> Path:
    """Write a model of one operator in ONNX Runtime's own format."""
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return folder / "model.ort"


def mobile(item: BundleInput, folder: Path, op: str) -> Bundle:
    (folder / "made").mkdir()
    (folder / "bundle").mkdir()
    facts = load_target("android-arm64-ort").model_dump()
    app = {"runtimes": ("1.17",), "build": "mobile"}
    target = TargetProfile.model_validate(facts | {"app": app, "file_format": "ort", "schemes": ("static-int8",)})
    lowered = dataclasses.replace(
        item.artifact.lowered,
        path=ort_file(folder / "made", op),
        runtime="onnx",
        runtime_version="1.31.1",
        bytecode_version=15,
    )
    write_bundle(changed(item, target=target, lowered=lowered), folder / "bundle")
    return read_bundle(folder / "bundle")


@pytest.mark.parametrize(
    ("op", "runtime", "outcome", "told"),
    [
        ("Softmax", "1.17", "ok", "onnxruntime-mobile 1.17 has all 1 operators"),
        ("Acosh", "1.17", "failed", "onnxruntime-mobile 1.17 lacks ai.onnx::Acosh@9"),
        ("Softmax", "1.18", "unverified", "does not know the operators of onnxruntime-mobile 1.18"),
    ],
)
def test_a_mobile_build_in_the_field_is_held_to_its_own_operators(item, tmp_path, op, runtime, outcome, told):
    gate = release_runtime_gate(mobile(item, tmp_path, op), (runtime,))
    assert (gate.outcome, told in gate.detail) == (outcome, True), gate.detail
