"""Runtimes in their child process: real artifacts, damaged ones, and children that are killed."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import IMAGE, artifact, captured_net, dataset, forward, loaded, lowered, quantized, small_net
from torch import nn

from edgeq.core.errors import EdgeqError, EnvironmentProblem, UnsupportedError, UsageError, VerificationError
from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches
from edgeq.verify.host import HostRuntime, Refused, _translated
from edgeq.verify.kernels import _precision, kernel_share

pytestmark = pytest.mark.slow

KINDS = [
    ("executorch", "static-int8", "xnnpack"),
    ("executorch", "fp32", "xnnpack"),
    ("torchscript", "static-int8", "qnnpack"),
    ("torchscript", "static-int8", "x86"),
    ("torchscript", "fp32", "fbgemm"),
]


@pytest.fixture(scope="module")
def runtime():
    with HostRuntime() as host:
        yield host


def load(host, low, runtime, backend, threads=1):
    return host.load(low.path, runtime=runtime, backend=backend, threads=threads)


def image(seed=0):
    return list(batches(dataset((IMAGE,), seed + 1), (IMAGE,)))[seed]


@pytest.mark.parametrize(("kind", "scheme", "backend"), KINDS)
def test_the_artifact_runs_and_agrees_with_its_graph(runtime, kind, scheme, backend):
    graph, low = artifact(kind, scheme, backend)
    said = load(runtime, low, kind, backend)
    assert said.load_ms > 0
    assert said.inputs in ((("float32", (1, 3, 16, 16)),), ())
    (came,) = runtime.run(image().inputs)
    (expected,) = forward(graph.graph, backend if kind == "torchscript" else None)(image())
    if scheme == "fp32":
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5)
    elif backend == "qnnpack":
        assert np.array_equal(came, expected)
    else:
        assert abs(came - expected).max() <= 1.001 * graph.output_steps[0]


@pytest.mark.parametrize(("kind", "scheme", "backend"), KINDS)
def test_every_mac_is_found_in_the_profile(runtime, kind, scheme, backend):
    _, low = artifact(kind, scheme, backend)
    load(runtime, low, kind, backend)
    names = runtime.kernels(image().inputs)
    assert kernel_share(kind, names, low.layers).int8_macs == (1.0 if scheme == "static-int8" else 0.0), names


@pytest.mark.parametrize(
    ("kind", "backend"), [("torchscript", "qnnpack"), ("torchscript", "x86"), ("executorch", "xnnpack")]
)
def test_layers_kept_in_float_lower_the_share(runtime, tmp_path, kind, backend):
    model = small_net()
    captured = captured_net() if kind == "executorch" else None
    graph = quantized(model, kind, backend=backend, keep=["depth", "head"], captured=captured)
    low = lowered(graph, model.inputs, tmp_path, kind, backend=backend)
    load(runtime, low, kind, backend)
    share = kernel_share(kind, runtime.kernels(image().inputs), low.layers)
    int8 = sum(layer.macs for layer in low.layers if layer.name in ("conv", "hidden.0"))
    assert share.int8_macs == pytest.approx(int8 / low.macs), share.why_unmatched


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(8, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.memory(x)[0][:, -1])


def test_a_float_lstm_beside_an_int8_linear_is_not_called_int8(runtime, tmp_path):
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 5, 8))
    model = loaded(Blocks, spec)
    low = lowered(quantized(model, keep=["memory"]), model.inputs, tmp_path)
    load(runtime, low, "torchscript", "qnnpack")
    share = kernel_share("torchscript", runtime.kernels((np.zeros(spec.shape, np.float32),)), low.layers)
    assert share.int8_macs == pytest.approx(256 / low.macs)
    assert share.int8_macs < 0.01


def test_threads_memory_and_times_are_real(runtime):
    _, low = artifact("executorch", "fp32", "xnnpack")
    assert [load(runtime, low, "executorch", "xnnpack", threads=count).threads for count in (1, 2)] == [1, 2]
    runtime.run(image().inputs)
    assert runtime.peak_memory_bytes() > 0
    times = runtime.latencies_ms(image().inputs, warmup=1, runs=7)
    assert len(times) == 7
    assert min(times) > 0
    _, low = artifact("torchscript", "fp32", "x86")
    assert [load(runtime, low, "torchscript", "x86", threads=count).threads for count in (1, 2)] == [1, 2]


def test_facts_come_from_the_artifact_itself(runtime):
    _, low = artifact("executorch", "static-int8", "xnnpack")
    load(runtime, low, "executorch", "xnnpack")
    facts = runtime.facts()
    assert (facts.delegates, facts.bytecode_version) == (1, None)
    assert facts.operators == low.operators
    _, low = artifact("torchscript", "static-int8", "qnnpack")
    load(runtime, low, "torchscript", "qnnpack")
    facts = runtime.facts()
    assert facts.bytecode_version == low.bytecode_version == 8
    assert set(low.operators) <= set(facts.operators)


class Types(nn.Module):
    def forward(self, half, whole, flags):
        return half + 1, whole * 2, ~flags, (whole.sum() + flags.sum()).to(torch.float32)


SPECS = (
    TensorSpec(name="half", dtype="float16", shape=(2, 3)),
    TensorSpec(name="whole", dtype="int64", shape=(2,), high=9.0),
    TensorSpec(name="flags", dtype="bool", shape=(4,)),
)


@pytest.mark.parametrize(("kind", "backend"), [("executorch", "xnnpack"), ("torchscript", "x86")])
def test_inputs_and_outputs_of_every_dtype(runtime, tmp_path, kind, backend):
    model = loaded(Types(), *SPECS)
    low = lowered(quantized(model, kind, "fp32", backend=backend), SPECS, tmp_path, kind, backend=backend)
    said = load(runtime, low, kind, backend)
    if kind == "executorch":
        assert said.inputs == tuple((spec.dtype, spec.shape) for spec in SPECS)
    half, whole, flags = np.ones((2, 3), np.float16), np.array([3, 4]), np.array([True, False, False, True])
    came = runtime.run((half, whole, flags))
    assert [(array.dtype.name, array.shape) for array in came] == [
        ("float16", (2, 3)),
        ("int64", (2,)),
        ("bool", (4,)),
        ("float32", ()),
    ]
    assert np.array_equal(came[0], half + 1)
    assert came[1].tolist() == [6, 8]
    assert came[2].tolist() == [False, True, True, False]
    assert came[3] == 9


def test_inputs_that_do_not_fit_are_refused_and_the_child_goes_on(runtime):
    _, low = artifact("executorch", "fp32", "xnnpack")
    load(runtime, low, "executorch", "xnnpack")
    with pytest.raises(VerificationError, match="failed while running the artifact"):
        runtime.run((np.zeros((1, 3, 16, 16), np.float64),))
    assert runtime.run(image().inputs)[0].shape == (1, 5)


@pytest.mark.parametrize(
    ("kind", "suffix", "told"),
    [
        ("executorch", ".pte", "those of an ExecuTorch program b'ET12'"),
        ("torchscript", ".ptl", "loading"),
        ("torchscript", ".pt", "loading"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"no model" * 100])
def test_a_file_that_is_no_artifact(runtime, tmp_path, kind, suffix, told, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(VerificationError) as caught:
        runtime.load(path, runtime=kind, backend="x86", threads=1)
    assert told in caught.value.what
    with pytest.raises(EdgeqError):  # what was loaded before must not answer for it
        runtime.run(image().inputs)


@pytest.mark.parametrize(
    ("text", "kind", "meaning"),
    [
        ("RuntimeError: Failed to load method forward, error: 0x20", UnsupportedError, "lacks the backend"),
        ("RuntimeError: Failed to load program, error: 0x:23", Refused, "damaged"),
        ("RuntimeError: error: 0x14", UnsupportedError, "lacks an operator"),
        ("RuntimeError: error: 0x25", EnvironmentProblem, "memory"),
        ("RuntimeError: something else", Refused, "something else"),
    ],
)
def test_codes_are_put_into_words(text, kind, meaning):
    error = _translated(text, "loading model.pte")
    assert type(error) is kind
    assert meaning in error.what


def test_a_state_dict_is_told_from_a_torchscript_archive(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"loading net\.pt: it is not a TorchScript archive") as caught:
        HostRuntime().load(path, runtime="torchscript", backend="x86", threads=1)
    assert "--weights" in caught.value.fix


def test_mutated_programs_end_in_an_error_or_load_but_never_take_edgeq_along(tmp_path):
    good = artifact("executorch", "static-int8", "xnnpack")[1].path.read_bytes()
    rng = random.Random(0)
    host, refused = HostRuntime(), 0
    try:
        for index in range(30):
            data = bytearray(good)
            for _ in range(rng.choice([1, 8, 64])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if index % 3 == 0:
                del data[rng.randrange(len(data)) :]
            path = tmp_path / "model.pte"
            path.write_bytes(data)
            try:
                host.load(path, runtime="executorch", backend="xnnpack", threads=1)
                host.run(image().inputs)
            except EdgeqError as err:
                refused += 1
                if "crashed" in err.what or "ended" in err.what:
                    host.close()
                    host = HostRuntime()
    finally:
        host.close()
    assert refused >= 10


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_child_that_is_killed_while_it_runs_is_named_by_its_signal(number):
    with HostRuntime() as host:
        pid = host._child.process.pid
        assert is_running(pid)
        _, low = artifact("torchscript", "fp32", "x86")
        load(host, low, "torchscript", "x86")
        killer = threading.Timer(0.5, os.kill, (pid, number))
        killer.start()
        with pytest.raises(VerificationError, match=f"crashed with {number.name} while timing the artifact") as caught:
            host.latencies_ms(image().inputs, warmup=0, runs=10**8)
        assert ("memory" in caught.value.fix) == (number == signal.SIGKILL)
        with pytest.raises(VerificationError, match=number.name):
            host.run(image().inputs)
    assert not is_running(pid)


def test_closing_ends_the_child_and_leaves_nothing():
    host = HostRuntime()
    pid, scratch = host._child.process.pid, host._log.parent
    assert is_running(pid)
    host.close()
    assert not is_running(pid)
    assert not scratch.exists()


class Warped(nn.Module):
    """A spatial transformer, whose grid PyTorch makes by a matrix product inside of one operator."""

    def __init__(self):
        super().__init__()
        self.first, self.turn, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        turn = self.turn(self.first(x).mean((2, 3))).view(-1, 2, 3)
        grid = nn.functional.affine_grid(turn, x.shape, align_corners=False)
        return self.last(nn.functional.grid_sample(x, grid, align_corners=False))


@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_a_product_inside_of_an_operator_is_no_layer(runtime, backend, tmp_path):
    low = lowered(quantized(loaded(Warped(), IMAGE), backend=backend), (IMAGE,), tmp_path, backend=backend)
    load(runtime, low, "torchscript", backend)
    share = kernel_share("torchscript", runtime.kernels(image().inputs), low.layers)
    assert (share.int8_macs, share.why_unmatched) == (1, "")


def test_kernel_names_of_the_real_runtime_are_those_that_the_audit_knows(runtime):
    _, low = artifact("executorch", "static-int8", "xnnpack")
    load(runtime, low, "executorch", "xnnpack")
    found = [name for name in runtime.kernels(image().inputs) if _precision("executorch", name) is not None]
    assert len(found) == 4
    assert all("Q" in name for name in found)
