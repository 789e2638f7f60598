"""Importing this module has ExecuTorch come without torch's compiler: import it before `executorch.exir`.

`executorch.exir` imports `torch.export._remove_auto_functionalized_pass`, and that imports all of Inductor for one
function: 0.7 s of processor and 40 MB. The function changes graphs that hold operators which Inductor or a model's own
custom operators made functional. It is imported when a graph holds one.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

_LOADED_WITH_EXIR = "torch.export._remove_auto_functionalized_pass"

_INDUCTOR = "torch._inductor.fx_passes.post_grad"

# what the function looks for, in torch 2.15
_OPERATORS = ("auto_functionalized", "auto_functionalized_v2", "control_deps")


def _decompose_auto_functionalized(graph: Any) -> None:
    """Do what Inductor's function does, which for a graph without these operators is nothing."""
    names = {getattr(node.target, "_name", "") for node in graph.nodes if node.op == "call_function"}
    if names & {*_OPERATORS}:
        importlib.import_module(_INDUCTOR).decompose_auto_functionalized(graph)


if _LOADED_WITH_EXIR not in sys.modules and _INDUCTOR not in sys.modules:
    stand_in: Any = types.ModuleType(_INDUCTOR)
    stand_in.decompose_auto_functionalized = _decompose_auto_functionalized
    sys.modules[_INDUCTOR] = stand_in
    try:
        importlib.import_module(_LOADED_WITH_EXIR)
    finally:
        del sys.modules[_INDUCTOR]
