"""A pruned model from the command line: its zeros are counted in the report, and leave its download."""

from __future__ import annotations

from .conftest import Project, Run

SOURCE = """
import torch
from torch import nn


def whole():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 4))


def pruned():
    net = whole()
    with torch.no_grad():
        for part in net.parameters():
            if part.ndim > 1:
                part[part.abs() < part.abs().flatten().quantile(0.8)] = 0
    return net


def example_inputs():
    return (torch.zeros(1, 1, 8, 8),)
"""

ARGS = ("--target", "linux-x86_64-ort", "--scheme", "weight-only-int4", "--out", "out", "--eval-data", "evaluation.npz")


def test_zeros_are_told_and_pay_in_the_download(project: Project, package: Run, edgeq: Run) -> None:
    (project.root / "nets.py").write_text(SOURCE)
    limit = ("--limit", "download=15kB", "--limit", "sqnr=0", "--json")
    pruned = package("nets.py:pruned", *ARGS, *limit, base=False)
    whole = package("nets.py:whole", *ARGS, *limit, base=False)
    rows = [one.json["rows"][0] for one in (pruned, whole)]
    assert [round(row["zeros"], 2) for row in rows] == [0.8, 0.06]
    assert rows[0]["download_bytes"] < 0.6 * rows[1]["download_bytes"]
    assert abs(rows[0]["size_bytes"] - rows[1]["size_bytes"]) < 100
    assert [pruned.gate("download")["outcome"], whole.gate("download")["outcome"]] == ["ok", "failed"]
    assert (pruned.code, whole.code) == (0, 4)
    found = edgeq("inspect", rows[0]["path"], "--quiet").out
    assert "zeros" in found
    assert f"{rows[0]['zeros']:.1%} of the weights" in found
