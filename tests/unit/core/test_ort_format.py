"""Files of ONNX Runtime's own format: equal bytes for equal models, whichever process wrote them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgeq.core.ort_format import required_operators, settled

_CONVERT = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[2]
options.add_session_config_entry("session.save_model_format", "ORT")
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""

_UNARY = ("Relu", "Sigmoid", "Tanh", "Softmax", "Erf", "Exp", "Abs", "Neg", "Floor", "Sqrt", "Transpose", "Identity")


def _write_model(path: Path) -> None:
    """Write a net of a dozen kinds of operators, from float32 [2, 3]; each kind adds to the table of kernel types."""
    nodes = [helper.make_node("Abs", ["x"], ["v0"])]
    for index, kind in enumerate(_UNARY):
        nodes.append(helper.make_node(kind, [f"v{index}"], [f"v{index + 1}"]))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    result = helper.make_tensor_value_info(f"v{len(_UNARY)}", TensorProto.FLOAT, [3, 2])
    graph = helper.make_graph(nodes, "net", [value], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_other_processes_write_other_bytes_which_settle_to_the_same(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    _write_model(model)
    found = []
    for index in range(4):  # of which hardly all have one order
        path = tmp_path / f"{index}.ort"
        subprocess.run([sys.executable, "-c", _CONVERT, str(model), str(path)], check=True)
        found.append(path.read_bytes())
    after = {settled(data) for data in found}
    assert len(after) == 1
    (data,) = after
    assert settled(data) == data
    (tmp_path / "settled.ort").write_bytes(data)
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3) - 2}
    given = [
        onnxruntime.InferenceSession(str(tmp_path / name)).run(None, inputs)[0] for name in ("0.ort", "settled.ort")
    ]
    np.testing.assert_array_equal(*given)
    assert required_operators(tmp_path / "settled.ort") == required_operators(tmp_path / "0.ort")
