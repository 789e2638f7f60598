"""The precision audit on a model with products of two activations, and one with a weight that no scheme quantizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import X86, XNNPACK, Project, Run

pytestmark = pytest.mark.slow

MODELS = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        scores = torch.bmm(self.query(x), self.key(x).transpose(1, 2)) * 0.25
        return self.head(torch.bmm(torch.sigmoid(scores), self.value(x)).mean(1))


class Stacked(nn.Module):
    '''A weight of its own for each head, in one parameter: a product that quantizers pass by.'''

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 16)
        self.weights = nn.ParameterList([torch.randn(2, 16, 16) / 4 for _ in range(4)])

    def forward(self, x):
        x = self.project(x)
        for weight in self.weights:
            x = torch.bmm(x, weight)
        return x


class Repeated(nn.Module):
    '''A linear layer, and a product with one matrix for all rows of a batch.'''

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(1, 16, 16) / 4)

    def forward(self, x):
        return torch.bmm(self.project(x), self.weight.expand(2, 16, 16))


def attention():
    torch.manual_seed(0)
    return Attention().eval()


def stacked():
    torch.manual_seed(0)
    return Stacked().eval()


def repeated():
    torch.manual_seed(0)
    return Repeated().eval()


def example_inputs():
    return (torch.zeros(2, 24, 16),)
"""


def ends(project: Project, edgeq: Run, model: str, target: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the gate and the layers, by what each multiplies."""
    (project.root / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).standard_normal((64, 2, 24, 16)).astype(np.float32)
    np.savez(project.root / "x.npz", x=x)
    base = ("package", f"models.py:{model}", "--on", "host", "--quiet", "--no-cache", "--scheme", "static-int8")
    result = edgeq(*base, "--calibration-data", "x.npz", "--target", target, "--json")
    assert result.out, result.err
    (row,) = result.json["rows"]
    report = json.loads((Path(row["path"]) / "report.json").read_text())
    return result.gate("int8_macs"), report["row"]["layers"]


@pytest.mark.parametrize("target", [X86, XNNPACK, "linux-x86_64-ort"])
def test_products_of_activations_are_not_missing_from_int8(project: Project, edgeq: Run, target: str) -> None:
    gate, layers = ends(project, edgeq, "attention", target)
    assert sum(layer["of_activations"] for layer in layers) == 2, layers
    assert gate["outcome"] == "ok", gate
    assert "products of activations" in gate["detail"], gate


@pytest.mark.parametrize("target", [X86, XNNPACK, "linux-x86_64-ort"])
def test_a_product_with_one_matrix_is_a_layer(project: Project, edgeq: Run, target: str) -> None:
    gate, layers = ends(project, edgeq, "repeated", target)
    assert gate["outcome"] == "ok", gate
    assert gate["measured"].startswith("100"), gate
    assert len(layers) == 2, layers


@pytest.mark.parametrize("target", [X86, XNNPACK, "linux-x86_64-ort"])
def test_products_with_weights_that_stay_in_float_fail_where_most_work_is_theirs(
    project: Project, edgeq: Run, target: str
) -> None:
    gate, layers = ends(project, edgeq, "stacked", target)
    assert not any(layer["of_activations"] for layer in layers), layers
    assert gate["outcome"] == "failed", gate
