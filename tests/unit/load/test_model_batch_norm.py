from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.load.model import estimate_batch_norm


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()


SPEC = (TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),)


def test_batch_norm_statistics_become_those_of_the_data(in_memory):
    arrays = [np.random.default_rng(i).normal(3, 2, (3, 8, 8)).astype(np.float32) for i in range(16)]
    before = net()
    module = estimate_batch_norm(before, in_memory(arrays), SPEC)
    features = torch.cat([module[0](torch.from_numpy(array[None])) for array in arrays])
    torch.testing.assert_close(module[1].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module[1].running_var, features.var((0, 2, 3)), rtol=0.1, atol=0)
    assert not module.training
    assert module[1].momentum == 0.1
    assert torch.equal(before[1].running_mean, torch.zeros(4))


def test_a_norm_after_global_pooling_has_no_variance_to_learn(in_memory):
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)).eval()
    module = estimate_batch_norm(pooled, in_memory([np.ones((3, 8, 8), np.float32)] * 2), SPEC)
    assert torch.equal(module[2].running_var, torch.ones(4))
    assert not module[2]._forward_pre_hooks


def test_estimating_leaves_the_samples_alone(in_memory):
    array = np.full((1, 3, 8, 8), -1, np.float32)
    estimate_batch_norm(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(3)), in_memory([array]), SPEC)
    assert (array == -1).all()
