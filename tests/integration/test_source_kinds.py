"""Source kinds × schemes × targets: each pair works, or is refused in words that say what to do.

What a kind of source changes ends where the model is captured or its layers are found, and each scheme starts from one
of these: each kind gets one or two schemes here, on one target of each runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeq

X86, QNNPACK, XNNPACK = "linux-x86_64-x86", "linux-arm64-qnnpack", "android-arm64-xnnpack"
ORT, OPENVINO = "linux-x86_64-ort", "linux-x86_64-openvino"
TARGETS = (X86, QNNPACK, XNNPACK, ORT, OPENVINO)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(64, 16)
        self.up, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(self.table(tokens).mean(1))))


FACTORY = """
import torch
from {module} import {name}

def model():
    return {name}()

def example_inputs():
    return (torch.{example},)
"""

rng = np.random.default_rng(0)
MODELS: dict[str, tuple[type[nn.Module], str, str, Any]] = {
    "images": (Images, "zeros(1, 1, 8, 8)", "x=1x1x8x8", rng.normal(size=(128, 1, 8, 8)).astype(np.float32)),
    "words": (Words, "tensor([[0, 1, 2, 3, 62, 63]])", "tokens=int64:1x6:0..63", rng.integers(0, 64, (128, 6))),
}


def example(name: str) -> Any:
    return (eval(f"torch.{MODELS[name][1]}"),)  # noqa: S307  # the text of this file


def factory(name: str, folder: Path) -> str:
    kind, text, _, _ = MODELS[name]
    file = FACTORY.format(module=kind.__module__, name=kind.__name__, example=text)
    (folder / "net.py").write_text(file)
    return f"{folder / 'net.py'}:model"


def program(name: str, folder: Path) -> str:
    torch.export.save(torch.export.export(MODELS[name][0]().eval(), example(name)), folder / "net.pt2")
    return str(folder / "net.pt2")


def scripted(name: str, folder: Path) -> str:
    torch.jit.save(torch.jit.script(MODELS[name][0]().eval()), folder / "net.pt")
    return str(folder / "net.pt")


def traced(name: str, folder: Path) -> str:
    torch.jit.save(torch.jit.trace(MODELS[name][0]().eval(), example(name)), folder / "net.pt")
    return str(folder / "net.pt")


def onnx_file(name: str, folder: Path) -> str:
    names = [MODELS[name][2].partition("=")[0]]
    path = folder / "net.onnx"
    torch.onnx.export(MODELS[name][0]().eval(), example(name), path, input_names=names, dynamo=True, verbose=False)
    return str(path)


def live(name: str, _folder: Path) -> nn.Module:
    return MODELS[name][0]()


# gates that these models fail for what they are: convolutions gain nothing from the scheme, by any kind of source
SMALL_SHARE = {("images", XNNPACK, "weight-only-int8"): "int8_weights"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "scheme"),
    [
        (live, "images", "static-int8"),
        (factory, "words", "fp16"),
        (program, "images", "weight-only-int8"),
        (program, "words", "static-int8"),
        (scripted, "images", "mixed-int8"),
        (scripted, "words", "weight-only-int8"),
        (traced, "images", "fp16"),
        (traced, "words", "qat-int8"),
        (onnx_file, "images", "static-int8"),
        (onnx_file, "words", "dynamic-int8"),
    ],
)
def test_a_kind_of_source_gets_a_scheme_on_each_runtime(
    make: Callable[[str, Path], Any], name: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, text, data = MODELS[name]
    schemes = {target.name: target.schemes for target in edgeq.targets()}
    report = edgeq.package(
        make(name, tmp_path),
        targets=[target for target in TARGETS if scheme in schemes[target]],
        schemes=scheme,
        example_inputs=example(name) if make is live else None,
        calibration=data[:64],
        evaluation=data[64:],
        limits={"sqnr": "3dB"} if scheme == "mixed-int8" else None,
        on="host",
        progress=False,
        options={
            "inputs": [] if make in (live, factory) else [text],
            "data": {"lint": "warn"},
            **({"qat": {"epochs": 1}} if scheme == "qat-int8" else {}),
        },
    )
    failed = {
        (name, row.target, scheme): gate.name
        for row in report.rows
        for gate in row.checked.gates
        if gate.outcome not in ("ok", "allowed")
    }
    assert failed == {pair: gate for pair, gate in SMALL_SHARE.items() if pair[0] == name and pair[2] == scheme}
    refused = {row.target: row.error for row in report.refused}
    unlike = [X86, QNNPACK, XNNPACK] if make is onnx_file else []  # torch reads no ONNX file
    assert [*refused] == [target for target in unlike if scheme in schemes[target]], refused
    for error in refused.values():
        assert error.exit_code == 3
        assert error.fix
        assert not re.search(r"\b[A-Z]\w*(Error|Exception)\b|internal", error.what), error.what
