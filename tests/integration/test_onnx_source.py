"""ONNX files as the source, from the command line: as they are, quantized, for any batch, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeq.bundle.reader import read_bundle

from .conftest import Project, Run

pytestmark = pytest.mark.slow

ORT = "linux-x86_64-ort"
PREPROCESS = 'color = "gray"\nresize = [32, 32]\nscale = 0.00392156862745098\nmean = [0.31]\nstd = [0.38]\n'
DATA = (
    *("--calibration-data", "edgeq.demo.digits:calibration_data", "--eval-data", "edgeq.demo.digits:evaluation_data"),
    *("--preprocess", "digits.toml"),
)


@pytest.fixture
def options(project: Project) -> tuple[str, ...]:
    (project.root / "digits.toml").write_text(PREPROCESS)
    return (*DATA, "-t", ORT, "-o", "out", "--no-cache", "--json", "--quiet")


def test_a_file_for_any_batch_is_taken_quantized_and_taken_again(
    edgeq: Run, project: Project, options: tuple[str, ...]
) -> None:
    """One chain, since each link takes seconds: PyTorch, a float file, the int8 file of that, and that as it is."""
    made = edgeq("package", "digits", "--scheme", "fp32", "--dynamic-batch", *options)
    assert made.code == 0, made.out + made.err
    shutil.copy(read_bundle(project.out / "digits" / ORT).artifact, "mine.onnx")

    taken = edgeq("package", "mine.onnx", "--scheme", "fp32", *options)
    assert taken.code == 0, taken.out + taken.err
    bundle = read_bundle(project.out / "mine" / ORT)
    assert bundle.artifact.read_bytes() == Path("mine.onnx").read_bytes()
    assert bundle.manifest.dynamic_batch
    assert _gates(taken)["equivalence"] == "ok"
    assert edgeq("verify", str(bundle.folder), "--quiet").code == 0

    limits = ("--limit", "agreement=99%", "--limit", "size=66kB")
    quantized = edgeq("package", "mine.onnx", "--observer", "percentile", "--name", "int8", *limits, *options)
    assert quantized.code == 0, quantized.out + quantized.err
    assert _gates(quantized)["int8_macs"] == "ok"
    shutil.copy(read_bundle(project.out / "int8" / ORT).artifact, "int8.onnx")

    again = edgeq("package", "int8.onnx", "--scheme", "pretrained", "--name", "again", *options)
    assert again.code == 0, again.out + again.err
    assert read_bundle(project.out / "again" / ORT).artifact.read_bytes() == Path("int8.onnx").read_bytes()
    edgeq("package", "int8.onnx", "--name", "other", *options).fails(3, "already quantized", "--scheme pretrained")
    wrong = ("mine.onnx", "--scheme", "pretrained", "--name", "other")
    edgeq("package", *wrong, *options).fails(3, "a float model", "--scheme fp32")


def test_what_cannot_be_taken_is_refused_before_anything_is_written(
    edgeq: Run, project: Project, options: tuple[str, ...]
) -> None:
    Path("no.onnx").write_text("hello")
    edgeq("package", "no.onnx", "--scheme", "fp32", *options).fails(2, "no.onnx", "is not a valid ONNX file")
    edgeq("package", "lost.onnx", "--scheme", "fp32", *options).fails(2, "lost.onnx", "check the path")
    _unknown_operator(Path("nope.onnx"))
    edgeq("package", "nope.onnx", "--scheme", "fp32", *options[6:]).fails(3, "Nope", "lacks an operator")
    other = ("-t", "linux-x86_64-x86", "--scheme", "fp32", "-o", "out", "--no-cache", "--quiet")
    edgeq("package", "nope.onnx", *other).fails(3, "nope.onnx", "torchscript")
    edgeq("package", "digits", "--dynamic-batch", *other).fails(3, "--dynamic-batch is for ONNX targets")
    coreml = ("-t", "ios-arm64-coreml", "--input-dtype", "uint8", "-o", "out", "--no-cache", "--quiet")
    edgeq("package", "digits", *coreml).fails(3, "edgeq has not verified --input-dtype uint8 on ios-arm64-coreml")
    assert not project.out.exists() or not any(project.out.iterdir())


def test_openvino_takes_a_file_with_any_names_and_an_open_batch(edgeq: Run, project: Project) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()
    shapes = ({0: torch.export.Dim("rows")},)
    program = torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), dynamo=True, dynamic_shapes=shapes, input_names=["image"], verbose=False
    )
    proto = program.model_proto
    for number, node in enumerate(proto.graph.node):
        node.name = f"/a, b/{node.op_type}_{number}"
    onnx.save(proto, "net.onnx")
    first = next(node.name for node in proto.graph.node if node.op_type == "Conv")
    data = ("--calibration-data", "calibration.npz", "--json", "--on", "host", "-o", "out", "--quiet")
    common = ("package", "net.onnx", "--input", "image=1x1x8x8", "--target", "linux-x86_64-openvino", *data)
    result = edgeq(*common)
    assert result.code == 0, result.out + result.err
    (row,) = result.json["rows"]
    assert (row["scheme"], row["verified"]["int8_macs"], row["verified"]["int8_macs_unmatched"]) == (
        "static-int8",
        1.0,
        None,
    )
    assert row["verified"]["parity"]["sqnr_db"] > 40
    assert edgeq("verify", row["path"], "--quiet").code == 0
    assert sorted(path.name for path in Path(row["path"]).iterdir() if "model" in path.name) == [
        "model.bin",
        "model.xml",
    ]

    (kept,) = edgeq(*common, "--keep-fp32", first).json["rows"]
    assert kept["verified"]["int8_macs"] == pytest.approx(144 * 4 / (144 * 4 + 36 * 36), abs=1e-3)
    assert kept["exit_code"] == 0  # the layer was asked to stay in float
    floats = edgeq(*common, "--scheme", "fp32")
    assert floats.code == 0, floats.out + floats.err
    edgeq(*common, "--scheme", "fp16", "--dry-run").fails(3, "fp16 for openvino needs a PyTorch model", "static-int8")


def _gates(result: object) -> dict[str, str]:
    (row,) = json.loads(result.out)["rows"]  # type: ignore[attr-defined]
    return {gate["name"]: gate["outcome"] for gate in row["gates"]}


def _unknown_operator(target: Path) -> None:
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    node = helper.make_node("Nope", ["x"], ["y"], domain="com.microsoft")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(target))


def test_auto_takes_a_file_and_tries_the_schemes_that_start_from_one(
    edgeq: Run, project: Project, options: tuple[str, ...]
) -> None:
    made = edgeq("package", "digits", "--scheme", "fp32", *options)
    assert made.code == 0, made.out + made.err
    shutil.copy(read_bundle(project.out / "digits" / ORT).artifact, "mine.onnx")
    result = edgeq("package", "mine.onnx", "--scheme", "auto", "--limit", "accuracy_drop=5pp", *options)
    assert result.code == 0, result.out + result.err
    (row,) = result.json["rows"]
    assert (row["scheme"], row["passed"]) == ("static-int8", True)
    # what no scheme can do is refused with what was tried, and neither qat-int8 nor mixed-int8 is among that
    limits = ("--limit", "accuracy_drop=5pp", "--limit", "size=1kB")
    failed = edgeq("package", "mine.onnx", "--scheme", "auto", *limits, *options)
    assert failed.code == 4, failed.out + failed.err
    assert [one["scheme"] for one in failed.json["rows"][0]["auto"]["tried"]] == ["static-int8"]


class Vad(torch.nn.Module):
    """A detector of speech with its state as an input and an output, as they come in ONNX files."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(24, 1)

    def forward(self, x, h, c):
        y, (h, c) = self.rnn(x, (h, c))
        return torch.sigmoid(self.head(y[:, -1])), h, c


@pytest.mark.parametrize("scheme", ["fp32", "dynamic-int8", "auto"])
def test_a_state_is_not_taken_for_a_batch(edgeq: Run, project: Project, scheme: str) -> None:
    torch.manual_seed(0)
    state = torch.zeros(2, 1, 24)
    example = (torch.zeros(1, 5, 16), state, state)
    torch.onnx.export(
        Vad().eval(), example, "vad.onnx", dynamo=True, input_names=["x", "h", "c"], external_data=False, verbose=False
    )
    rng = np.random.default_rng(0)
    rows = {"x": (32, 5, 16), "h": (32, 2, 24), "c": (32, 2, 1, 24)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in rows.items()}
    np.savez("test.npz", **arrays, y=(arrays["x"].mean((1, 2)) > 0).astype(np.int64))
    result = edgeq(
        *("package", "vad.onnx", "-t", ORT, "--scheme", scheme, "--eval-data", "test.npz", "-o", "out"),
        *("--on", "host", "--json", "--quiet"),
    )
    assert result.code == 0, result.out + result.err
    fidelity = result.json["rows"][0]["verified"]["fidelity"]
    assert fidelity["samples"] == 32
    assert fidelity["metric"] == "accuracy@0.5"
    outputs = json.loads((project.out / "vad" / ORT / "manifest.json").read_text())["outputs"]
    assert [one["shape"] for one in outputs] == [[1, 1], [2, 1, 24], [2, 1, 24]]
    assert edgeq("verify", str(project.out / "vad" / ORT), "--quiet", "--eval-data", "test.npz").code == 0
