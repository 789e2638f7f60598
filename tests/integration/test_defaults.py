"""The scheme of a run that names none: the model decides, the run says so, and an explicit scheme is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from .conftest import X86, Project, Run

ORT = "linux-x86_64-ort"
FILE = """
import torch
from torch import nn
from torch.nn import functional


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.mlp, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
        return self.head(x + functional.gelu(self.mlp(x))).mean(1)


def encoder():
    return Encoder().eval()


class Fading(nn.Module):
    \"\"\"A constant of 10 with differences of a thousandth, which the head takes apart: no int8 step is as small.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mix, self.head = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.body.weight.data.mul_(1e-3)
        self.body.bias.data.fill_(10)
        self.head.weight.data.mul_(1e4)
        x = torch.randn(256, 8, 16, generator=torch.Generator().manual_seed(1))
        self.head.bias.data.sub_(self(x).mean(0).detach())

    def forward(self, x):
        return self.head(self.mix(self.body(x.mean(1))))


def fading():
    return Fading().eval()


def example_inputs():
    return (torch.randn(1, 8, 16),)
"""


@pytest.fixture
def tokens(project: Project) -> tuple[str, ...]:
    """Write the models and their data, and return the options that name the data."""
    Path("models.py").write_text(FILE)
    rows = np.random.default_rng(0).normal(size=(148, 8, 16)).astype("float32")
    np.savez("calibration_rows.npz", x=rows[:48])
    np.savez("evaluation_rows.npz", x=rows[48:])
    return ("--calibration-data", "calibration_rows.npz", "--eval-data", "evaluation_rows.npz", "-o", "out")


@pytest.mark.slow
def test_attention_makes_it_dynamic_and_the_run_says_so(project: Project, package: Run, tokens) -> None:
    options = ("models.py:encoder", "-t", X86, *tokens)
    plan = package(*options, "--dry-run", base=False)
    assert f"{X86}, dynamic-int8" in plan.out
    assert "2 attention products, which static-int8 leaves in float. Choose another with --scheme" in plan.out
    result = package(*options, base=False, cache=True)
    assert result.code == 0, result.err
    line = f"scheme dynamic-int8 for {X86}: 2 attention products, which static-int8 leaves in float."
    assert f"{line} Choose another with --scheme" in result.out
    page = (project.out / "encoder" / X86 / "report.html").read_text()
    assert "2 attention products, which static-int8 leaves in float" in page

    again = package(*options, "--json", base=False, cache=True)
    (row,) = again.json["rows"]
    assert (row["scheme"], row["cached"]) == ("dynamic-int8", True)
    assert row["default"] == {"reason": "2 attention products, which static-int8 leaves in float"}

    named = package(*options, "--scheme", "dynamic-int8", "--json", base=False, cache=True).json["rows"][0]
    assert (named["cached"], named["default"], named["digest"]) == (True, None, row["digest"])
    static = package(*options, "--scheme", "static-int8", "--json", base=False, cache=True).json["rows"][0]
    assert (static["scheme"], static["default"]) == ("static-int8", None)
    # a result of a scheme that was named is no default's
    last = package(*options, "--json", base=False, cache=True).json["rows"][0]
    assert (last["scheme"], last["digest"], last["default"]) == ("dynamic-int8", row["digest"], row["default"])


@pytest.mark.slow
def test_an_onnx_file_is_looked_into_and_targets_share_a_line(project: Project, package: Run, tokens) -> None:
    made = package("models.py:encoder", "-t", ORT, "--scheme", "fp32", *tokens, base=False)
    assert made.code == 0, made.err
    (file,) = (project.out / "encoder" / ORT).glob("*.onnx")
    file.rename("encoder.onnx")
    options = ("encoder.onnx", "--name", "file", "-t", ORT, *tokens)
    result = package(*options, "--json", base=False)
    assert result.code == 0, result.err
    (row,) = result.json["rows"]
    assert (row["scheme"], row["default"]["reason"][:20]) == ("dynamic-int8", "2 attention products")


@pytest.mark.slow
def test_convolutions_keep_the_first_scheme_its_digest_and_its_silence(package: Run) -> None:
    result = package("--compare", "--json", cache=True)
    (row,) = result.json["rows"]
    assert (row["scheme"], row["default"]["reason"][:15]) == ("static-int8", "convolutions do")
    assert [one["scheme"] for one in row["compared"]["variants"]] == ["static-int8", "fp32", "fp16"]
    assert package("--compare", "--json", cache=True).json["rows"][0]["cached"]
    named = package("--scheme", "static-int8", "--json", cache=True).json["rows"][0]
    assert (named["digest"], named["cached"]) == (row["digest"], True)
    assert "Choose another with --scheme" not in package(cache=True).out


@pytest.mark.slow
def test_a_lost_graph_ends_the_run_before_it_is_lowered(project: Project, package: Run, tokens) -> None:
    options = ("models.py:fading", "-t", X86, *tokens)
    lost = package(*options, base=False)
    lost.fails(5, "static-int8 loses this model: on 64 samples, output 0", "not lowered", "try --scheme")
    assert not (project.out / "rejected").exists()
    # what the gates do not fail is not refused; the constant output is another gate's
    whole = package(*options, "--limit", "sqnr=0", "--json", base=False)
    assert whole.code == 7
    assert [gate["name"] for gate in whole.json["rows"][0]["gates"] if gate["outcome"] == "failed"] == ["outputs"]
    # the other schemes go on, and of several targets the others do
    assert package(*options, "--scheme", "fp32", "--scheme", "static-int8", "--json", base=False).code == 5
    document = json.loads((project.out / "fading" / f"{X86}@fp32" / "manifest.json").read_text())
    assert document["scheme"] == "fp32"
