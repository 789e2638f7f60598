"""The faster export gives the very bytes of the plain one, over models with what patches could get wrong."""

from __future__ import annotations

import pytest
import torch
from lowering_models import IMAGE, ZOO, exported
from torch import nn
from torch.export import ExportedProgram

from edgeq.core.speedups import PLAIN
from edgeq.core.system import quiet
from edgeq.lower.onnx import OPSET, _strip
from edgeq.lower.onnx_speedups import speedups


class Written(nn.Module):
    """Reads again what an activation has changed in place, and changes what a view shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        a = self.conv(x)
        b = a.relu_()
        rows = self.conv(x).view(2, 4, 256)
        rows.add_(rows.mean(-1, keepdim=True))
        return a * b.sigmoid(), nn.functional.relu6(rows, inplace=True)


class Ends(nn.Module):
    """Its outputs are what a trace renames, or drops."""

    def forward(self, input):  # a name of Python's own
        x = input * 2
        return nn.functional.dropout(x, training=False), x.flatten(1), (x + 1).relu_(), (x - 1).relu_()


CASES = {**ZOO, "written": (Written, IMAGE), "ends": (Ends, IMAGE)}


def made(program):
    with quiet(), speedups():
        done = torch.onnx.export(program, dynamo=True, opset_version=OPSET, external_data=False, verbose=False)
    proto = done.model_proto
    _strip(proto)
    return proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("name", "scheme", "is_traced"),
    [
        ("residual", "static-int8", False),
        ("residual", "fp32", True),  # its batch norm is decomposed
        ("gates", "fp32", False),
        ("recurrent", "static-int8", False),
        ("views", "static-int8", True),
        ("written", "fp32", True),
        ("ends", "fp32", False),
    ],
)
def test_the_model_is_that_of_the_plain_export(monkeypatch, name, scheme, is_traced):
    traces, plain = [], ExportedProgram.run_decompositions

    def trace(self, *args):
        traces.append(self)
        return plain(self, *args)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", trace)
    program = exported(*CASES[name], scheme)
    before = str(program)
    fast = made(program)
    assert (len(traces) == 1) == is_traced
    assert str(program) == before  # other targets may get it too
    monkeypatch.setenv(PLAIN, "1")
    assert made(program) == fast
