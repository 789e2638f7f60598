"""Training against the float model, on a pruned one."""

from __future__ import annotations

import copy

import torch
from small_models import Silent, dataset
from torch import nn

from edgeq.core.config import QatConfig
from edgeq.core.results.model import TensorSpec
from edgeq.quantize.distill import Distillation

ROW = TensorSpec(name="x", dtype="float32", shape=(1, 32))


def test_zeros_of_a_pruned_weight_stay_and_those_of_a_bias_are_trained():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight[torch.rand(16, 32) < 0.3] = 0
        student[0].bias.zero_()
    zeros = student[0].weight == 0
    data = dataset((ROW,), 16)
    training = Distillation(
        student,
        teacher,
        specs=(ROW,),
        samples=data,
        held_out=data,
        logits=True,
        options=QatConfig(epochs=1, batch=4, lr=0.02),
        seed=0,
    )
    before = student[0].weight.detach().clone()
    training.epoch(0, Silent())
    assert (student[0].weight[zeros] == 0).all()
    assert (training.average()["0.weight"][zeros] == 0).all()
    assert (
        student[0].weight[~zeros] != before[~zeros]
    ).float().mean() > 0.5  # units that ReLU silences have no gradient
    assert (student[0].bias != 0).any()
