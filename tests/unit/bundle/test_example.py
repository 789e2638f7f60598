"""`run_example.py` in a process that has the runtime and no edgeq: right outputs, and other weights."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from bundle_items import changed

from edgeq.bundle.example import EXAMPLE_NAME
from edgeq.bundle.reader import read_bundle
from edgeq.bundle.writer import write_bundle
from edgeq.core.preprocess import Preprocess, apply
from edgeq.core.results.artifact import BundleInput
from edgeq.core.results.model import TensorSpec
from edgeq.core.results.report import GoldenSet
from edgeq.core.targets import load_target

SELFTEST = Path(__file__).parents[3] / "edgeq" / "verify" / "emulate" / "selftest"


def with_artifact(
    item: BundleInput, target: str, path: Path, spec: TensorSpec, golden: GoldenSet, preprocess: Preprocess | None
) -> BundleInput:
    """Return the item with another artifact, its input and its golden samples."""
    model = dataclasses.replace(item.inputs.model, inputs=(spec,))
    lowered = dataclasses.replace(
        item.artifact.lowered, path=path, runtime=load_target(target).runtime, bytecode_version=None
    )
    made = changed(item, target=load_target(target), model=model, preprocess=preprocess)
    return changed(made, lowered=lowered, golden=golden)


def run_example(folder: Path) -> tuple[int, list[str], str]:
    command = [sys.executable, "-I", folder / EXAMPLE_NAME]  # -I: the current folder and PYTHONPATH are not searched
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.returncode, done.stdout.splitlines(), done.stderr


def small_onnx(path: Path, weight: np.ndarray) -> None:
    """Write a model that multiplies a gray image of 6 x 8 by a matrix."""
    helper = onnx.helper
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 6, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def test_images_are_preprocessed_as_by_edgeq_and_other_weights_are_told(item: BundleInput, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(48, 3)).astype(np.float32)
    artifact, folder = tmp_path / "model.onnx", tmp_path / "bundle"
    small_onnx(artifact, weight)
    preprocess = Preprocess(color="gray", resize=(7, 9), crop=(6, 8), mean=(0.4,), std=(0.3,))
    images = rng.integers(0, 256, (2, 11, 10, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {"x": apply(preprocess, image)[None]})[0] for image in images])
    golden = GoldenSet(inputs=(images,), outputs=(outputs,), preprocessed=False, sqnr_floor_db=30.0)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1, 6, 8))
    folder.mkdir()
    write_bundle(with_artifact(item, "linux-arm64-ort", artifact, spec, golden, preprocess), folder)
    entry = next(file for file in read_bundle(folder).manifest.files if file.path == EXAMPLE_NAME)
    assert entry.role == "example"
    assert "pip install onnxruntime~=1.20 numpy" in (folder / EXAMPLE_NAME).read_text()

    status, lines, said = run_example(folder)
    assert (status, lines[:2]) == (0, ["golden sample 0: equal", "golden sample 1: equal"]), said
    assert lines[2].startswith("median of 40 runs: ")
    small_onnx(folder / "model.onnx", weight[:, ::-1])
    status, lines, said = run_example(folder)
    assert status == 1, said
    assert lines[0].endswith("dB, expected at least 30.0 dB")
    small_onnx(folder / "model.onnx", weight * np.float32(np.nan))
    assert run_example(folder)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("target", "suffix"), [("linux-arm64-xnnpack", "pte"), ("linux-arm64-qnnpack", "ptl")])
def test_the_other_runtimes_give_the_golden_outputs(
    item: BundleInput, tmp_path: Path, target: str, suffix: str
) -> None:
    with np.load(SELFTEST / "digits.npz") as arrays:
        inputs, outputs = arrays["inputs"][:2], arrays[f"outputs_{suffix}"][:2]
    artifact, folder = tmp_path / f"model.{suffix}", tmp_path / "bundle"
    shutil.copy(SELFTEST / f"digits.{suffix}", artifact)
    golden = GoldenSet(inputs=(inputs,), outputs=(outputs,), preprocessed=True, sqnr_floor_db=30.0)
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1, 32, 32))
    folder.mkdir()
    write_bundle(with_artifact(item, target, artifact, spec, golden, None), folder)
    status, lines, said = run_example(folder)
    assert (status, lines[:2]) == (0, ["golden sample 0: equal", "golden sample 1: equal"]), said
    np.savez(folder / "golden.npz", input_x=inputs, output_0=outputs[:, ::-1])
    assert run_example(folder)[0] == 1


@pytest.mark.parametrize("target", ["android-arm64-xnnpack", "linux-x86_64-ort", "ios-arm64-xnnpack"])
def test_phones_and_x86_hosts_get_none(item: BundleInput, tmp_path: Path, target: str) -> None:
    write_bundle(changed(item, target=load_target(target)), tmp_path)
    assert not (tmp_path / EXAMPLE_NAME).exists()
