"""A target or scheme that cannot be done beside others: their bundles, the row with the reason, the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .conftest import X86, XNNPACK, Project, Run

pytestmark = pytest.mark.slow

ORT = "linux-x86_64-ort"
MODELS = """
import torch
from torch import nn


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def convolution():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten()).eval()


class Untraceable(nn.Sequential):
    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("not to be traced")
        return super().forward(x)


def untraceable():
    return Untraceable(*linear())


def example_inputs():
    return (torch.zeros(1, 1, 8, 8),)
"""


@pytest.fixture
def models(project: Project) -> Project:
    Path("models.py").write_text(MODELS)
    return project


UNTRACEABLE = "models.py:untraceable"


def test_one_target_that_cannot_leaves_the_others_bundles(models: Project, edgeq: Run) -> None:
    base = ("package", UNTRACEABLE, "--on", "host", "--quiet", "--scheme", "dynamic-int8", "--name", "linear")
    both = (*base, "--target", X86, "--target", XNNPACK)
    files = ("--junit", "junit.xml", "--markdown", "summary.md")
    result = edgeq(*both, "--json", *files)
    assert result.code == result.json["exit_code"] == 3, result.err
    (row,) = result.json["rows"]
    assert (row["target"], row["passed"], row["exit_code"]) == (XNNPACK, True, 0)
    (refused,) = result.json["refused"]
    assert (refused["target"], refused["scheme"], refused["exit_code"]) == (X86, "dynamic-int8", 3)
    assert "TorchScript cannot trace this model" in refused["error"]
    assert "ExecuTorch" in refused["fix"]
    assert refused["stays"] is None
    assert sorted(path.name for path in (models.out / "linear").iterdir()) == [XNNPACK]
    assert X86 in (models.out / "report.html").read_text()
    suites = ElementTree.parse(models.root / "junit.xml").getroot()  # noqa: S314  # our own
    assert (suites.get("failures"), suites.get("errors")) == ("0", "1")
    assert "1 of 2 bundles refused (exit code 3)" in (models.root / "summary.md").read_text()

    again = edgeq(*both)
    assert again.code == 3
    assert f"refused: {X86} dynamic-int8: TorchScript cannot trace this model" in again.out
    assert "refused (exit code 3)" in again.out
    assert "cached" in again.out
    assert "error:" not in again.err

    # alone it is the error that it was, and nothing is written
    before = models.names()
    edgeq(*base, "--target", X86).fails(3, "TorchScript cannot trace this model")
    assert models.names() == before


def test_an_earlier_bundle_of_what_is_refused_now_stays(models: Project, edgeq: Run) -> None:
    base = ("package", "--on", "host", "--quiet", "--no-cache", "--name", "linear", "--target", X86)
    assert edgeq(*base, "models.py:linear", "--scheme", "dynamic-int8").code == 0
    earlier = (models.out / "linear" / X86 / "manifest.json").read_bytes()
    result = edgeq(*base, UNTRACEABLE, "--scheme", "dynamic-int8", "--target", XNNPACK, "--json")
    assert result.code == 3, result.err
    (refused,) = result.json["refused"]
    assert refused["stays"] == str(Path("out/linear") / X86)
    assert (models.out / "linear" / X86 / "manifest.json").read_bytes() == earlier
    assert (models.out / "linear" / XNNPACK / "manifest.json").exists()


def test_one_scheme_that_cannot_leaves_the_others_bundles(models: Project, edgeq: Run) -> None:
    base = ("package", "models.py:convolution", "--on", "host", "--quiet", "--no-cache", "--target", X86)
    schemes = ("--scheme", "dynamic-int8", "--scheme", "fp32")
    result = edgeq(*base, *schemes, "--json")
    assert result.code == 3, result.err
    assert [(row["scheme"], row["passed"]) for row in result.json["rows"]] == [("fp32", True)]
    assert [(one["target"], one["scheme"]) for one in result.json["refused"]] == [(X86, "dynamic-int8")]
    assert sorted(path.name for path in (models.out / "convolution").iterdir()) == [f"{X86}@fp32"]
    # the lowest code of all counts: a limit on size is 4
    assert edgeq(*base, *schemes, "--limit", "size=1kB").code == 3


def test_a_run_of_refusals_alone_is_an_error_that_names_each(models: Project, edgeq: Run) -> None:
    base = ("package", "models.py:convolution", "--on", "host", "--quiet", "--no-cache", "--scheme", "dynamic-int8")
    result = edgeq(*base, "--target", X86, "--target", ORT)
    result.fails(3, "quantized nothing")
    assert not models.out.exists()


def test_an_option_that_one_target_cannot_take_is_its_own_refusal(models: Project, edgeq: Run) -> None:
    base = ("package", "models.py:linear", "--on", "host", "--quiet", "--no-cache", "--scheme", "fp32")
    result = edgeq(*base, "--dynamic-batch", "--target", X86, "--target", ORT, "--json")
    assert result.code == 3, result.err
    assert [row["target"] for row in result.json["rows"]] == [ORT]
    assert [one["target"] for one in result.json["refused"]] == [X86]
    assert "--dynamic-batch is for ONNX targets" in result.json["refused"][0]["error"]
    edgeq(*base, "--dynamic-batch", "--target", X86).fails(3, "--dynamic-batch is for ONNX targets")


def test_auto_and_compare_go_on_too(models: Project, edgeq: Run) -> None:
    Path("nothing.py").write_text(MODELS + "\n\ndef nothing():\n    return nn.Sequential(nn.Flatten(), nn.ReLU())\n")
    base = ("package", "nothing.py:nothing", "--on", "host", "--quiet", "--no-cache", "--compare", "--json")
    # Core ML's only candidates are float ones, and int8 has nothing to quantize
    result = edgeq(*base, "--scheme", "auto", "--target", X86, "--target", "ios-arm64-coreml")
    assert [one["target"] for one in result.json["refused"]] == [X86], result.out
    assert result.json["refused"][0]["scheme"] == "auto"
    assert "qat-int8" in result.json["refused"][0]["error"]
    (row,) = result.json["rows"]
    assert row["target"] == "ios-arm64-coreml"
    assert row["compared"] is not None
    assert result.code == 3


def test_a_project_shows_what_one_of_its_targets_cannot(models: Project, edgeq: Run) -> None:
    Path("edgeq.toml").write_text(
        f'targets = ["{X86}", "{XNNPACK}"]\nschemes = ["dynamic-int8"]\ndevice.on = "host"\n'
        '[app]\nlimit.size = "10MB"\nruntime_size.linux-x86_64.torchscript = "1MB"\n'
        f'[[model]]\nname = "program"\nsource = "{UNTRACEABLE}"\n'
        '[[model]]\nname = "module"\nsource = "models.py:linear"\n'
    )
    result = edgeq("build", "--json", "--quiet")
    program, module = result.json["models"]
    assert (program["exit_code"], program["error"], module["exit_code"]) == (3, None, 0)
    assert [row["target"] for row in program["rows"]] == [XNNPACK]
    assert [one["target"] for one in program["refused"]] == [X86]
    assert module["refused"] == []
    assert result.code == 3
    # the sum lacks a bundle, and says so
    gates = {gate["name"]: gate for gate in result.json["app"]}
    gate = gates["size of the app for linux-x86_64"]
    assert gate["outcome"] == "unverified"
    assert f"program for {X86} could not be built" in gate["detail"]
    text = edgeq("build", "--quiet")
    assert f"refused: program {X86} dynamic-int8: TorchScript cannot trace this model" in text.out
    page = (models.out / "report.html").read_text()
    assert f"program, {X86}, dynamic-int8" in page
    report = json.loads((models.out / "program" / XNNPACK / "report.json").read_text())
    assert report["row"]["target"] == XNNPACK
