"""The faster ways of lowering are off where they are not known to be right."""

from __future__ import annotations

import pytest
from torch.fx import GraphModule

from edgeq.lower.speedups import PLAIN, deferred_codegen, patched


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
