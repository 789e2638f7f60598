"""Weights in int4 by groups, on OpenVINO, ONNX Runtime and XNNPACK: what files hold, compute, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from small_models import Silent, dataset, folder, forward, loaded, lowered, quantized
from torch import nn

from edgeq.check.artifact import weights_gates
from edgeq.check.precision import audit_gates
from edgeq.core.errors import UnsupportedError, UsageError
from edgeq.core.results.model import NO_INT4_GROUP, NO_INT4_KERNEL, TensorSpec
from edgeq.core.samples import batches
from edgeq.core.schemes import A8W4_SCHEME, INT4_SCHEME
from edgeq.core.targets import load_target
from edgeq.lower import int4, lower, openvino
from edgeq.lower.spec import LowerSpec
from edgeq.verify.kernels import kernel_share
from edgeq.verify.runtimes import RUNNERS

IMAGE = TensorSpec(name="x", dtype="float32", shape=(2, 3, 8, 8))

# of weight-only-int4
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


def test_a_model_without_such_layers_is_refused_with_what_suits():
    net = loaded(nn.Conv2d(3, 4, 3), IMAGE)
    with pytest.raises(UnsupportedError, match="weight-only-int4 quantized nothing") as caught:
        quantized(net, "openvino", INT4_SCHEME, backend="openvino")
    assert "--scheme weight-only-int8" in caught.value.fix


# --- XNNPACK, which multiplies int8 by them.


@functools.cache
def dynamic(group=128):
    return quantized(NET, "executorch", A8W4_SCHEME, backend="xnnpack", int4_group=group)


def program(name, graph):
    return lowered(graph, (IMAGE,), folder() / f"int4-{name}", "executorch", backend="xnnpack")


def shares(made, kernels):
    of = load_target("linux-x86_64-xnnpack")
    verified = types.SimpleNamespace(kernels=kernels)
    audit = audit_gates(target=of, scheme=A8W4_SCHEME, lowered=made, verified=verified, in_float=dynamic().in_float)
    return {gate.name: gate for gate in (*weights_gates(made), *audit)}


def test_xnnpack_multiplies_int8_by_the_stored_int4(tmp_path):
    made = program("program", dynamic())
    assert made.path.read_bytes() == program("again", dynamic()).path.read_bytes()
    assert dict(made.stored)["int4"] == 256 * 64 + 64 * 64 + 64 * 36
    assert dict(made.stored)["int8"] >= 36 * 5  # no group divides the rows of the head
    assert dynamic().in_float == {NO_INT4_GROUP: ("head",)}
    sizes = {layer.name: layer.weight_bytes for layer in made.layers}
    assert sizes["wide"] == 256 * 64 // 2 + 64 * 4  # the bias is in float32
    assert made.path.stat().st_size < program("int8", dynamic_int8()).path.stat().st_size - 10_000

    batch = next(iter(batches(dataset((IMAGE,), 2), (IMAGE,))))
    (expected,) = forward(dynamic().runs_as)(batch)
    runner = RUNNERS["executorch"](made.path, "xnnpack", 1, trusted=True)
    runner.load()
    (came,) = runner.run(batch.inputs)
    assert np.square(came - expected).sum() <= 1e-4 * np.square(expected).sum()
    found = kernel_share("executorch", runner.profile(batch.inputs, tmp_path), made.layers)
    assert sum("QB4W" in name for name in found.kernels) == 4  # wide, twice two times, the product
    gates = shares(made, found)
    assert {gate.outcome for gate in gates.values()} == {"ok"}, gates
    assert gates.keys() == {"weights", "int4_weights", "int8_linear_macs", "delegated_macs"}


def dynamic_int8():
    return quantized(NET, "executorch", "dynamic-int8", backend="xnnpack")


def test_a_program_whose_stored_weights_changed_fails_and_names_the_layer(monkeypatch):
    made = program("program", dynamic())
    data = bytearray(made.path.read_bytes())
    (twice,) = [one for one in dynamic().grouped if one.layers == ("twice",)]
    place = data.index(int4.packed_int4((twice.codes + 8).astype(np.int8)).tobytes())
    data[place + 7] ^= 1
    other = made.path.with_name("changed.pte")
    other.write_bytes(data)
    changed = dataclasses.replace(made, int4_db=int4.program_int4(other, dynamic().grouped))
    gates = shares(changed, None)
    assert (gates["weights"].outcome, gates["int4_weights"].outcome) == ("failed", "failed")
    assert gates["int4_weights"].detail.startswith("not in int4 in the artifact: twice;")


def test_smaller_groups_are_nearer_and_take_more_bytes():
    def error(grouped):
        matrices = {"wide": NET.model.wide.weight, "twice": NET.model.twice.weight}
        return sum(np.square(one.values - matrices[one.layers[0]].detach().numpy()).sum() for one in grouped[:2])

    wide, narrow = dynamic().grouped, dynamic(32).grouped
    assert [one.codes.shape[2] for one in wide] == [128, 64, 64]
    assert [one.codes.shape[2] for one in narrow] == [32, 32, 32]
    assert error(narrow) < 0.95 * error(wide)
    assert program("narrow", dynamic(32)).path.stat().st_size > program("program", dynamic()).path.stat().st_size


def test_xnnpack_refuses_smaller_groups_and_models_without_such_layers():
    with pytest.raises(UsageError, match="8da4w has groups of 128, 64, 32, but --int4-group is 16"):
        dynamic(16)
    assert quantized(NET, "onnx", INT4_SCHEME, backend="ort", int4_group=16).grouped[0].codes.shape[2] == 16
    with pytest.raises(UnsupportedError, match="8da4w quantized nothing: no group of 32 or more") as caught:
        quantized(loaded(nn.Conv2d(3, 4, 3), IMAGE), "executorch", A8W4_SCHEME, backend="xnnpack")
    assert "--scheme dynamic-int8" in caught.value.fix
    kept = quantized(NET, "executorch", A8W4_SCHEME, backend="xnnpack", keep=("twice",))
    assert {"twice"} <= {*kept.kept_fp32}
    assert ("twice",) not in [one.layers for one in kept.grouped]
