"""A converted graph becomes the program that a trace would make of it, or is traced."""

from __future__ import annotations

import pytest
import torch
from lowering_models import IMAGE, ZOO, converted
from torch import nn

from edgeq.core.results.model import TensorSpec, VaryingSize
from edgeq.lower.lift import exported_again, lifted


class Branches(nn.Module):
    """Nested outputs of which one is read twice, a tensor that nothing reads, and no weights in one branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("unread", torch.zeros(2))

    def forward(self, x):
        a = self.conv(x)
        return {"first": a.relu(), "pair": (a.sigmoid(), (x * 2.0).mean((2, 3)))}


CASES = {**ZOO, "branches": (Branches, IMAGE)}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("residual", "static-int8"), ("branches", "static-int8"), ("tokens", "dynamic-int8"), ("gates", "dynamic-int8")],
)
def test_it_is_what_a_trace_makes_of_it(name, scheme):
    graph, inputs = converted(*CASES[name], scheme), CASES[name][1]
    made, traced = lifted(graph, inputs), torch.export.export(graph, inputs)
    assert str(made.graph) == str(traced.graph)
    assert str(made.graph_signature) == str(traced.graph_signature)
    assert [*made.state_dict] == [*traced.state_dict]
    for own, other in zip(made.graph.nodes, traced.graph.nodes, strict=True):
        if own.op == "call_function":
            assert str(own.meta["val"]) == str(other.meta["val"])
    with torch.no_grad():
        outputs = (torch.utils._pytree.tree_leaves(program.module()(*inputs)) for program in (made, traced))
        assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("views", "static-int8"),  # it writes to a part of what is read again
        ("recurrent", "static-int8"),  # an LSTM's states, which nothing reads, are recorded
    ],
)
def test_what_a_trace_records_otherwise_is_traced(name, scheme):
    assert lifted(converted(*ZOO[name], scheme), ZOO[name][1]) is None


@pytest.mark.parametrize("parts", [(0, 1, 2), (1, 0, 2), (0, 2)])
def test_the_parts_of_a_result_are_taken_out_as_a_trace_does(parts):
    class Split(nn.Module):
        def forward(self, x):
            split = x.split(1, 1)
            return sum(split[part] * (part + 2) for part in parts)

    inputs = (torch.ones(2, 3),)
    graph = torch.export.export(Split(), inputs).module()
    graph.graph.eliminate_dead_code()
    made = lifted(graph, inputs)
    assert made is None or str(made.graph) == str(torch.export.export(graph, inputs).graph)
    assert made is not None or parts != (0, 1, 2)


def test_writing_to_an_input_or_to_a_tensor_of_the_model_is_traced():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen.add_(1.0)
            return x * self.seen

    inputs = (torch.ones(2, 3),)
    assert lifted(torch.export.export(Counts(), inputs).module(), inputs) is None


def test_sizes_that_vary_stay_open():
    inputs = (torch.ones(2, 3),)
    rows = torch.export.Dim("rows", min=1, max=8)
    graph = torch.export.export(nn.Linear(3, 2).eval(), inputs, dynamic_shapes=({0: rows},)).module()
    item = TensorSpec(
        name="input", dtype="float32", shape=(2, 3), varying=(VaryingSize(axis=0, name="rows", least=1, most=8),)
    )
    program = exported_again(graph, type("Spec", (), {"inputs": (item,)}))
    assert len(program.range_constraints) == 1
