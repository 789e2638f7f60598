"""Weights in int4 by groups, on OpenVINO and ONNX Runtime: what the files hold, what they compute, what is refused."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from small_models import Silent, dataset, folder, forward, loaded, quantized
from torch import nn

from edgeq.check.artifact import weights_gates
from edgeq.check.precision import audit_gates
from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import NO_INT4_GROUP, NO_INT4_KERNEL, TensorSpec
from edgeq.core.samples import batches
from edgeq.core.schemes import INT4_SCHEME
from edgeq.core.targets import load_target
from edgeq.lower import int4, lower, openvino
from edgeq.lower.spec import LowerSpec
from edgeq.quantize.grouped import in_groups
from edgeq.verify.runtimes import RUNNERS

IMAGE = TensorSpec(name="x", dtype="float32", shape=(2, 3, 8, 8))

TARGETS = {"onnx": ("ort", "linux-x86_64-ort"), "openvino": ("openvino", "linux-x86_64-openvino")}


class _Net(nn.Module):
    """A convolution, layers whose rows groups of 128, 64 and none divide, one with its inputs first, one used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 64), nn.Linear(64, 64)
        self.turned, self.head = nn.Parameter(torch.randn(64, 36) / 8), nn.Linear(36, 5)

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.conv(x)).flatten(1)))
        return self.head(torch.relu(torch.relu(self.twice(torch.relu(self.twice(x)))) @ self.turned))


NET = loaded(_Net, IMAGE)


@functools.cache
def graph(runtime):
    return quantized(NET, runtime, INT4_SCHEME, backend=TARGETS[runtime][0])


def written(runtime, name, file_format="onnx"):
    place = folder() / f"int4-{runtime}-{name}"
    place.mkdir(exist_ok=True)
    backend, _ = TARGETS[runtime]
    spec = LowerSpec(
        inputs=(IMAGE,), backend=backend, folder=place, progress=Silent(), label="", file_format=file_format
    )
    return lower(runtime, graph(runtime), spec)


def judged(made, runtime):
    of = load_target(TARGETS[runtime][1])
    audit = audit_gates(
        target=of, scheme=INT4_SCHEME, lowered=made, verified=_NoKernels, in_float=graph(runtime).in_float
    )
    return {gate.name: gate for gate in (*weights_gates(made), *audit)}


class _NoKernels:
    """What an audit of the stored weights needs of a run: nothing."""

    kernels = None


@pytest.mark.parametrize(("runtime", "file_format"), [("onnx", "onnx"), ("onnx", "ort"), ("openvino", "onnx")])
def test_the_file_holds_and_computes_what_the_graph_has(runtime, file_format):
    made = written(runtime, f"a-{file_format}", file_format)
    assert made.path.suffix != ".ort"  # which older runtimes would refuse
    again = written(runtime, "b")
    assert [path.read_bytes() for path in made.files] == [path.read_bytes() for path in again.files]
    assert dict(made.stored)["int4"] == 256 * 64 + 64 * 64 + 64 * 36
    assert [ratio for _, ratio in made.int4_db] == [float("inf")] * len(made.int4_db)
    assert {"wide", "twice"} <= {name.partition("#")[0] for name, _ in made.int4_db}
    sizes = {layer.name: layer.weight_bytes for layer in made.layers}
    assert 256 * 64 // 2 <= sizes["wide"] <= 256 * 64 // 2 + 64
    assert (sizes["head"] < 36 * 5 * 2) == (runtime == "openvino")  # in int8 there
    assert graph(runtime).in_float == {NO_INT4_KERNEL: ("conv",), NO_INT4_GROUP: ("head",)}
    gates = judged(made, runtime)
    assert {name: gate.outcome for name, gate in gates.items()} == {"weights": "ok", "int4_weights": "ok"}
    assert "1 layer left by convolutions" in gates["int4_weights"].detail

    batch = next(iter(batches(dataset((IMAGE,), 2), (IMAGE,))))
    (expected,) = forward(graph(runtime).graph)(batch)
    runner = RUNNERS[runtime](made.path, TARGETS[runtime][0], 1, trusted=True)
    runner.load()
    (came,) = runner.run(batch.inputs)
    assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("runtime", TARGETS)
def test_a_layer_whose_stored_weights_changed_fails(runtime, monkeypatch):
    plain = int4.packed_int4

    def changed(codes):
        data = plain(codes)
        if data.size == 64 * 64 // 2:
            data[7] ^= 1  # one number of one layer by one step
        return data

    for module in (int4, openvino):
        monkeypatch.setattr(module, "packed_int4", changed)
    gates = judged(written(runtime, "changed"), runtime)
    assert (gates["weights"].outcome, gates["int4_weights"].outcome) == ("failed", "ok")
    assert "twice" in gates["weights"].detail


@pytest.mark.parametrize("runtime", TARGETS)
def test_a_layer_that_is_not_in_int4_fails_and_is_named(runtime, monkeypatch):
    # of one layer the graph has a weight that no constant of the file has
    grouped = [
        dataclasses.replace(one, scales=one.scales * 2) if one.layers == ("wide",) else one
        for one in graph(runtime).grouped
    ]
    whole = dataclasses.replace(graph(runtime), grouped=tuple(grouped))
    monkeypatch.setitem(globals(), "graph", lambda _: whole)
    gates = judged(written(runtime, "float"), runtime)
    assert (gates["weights"].outcome, gates["int4_weights"].outcome) == ("failed", "failed")
    assert gates["int4_weights"].detail.startswith("not in int4 in the artifact: wide; give --keep-fp32")


def test_little_in_int4_is_no_success():
    made = written("openvino", "little")
    little = dataclasses.replace(made, stored=(("int4", 24), ("int8", 76)))
    assert judged(little, "openvino")["int4_weights"].outcome == "failed"


def test_rounding_keeps_zeros_and_is_nearer_than_the_librarys():
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    torch.manual_seed(0)
    matrix = torch.randn(32, 256)
    matrix[matrix.abs() < 1] = 0
    matrix[0] = 0
    codes, scales = in_groups(matrix)
    assert codes.shape == (32, 2, 128)
    assert torch.equal(scales, scales.half().float())
    values = (codes * scales[..., None]).reshape(32, 256)
    assert (values[matrix == 0] == 0).all()
    options = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=True)
    packed, theirs, _ = DefaultWeightOnlyQuantizer(options).qbits_block_quant(matrix.numpy().T.copy())
    plain = int4.int4_codes(packed) * theirs.reshape(32, 2, 1)
    errors = [float(np.square(one.reshape(32, 256) - matrix.numpy()).sum()) for one in (values.numpy(), plain)]
    assert errors[0] < 0.95 * errors[1]
    assert in_groups(torch.randn(4, 100)) is None
    assert in_groups(torch.full((4, 128), 1e6)) is None  # float16 holds no such scale


def test_a_model_without_such_layers_is_refused_with_what_suits():
    net = loaded(nn.Conv2d(3, 4, 3), IMAGE)
    with pytest.raises(UnsupportedError, match="weight-only-int4 quantized nothing") as caught:
        quantized(net, "openvino", INT4_SCHEME, backend="openvino")
    assert "--scheme weight-only-int8" in caught.value.fix
