"""The graph for Model Explorer: every edge leads to a node, and each layer has what was measured of it."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest
from onnx import TensorProto, helper

from edgeq.bundle.run_report import write_report
from edgeq.cli.inspect import inspect
from edgeq.core.errors import UsageError
from edgeq.core.results.model import LayerSqnr, LayerSqnrs
from edgeq.lower.onnx import graph_operators
from edgeq.pipeline.inspect import explorer_graph
from edgeq.report.json import graph_json


def test_a_bundles_layers_are_a_chain_with_what_was_measured(row, tmp_path, capsys):
    conv, head = row.layers
    layers = (conv, dataclasses.replace(conv, name="block.1.conv"), head, conv)
    kernels = dataclasses.replace(
        row.verified.kernels, precisions=("int8", "other", "int8", "int8"), of_layers=("a", "b", "c", "d")
    )
    known = LayerSqnrs(
        samples=2,
        layers=(
            LayerSqnr(layer="conv", sqnr_db=32.0, own_db=32.5),
            LayerSqnr(layer="block.1.conv", sqnr_db=12.0, own_db=13.0),
        ),
    )
    verified = dataclasses.replace(row.verified, kernels=kernels)
    write_report(row.path, dataclasses.replace(row, layers=layers, layer_sqnrs=known, verified=verified))
    inspect(row.path, graph=tmp_path / "graph.json", quiet=True)
    assert "4 operators" in capsys.readouterr().out
    collection = json.loads((tmp_path / "graph.json").read_text())
    nodes = collection["graphs"][0]["nodes"]
    assert [(node["id"], node["namespace"]) for node in nodes] == [
        ("conv", ""),
        ("block.1.conv", "block/1"),
        ("head", ""),
        ("conv#3", ""),
    ]
    fed_by = [edge["sourceNodeId"] for node in nodes for edge in node["incomingEdges"]]
    assert fed_by == ["conv", "block.1.conv", "head"]
    facts = {one["key"]: one["value"] for one in nodes[1]["attrs"]}
    assert (facts["computes in"], facts["kernel"]) == ("float", "b")
    assert (facts["SQNR by itself"], facts["SQNR so far"]) == ("13.0 dB", "12.0 dB")
    assert facts["note"] == "the error starts here"
    assert "borderColor" in nodes[1]["style"]


def test_an_onnx_file_says_what_feeds_each_operator(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="act"),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"], name="scale.0"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [1.0, 2.0])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], [weight])), tmp_path / "m.onnx")
    operators = graph_operators(tmp_path / "m.onnx")
    assert [(one.name, one.inputs) for one in operators] == [
        ("x", ()),
        ("act", ("x",)),
        ("Add_1", ("act",)),
        ("scale.0", ("act", "Add_1")),
        ("y:0", ("scale.0",)),
    ]
    nodes = graph_json(operators, None, title="m")["graphs"][0]["nodes"]
    assert [node["label"] for node in nodes] == ["x", "act Relu", "Add_1", "0 Mul", "y:0"]
    assert explorer_graph(tmp_path / "m.onnx")["label"] == "m.onnx"


def test_what_has_no_graph_is_refused(row, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\xff not ONNX")
    for path, what in ((tmp_path / "m.onnx", "not an ONNX file"), (tmp_path, "no graph")):
        with pytest.raises(UsageError, match=what):
            explorer_graph(path)
    write_report(row.path, dataclasses.replace(row, layers=()))
    with pytest.raises(UsageError, match="has no layers"):
        explorer_graph(row.path)
