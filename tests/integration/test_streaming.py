"""`--state past=1`: a model that hands its state from step to step, from sequences to bundles that feed it back."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeq.bundle.golden import read_golden
from edgeq.bundle.reader import read_bundle

from .conftest import Project, Run

ORT, XNNPACK, OPENVINO = "linux-x86_64-ort", "linux-x86_64-xnnpack", "linux-x86_64-openvino"

NET = '''
import numpy as np
import torch
from torch import nn


class Cached(nn.Module):
    """A causal convolution over a frame and the four before it."""

    def __init__(self):
        super().__init__()
        self.front, self.head = nn.Conv1d(8, 16, 5), nn.Linear(16, 3)

    def forward(self, x, past):
        seen = torch.cat([past, x.unsqueeze(-1)], -1)
        return self.head(torch.relu(self.front(seen))[..., 0]), seen[..., 1:]


class Summing(nn.Module):
    """Adds up what it sees."""

    def __init__(self):
        super().__init__()
        self.front, self.head = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x, past):
        total = past + self.front(x).abs()
        return self.head(total), total


def cached():
    torch.manual_seed(0)
    return Cached().eval()


def summing():
    torch.manual_seed(0)
    return Summing().eval()


def sequences(seed, count, steps=30):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = rng.standard_normal((steps, 8)).astype(np.float32)
        yield {"x": x, "y": (x[:, 0] > 0).astype(int)}


def train():
    return list(sequences(0, 8))


def validation():
    return list(sequences(1, 6, 40))


def shared():
    return list(sequences(1, 1, 40)) + list(sequences(0, 8))


def frames():
    return [{"x": np.zeros(8, np.float32)}] * 16
'''

CACHED = ("net.py:cached", "--input", "x=1x8", "--input", "past=1x8x4")
SUMMING = ("net.py:summing", "--input", "x=1x8", "--input", "past=1x4")
DATA = ("--calibration-data", "net.py:train", "--eval-data", "net.py:validation")
REST = ("--on", "host", "-o", "out", "--json", "--quiet")


@pytest.fixture(autouse=True)
def net(project: Project) -> None:
    (project.root / "net.py").write_text(NET)


@pytest.mark.slow
def test_two_runtimes_take_a_state_and_their_bundles_feed_it_back(edgeq: Run, project: Project) -> None:
    targets = ("-t", XNNPACK, "-t", OPENVINO, "--scheme", "static-int8")
    made = edgeq("package", *CACHED, "--state", "past=1", *targets, *DATA, "--limit", "drift=1dB", *REST)
    assert made.code == 0, made.err
    assert made.json["data"]["evaluation_samples"] == 240
    assert made.json["data"]["calibration_samples"] == 128  # of 240 steps
    for row in made.json["rows"]:
        gates = {gate["name"]: gate for gate in row["gates"]}
        assert gates["state"]["outcome"] == gates["drift"]["outcome"] == "ok"
        report = row["verified"]["drift"]
        assert (report["steps"], [one["is_state"] for one in report["outputs"]]) == (1000, [False, True])
        bundle = read_bundle(Path(row["path"]))
        assert [one.fed_from for one in bundle.manifest.inputs] == [None, 1]
        golden = read_golden(bundle)
        # the first steps of a sequence: each starts with the state that the one before has left
        assert not golden.inputs[1][0].any()
        np.testing.assert_array_equal(golden.inputs[1][1:].reshape(-1), golden.outputs[1][:-1].reshape(-1))
        verified = edgeq("verify", row["path"], "--eval-data", "net.py:validation", "--json", "--quiet")
        assert verified.code == 0, verified.err
    example = subprocess.run(
        [sys.executable, str(Path(made.json["rows"][1]["path"]) / "run_example.py")], capture_output=True, text=True
    )
    assert example.returncode == 0, example.stderr
    assert (
        "inputs[i] = np.array(outputs[source])" in (Path(made.json["rows"][1]["path"]) / "run_example.py").read_text()
    )
    again = edgeq("package", *CACHED, "--state", "past=1", *targets, *DATA, "--limit", "drift=1dB", *REST)
    assert [row["digest"] for row in again.json["rows"]] == [row["digest"] for row in made.json["rows"]]
    assert all(row["cached"] for row in again.json["rows"])


@pytest.mark.slow
def test_a_state_that_leaves_its_range_is_refused_and_without_a_state_nothing_changes(
    edgeq: Run, project: Project
) -> None:
    made = edgeq("package", *SUMMING, "--state", "past=1", "-t", ORT, "--scheme", "static-int8", *DATA, *REST)
    assert made.code == 5, made.err
    assert made.gate("state")["outcome"] == "failed"
    assert "leaves the range that it was calibrated for" in made.gate("state")["detail"]
    plain = edgeq("package", *SUMMING, "-t", ORT, "--scheme", "fp32", *REST)
    assert plain.code == 0, plain.err
    assert "state" not in [gate["name"] for gate in plain.json["rows"][0]["gates"]]
    folder = Path(plain.json["rows"][0]["path"])
    assert "fed_from" not in (folder / "manifest.json").read_text()
    assert "state" not in read_bundle(folder).manifest.provenance.options


@pytest.mark.slow
def test_an_onnx_file_names_its_own_outputs(edgeq: Run, project: Project) -> None:
    space = runpy.run_path("net.py")
    names = {"input_names": ["x", "past"], "output_names": ["scores", "next"]}
    example = (torch.zeros(1, 8), torch.zeros(1, 8, 4))
    torch.onnx.export(space["cached"](), example, "c.onnx", dynamo=True, **names)
    run = ("package", "c.onnx", "-t", ORT, "--scheme", "fp32", *REST)
    edgeq(*run, "--state", "past=other").fails(2, "no output 'other'", "its outputs are scores, next")
    made = edgeq(*run, "--state", "past=next")
    assert made.code == 0, made.err
    assert made.gate("state")["outcome"] == "ok"
    # without data, four random sequences of 32 steps
    assert "the first 128 steps of the data, repeated" in made.gate("state")["detail"]


def test_wrong_states_and_data_end_the_run(edgeq: Run, project: Project) -> None:
    run = ("package", *CACHED, "-t", ORT, "--scheme", "fp32", *REST)
    edgeq(*run, "--state", "past").fails(2, "--state 'past': expected the name of an input, =,")
    edgeq(*run, "--state", "past=1", "--dynamic-batch").fails(2, "--state cannot be combined with --dynamic-batch")
    edgeq(*run, "--state", "past=0").fails(2, "the input takes float32 [1, 8, 4], but the output is float32 [1, 3]")
    edgeq(*run, "--state", "past=1", "--state", "post=1").fails(2, "the model has no input 'post'")
    varying = ("--input", "x=1x8", "--input", "past=1x8x{t=2..4}", "-t", ORT, "--scheme", "fp32", *REST)
    edgeq("package", "net.py:cached", *varying, "--state", "past=1").fails(2, "but --input past varies")
    frames = ("--state", "past=1", "--eval-data", "net.py:frames")
    edgeq(*run, *frames).fails(2, "net.py:frames[0]: input 'x' expects a sequence of steps, [steps, 8], got [8]")
    shared = ("--state", "past=1", "--calibration-data", "net.py:shared", "--eval-data", "net.py:validation")
    static = ("package", *CACHED, "-t", ORT, "--scheme", "static-int8", *REST)
    edgeq(*static, *shared).fails(2, "shared-with-evaluation")
    (project.root / "m.pte").write_bytes(b"")
    lowered = edgeq("package", "m.pte", "--state", "past=1", "-t", XNNPACK, "--scheme", "fp32", *REST)
    lowered.fails(2, "m.pte is already lowered")
