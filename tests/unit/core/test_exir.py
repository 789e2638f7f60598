"""ExecuTorch is imported without torch's compiler, which comes when a graph needs it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import torch
import edgeq.core.exir
import executorch.exir
from torch.export._remove_auto_functionalized_pass import unsafe_remove_auto_functionalized_pass

COMPILER = "torch._inductor.pattern_matcher"

@torch.library.custom_op("edgeq_test::bump", mutates_args={"x"})
def bump(x: torch.Tensor) -> None:
    x.add_(1)

class Net(torch.nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        y = x * 2
        if self.in_place:
            torch.ops.edgeq_test.bump(y)
        return y

for in_place in (False, True):
    program = torch.export.export(Net(in_place), (torch.ones(3),)).run_decompositions({})
    print(sum("auto_functionalized" in str(node.target) for node in program.graph.nodes))
    unsafe_remove_auto_functionalized_pass(program)
    print([str(node.target) for node in program.graph.nodes if node.op == "call_function"])
    print(COMPILER in sys.modules)
from torch._inductor.fx_passes.post_grad import post_grad_passes
"""


def test_the_compiler_comes_when_a_graph_needs_it():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, plain_operators, plain_compiler, functional, operators, compiler = done.stdout.splitlines()
    assert (plain, plain_operators, plain_compiler) == ("0", "['aten.mul.Tensor']", "False")
    assert (functional, compiler) == ("1", "True")
    assert "edgeq_test.bump.default" in operators
    assert "auto_functionalized" not in operators
