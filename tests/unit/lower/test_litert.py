from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from small_models import IMAGE, MIXED, Mixture, Silent, dataset, folder, forward, loaded, lowered, quantized, small_net
from verify_cases import spec_of

from edgeq.check.artifact import parity_gate
from edgeq.core.samples import batches
from edgeq.lower import tflite
from edgeq.lower.litert import _handed_over
from edgeq.lower.litert_environment import is_ready
from edgeq.lower.spec import LowerSpec
from edgeq.verify.host import HostRuntime
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runtimes import RUNNERS
from edgeq.verify.verify import verify

SCHEMES = ["static-int8", "dynamic-int8", "weight-only-int8", "fp16", "fp32"]

MACS = [("conv", 16 * 16 * 8 * 3 * 9), ("depth", 16 * 16 * 8 * 9), ("hidden.0", 8 * 16), ("head", 16 * 5)]


@functools.cache
def graph_of(scheme):
    return quantized(small_net(), "litert", scheme, backend="litert")


def need_converter():
    if not is_ready():
        pytest.skip("LiteRT's converter is not installed; `edgeq package digits -t android-arm64-litert` installs it")


@functools.cache
def made():
    need_converter()
    return lowered(graph_of("static-int8"), (IMAGE,), folder() / "litert", "litert", backend="litert")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_program_for_the_converter_computes_what_the_graph_does(scheme):
    graph = graph_of(scheme)
    spec = LowerSpec(inputs=(IMAGE,), backend="litert", folder=folder(), progress=Silent(), label="small")
    program, names = _handed_over(graph, spec)
    assert names == {name for name, _ in MACS}
    (batch,) = batches(dataset((IMAGE,), 1), (IMAGE,))
    (expected,) = forward(graph.graph)(batch)
    (came,) = forward(program.module())(batch)
    least = 0.02 if scheme == "dynamic-int8" else 1e-6  # LiteRT quantizes its inputs, and the program does not
    assert np.abs(came - expected).max() <= least * np.abs(expected).max()
    nodes = list(program.graph.nodes)
    assert not any(node.meta.get("stack_trace") for node in nodes)
    rounding = [node for node in nodes if "quantize_per" in str(node.target) and "dequantize" not in str(node.target)]
    assert bool(rounding) == (scheme == "static-int8")
    held = [tensor.dtype for tensor in program.state_dict.values()]
    assert torch.int8 not in held  # the converter refuses these


def opened(low):
    runner = RUNNERS["litert"](low.path, "litert", 1, trusted=True)
    return runner, runner.load()


@pytest.mark.slow
def test_the_file_gives_the_graphs_outputs_and_states_what_it_takes(tmp_path):
    graph, low = graph_of("static-int8"), made()
    runner, said = opened(low)
    assert (said["names"], said["inputs"]) == (["x"], [["float32", [1, 3, 16, 16]]])
    assert (said["outputs"], said["threads"]) == ([["float32", [1, 5]]], 1)
    batch = list(batches(dataset((IMAGE,), 9), (IMAGE,)))[-1]  # not what was exported or calibrated with
    (expected,), (came,) = forward(graph.graph)(batch), runner.run(batch.inputs)
    assert np.abs(came - expected).max() <= graph.output_steps[0] * 1.001
    found = kernel_share("litert", runner.profile(batch.inputs, tmp_path), low.layers)
    assert (found.int8_macs, found.why_unmatched) == (1.0, "")
    assert [(layer.name, layer.macs) for layer in low.layers] == MACS
    assert dict(low.stored)["int8"] == 496


@pytest.mark.slow
def test_an_artifact_with_the_weights_of_one_layer_changed_fails_its_gates(tmp_path):
    graph, right = graph_of("static-int8"), made()
    model = tflite.load(right.path)
    tensors = tflite.Graph(model)
    (op,) = [op for op in tensors.graph.operators if tensors.tensors[op.outputs[0]].name == b"conv"]
    buffer = model.buffers[tensors.tensors[op.inputs[1]].buffer]
    buffer.data = np.ascontiguousarray(buffer.data[::-1])
    tflite.save(model, tmp_path / "model.tflite")
    wrong = dataclasses.replace(right, path=tmp_path / "model.tflite")
    outcomes = []
    with HostRuntime() as runtime:
        for low in (right, wrong):
            spec = spec_of(low, graph, small_net().model, (IMAGE,), dataset((IMAGE,), 8), backend="litert")
            report, _ = verify(spec, runtime)
            outcomes.append(parity_gate("static-int8", report.parity).outcome)
            assert (report.kernels.int8_macs, report.findings) == (1.0, ())
    assert outcomes == ["ok", "failed"]


@pytest.mark.slow
def test_every_kind_of_layer_in_dynamic_int8():
    need_converter()
    graph = quantized(loaded(Mixture, *MIXED), "litert", "dynamic-int8", backend="litert")
    low = lowered(graph, MIXED, folder() / "litert-mixture", "litert", backend="litert")
    runner, said = opened(low)
    assert (said["names"], said["inputs"][1]) == (["x", "t"], ["int64", [1, 12]])
    (batch,) = batches(dataset(MIXED, 1), MIXED)
    (expected,), (came,) = forward(graph.runs_as)(batch), runner.run(batch.inputs)
    assert np.abs(came - expected).max() <= 1e-3 * np.abs(expected).max()
    stored = dict(low.stored)
    assert stored["int8"] / sum(stored.values()) > 0.6
