"""The faster ways of lowering are off where they are not known to be right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgeq.core.speedups import PLAIN, decomposed, deferred_codegen, patched


def test_another_version_is_lowered_plainly_and_says_so():
    before = GraphModule.recompile
    told = pytest.warns(UserWarning, match=r"written for torch 2\.14\.0, but torch 2\.\d+\.\d+ are installed")
    with told, patched((deferred_codegen,), {"torch": "2.14.0"}):
        assert GraphModule.recompile is before


@pytest.mark.parametrize(("value", "is_off"), [("1", True), ("0", False), ("", False)])
def test_a_variable_turns_them_off(monkeypatch, value, is_off):
    monkeypatch.setenv(PLAIN, value)
    before = GraphModule.recompile
    with patched((deferred_codegen,), {}):
        assert (GraphModule.recompile is before) == is_off
    assert GraphModule.recompile is before


class Parts(nn.Module):
    """Composite operators whose kernels are overridden, one of them with a part that depends on the device."""

    def forward(self, x):
        rows = nn.functional.scaled_dot_product_attention(x, x, x)
        return nn.functional.instance_norm(rows.chunk(2, 1)[0].reshape(2, 4, 4)).flatten(1)


@pytest.mark.parametrize("table", ["none", "core"])
def test_a_decomposition_is_the_plain_one_and_leaves_every_operator_as_it_was(table):
    x = torch.rand(1, 4, 4, 4, generator=torch.manual_seed(0))
    program = torch.export.export(Parts().eval(), (x,))
    chosen = {} if table == "none" else torch.export.default_decompositions()
    plain = program.run_decompositions({**chosen})
    operators = [torch.ops.aten.linear.default, torch.ops.aten.layer_norm.default, torch.ops.aten.instance_norm.default]
    before = [dict(op.py_kernels) for op in operators]
    made = decomposed(program, {**chosen})
    assert str(made.graph) == str(plain.graph)
    assert [dict(op.py_kernels) for op in operators] == before
    assert torch.equal(made.module()(x), plain.module()(x))
