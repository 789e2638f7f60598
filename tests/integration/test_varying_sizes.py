"""`--input tokens=int64:1x{seq=4..32}:0..49`: a model, its exported program and its ONNX file."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch

from edgeq.bundle.reader import read_bundle

from .conftest import Project, Run

ORT, XNNPACK, X86 = "linux-x86_64-ort", "linux-x86_64-xnnpack", "linux-x86_64-x86"

NET = '''
import numpy as np
import torch
from torch import nn


class Tagger(nn.Module):
    """Attends over the words that a mask leaves, and scores four classes."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.keys, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, tokens, mask):
        x = self.words(tokens)
        scores = (self.keys(x) @ x.transpose(1, 2)) / 4 + (1 - mask.float()).unsqueeze(1) * -1e4
        x = scores.softmax(-1) @ x
        return self.head((x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


class Eight(Tagger):
    def forward(self, tokens, mask):
        return super().forward(tokens.reshape(1, 32), mask)


def model():
    torch.manual_seed(0)
    return Tagger().eval()


def eight():
    return Eight().eval()


def samples(seed, lengths):
    rng = np.random.default_rng(seed)
    return [{"tokens": rng.integers(0, 50, n), "mask": (np.arange(n) < max(2, n // 2)).astype(int)} for n in lengths]


def train():
    return samples(0, [5, 9, 17, 30] * 8)


def validation():
    return samples(1, [4, 6, 11, 23, 29, 31] * 4)


def too_long():
    return samples(2, [30, 31, 33])


def unequal():
    return [{"tokens": np.zeros(8, int), "mask": np.ones(9, int)}]
'''

TOKENS, MASK = "tokens=int64:1x{seq=4..32}:0..49", "mask=int64:1x{seq=4..32}:0..1"
INPUTS = ("--input", TOKENS, "--input", MASK)
REST = ("--on", "host", "-o", "out", "--json", "--quiet")


@pytest.fixture(autouse=True)
def net(project: Project) -> None:
    (project.root / "net.py").write_text(NET)


@pytest.mark.slow
def test_each_runtime_takes_all_sizes_and_a_bundle_says_which(edgeq: Run, project: Project) -> None:
    targets = ("-t", ORT, "-t", XNNPACK, "-t", X86, "-t", "linux-x86_64-cuda")
    data = ("--calibration-data", "net.py:train", "--eval-data", "net.py:validation", "--scheme", "fp32")
    made = edgeq("package", "net.py:model", *INPUTS, *targets, *data, *REST)
    assert made.code == 3, made.err  # of the GPU alone
    assert [one["target"] for one in made.json["refused"]] == ["linux-x86_64-cuda"]
    assert "cannot take inputs whose sizes vary: edgeq compiles one size" in made.json["refused"][0]["error"]
    rows = {row["target"]: row for row in made.json["rows"]}
    for target, row in rows.items():
        gates = {gate["name"]: gate for gate in row["gates"]}
        assert gates["sizes"]["outcome"] == "ok", target
        assert "at seq=32; at seq=4; at seq=18; seq=33 " in gates["sizes"]["detail"]
        bundle = read_bundle(Path(row["path"]))
        (tokens, mask) = bundle.manifest.inputs
        assert (tokens.shape, tokens.shape_text(), mask.shape_text()) == ((1, 32), "[1, 4..32]", "[1, 4..32]")
        assert bundle.manifest.outputs[0].varying == ()
        assert edgeq("verify", row["path"], "--quiet").code == 0
    planned = {target: read_bundle(Path(row["path"])).manifest.planned_memory_bytes for target, row in rows.items()}
    assert planned[ORT] is planned[X86] is None
    assert planned[XNNPACK] >= 32 * 16 * 4  # the embeddings of the longest sequence
    beyond = {target: row["verified"]["sizes"]["beyond"] for target, row in rows.items()}
    assert beyond[XNNPACK][0]["outcome"] == "refused"
    again = edgeq("package", "net.py:model", *INPUTS, "-t", ORT, *data, *REST).json["rows"][0]
    assert (again["cached"], again["digest"]) == (True, rows[ORT]["digest"])


@pytest.mark.slow
def test_an_exported_program_and_an_onnx_file_keep_their_ranges(edgeq: Run, project: Project) -> None:
    space = runpy.run_path("net.py")
    example = (torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64))
    seq = torch.export.Dim("seq", min=4, max=32)
    shapes = ({1: seq}, {1: seq})
    torch.export.save(torch.export.export(space["model"](), example, dynamic_shapes=shapes), "mine.pt2")
    target = ("-t", ORT, "--scheme", "fp32", *REST)
    made = edgeq("package", "mine.pt2", *target)
    assert made.code == 0, made.err
    folder = Path(made.json["rows"][0]["path"])
    assert [one.shape_text() for one in read_bundle(folder).manifest.inputs] == ["[1, 4..32]"] * 2
    edgeq("package", "mine.pt2", "--input", "tokens=int64:1x{seq=2..32}:0..49", *target).fails(2, "does not fit")

    shutil.copy(read_bundle(folder).artifact, "mine.onnx")
    taken = edgeq("package", "mine.onnx", *INPUTS, *target, "--name", "taken")
    assert taken.code == 0, taken.err
    assert taken.gate("sizes")["outcome"] == "ok"
    assert not read_bundle(Path(taken.json["rows"][0]["path"])).manifest.dynamic_batch


def test_data_and_models_that_do_not_fit_are_named(edgeq: Run, project: Project) -> None:
    run = ("package", "net.py:model", *INPUTS, "-t", ORT, "--scheme", "fp32", *REST)
    edgeq(*run, "--eval-data", "net.py:too_long").fails(2, "net.py:too_long[2]", "expects [4..32] per sample, got [33]")
    edgeq(*run, "--eval-data", "net.py:unequal").fails(2, "[0]: seq is 8 in input 'tokens', but 9 in 'mask'")
    edgeq(*run, "--dynamic-batch").fails(2, "--dynamic-batch cannot be combined with sizes that vary")
    other = ("--input", TOKENS, "--input", "mask=int64:1x{seq=4..64}:0..1", "-t", ORT, "--scheme", "fp32", *REST)
    edgeq("package", "net.py:model", *other).fails(2, "'seq' is 4..64, but 4..32 in")
    fixed = ("package", "net.py:eight", *INPUTS, "-t", ORT, "--scheme", "fp32", *REST)
    edgeq(*fixed).fails(3, "the sizes seq=4..32 cannot vary: at seq=4, the model fails", "net.py:")
    unnamed = ("--input", "tokens=int64:1x{4..32}:0..49", "--input", "mask=int64:1x{4..32}:0..1")
    rest = ("-t", ORT, "--scheme", "fp32", *REST)
    edgeq("package", "net.py:model", *unnamed, *rest).fails(3, "sizes that must be equal need one name")
