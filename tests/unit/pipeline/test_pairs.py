"""`edgeq doctor MODEL` tells which pairs work, and why others do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeq.cli.main import run

NET = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8)).eval()

def decides():
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x
    return Decides()

def up():
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 16, 6, 2))

def example_inputs():
    return (torch.zeros(1, 64),)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def test_each_pair_is_tried_and_nothing_is_written(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "net.py:model", "-t", "linux-x86_64-x86", "--json", "-q"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["data"] == "16 random inputs, since no --calibration-data was given"
    outcomes = {pair["scheme"]: pair["outcome"] for pair in found["pairs"]}
    assert outcomes["fp32"] == outcomes["static-int8"] == outcomes["dynamic-int8"] == "ok"
    assert {"qat-int8", "mixed-int8"}.isdisjoint(outcomes)
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["net.py"]


def test_a_pair_that_cannot_be_built_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "net.py:decides", "-t", "linux-x86_64-xnnpack", "-q"]) == 3
    out = capfd.readouterr().out
    assert "0 of " in out
    assert "refused (1)" in out
    assert "(1) refused: " in out


def test_a_pair_that_fails_says_why_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "net.py:up", "-t", "linux-x86_64-x86", "-q"])
    (failed,) = [line for line in capfd.readouterr().out.splitlines() if "failed: int8_macs" in line]
    assert failed.endswith("; 3 ran in float: if that may stay so, add --keep-fp32 3")


def test_options_of_a_model_need_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "-t", "linux-x86_64-x86"]) == 2
    assert "options of a model were given without MODEL" in capfd.readouterr().err
