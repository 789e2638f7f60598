"""The faster lowering gives the very bytes of the plain one, over models with what patches could get wrong."""

from __future__ import annotations

import pytest
import torch
from lowering_models import IMAGE, ZOO, Residual, exported

from edgeq.core.speedups import PLAIN
from edgeq.lower.edge_speedups import speedups

pytestmark = pytest.mark.slow


def bytes_of(program):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with speedups(program):
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def both(monkeypatch, program):
    from torch.fx import GraphModule

    before = GraphModule.recompile
    fast = bytes_of(program)
    assert GraphModule.recompile is before
    monkeypatch.setenv(PLAIN, "1")
    return fast, bytes_of(program)


# dynamic-int8 quantizes linear layers only, which the others do not have
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *((name, "static-int8") for name in ("residual", "views", "upsampled", "tokens")),
        ("recurrent", "dynamic-int8"),
    ],
)
def test_the_artifact_is_that_of_plain_lowering(monkeypatch, name, scheme):
    fast, plain = both(monkeypatch, exported(*ZOO[name], scheme))
    assert fast == plain


def test_an_open_batch_size_is_lowered_alike(monkeypatch):
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(Residual().eval(), IMAGE, dynamic_shapes=({0: batch},))
    fast, plain = both(monkeypatch, program)
    assert fast == plain


def test_graph_modules_of_the_fast_way_run_and_show_their_code():
    program = exported(Residual, IMAGE, "fp32")
    with speedups(program):
        module = program.module()
        assert "_code" not in vars(module)  # otherwise nothing was deferred
        assert "def forward" in module.code
        wanted = program.module()
    assert torch.equal(module(*IMAGE), wanted(*IMAGE))
