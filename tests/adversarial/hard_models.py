"""Small models and data, each of a kind that once got "verdict ok" while the artifact was useless.

It is read by `edgeq package hard_models.py:NAME`, so that it imports nothing of the tests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Detector(nn.Module):
    """[1, 64, 5]: boxes in pixels of 640, objectness from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.box = nn.Conv2d(32, 4, 1)
        self.score = nn.Conv2d(32, 1, 1)
        with torch.no_grad():
            self.score.weight.mul_(8)
            self.score.bias.fill_(-0.5)

    def forward(self, x):
        features = self.body(x)
        boxes, scores = torch.sigmoid(self.box(features)) * 640, torch.sigmoid(self.score(features))
        return torch.cat([boxes, scores], 1).flatten(2).transpose(1, 2)


def detector():
    torch.manual_seed(0)
    return Detector().eval()


class OneHead(nn.Module):
    """[1, 5, 8, 8]: one layer computes boxes in pixels and raw scores, and its output has one scale in int8."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(32, 5, 1)
        with torch.no_grad():
            self.head.weight[:4].mul_(1000)

    def forward(self, x):
        raw = self.head(self.body(x))
        return torch.cat([raw[:, :4], raw[:, 4:].sigmoid()], 1)


def one_head():
    torch.manual_seed(0)
    return OneHead().eval()


def blocks(count, channels, side, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, channels, 4, 4)) * scale
    return np.kron(coarse, np.ones((1, 1, side // 4, side // 4))).astype(np.float32)


def detector_calib():
    return blocks(64, 3, 32, 1)


def detector_evals():
    return blocks(128, 3, 32, 2)


class TwoHeads(nn.Module):
    """Classes, and a map that is the small difference of two large ones."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8, 4)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(4, 8) * 4)
            self.head.bias.zero_()
            self.right.weight.mul_(200)
            self.right.bias.mul_(200)
            self.left.weight.copy_(self.right.weight + torch.randn_like(self.right.weight) * 0.05)
            self.left.bias.copy_(self.right.bias)

    def forward(self, x):
        features = torch.relu(self.conv(x))
        return self.head(features.mean((2, 3))), self.left(features) - self.right(features)


def two_heads():
    torch.manual_seed(3)
    return TwoHeads().eval()


def two_heads_calib():
    return blocks(64, 1, 16, 1, 3.0)


def two_heads_evals():
    x = blocks(1000, 1, 16, 2, 3.0)
    with torch.no_grad():
        scores = two_heads()(torch.from_numpy(x))[0].numpy()
    ordered = np.sort(scores, 1)
    clear = ordered[:, -1] - ordered[:, -2] > 0.3 * ordered.std()
    return x[clear], scores[clear].argmax(1)


class Branch(nn.Module):
    """Which layer it takes depends on how many values are large."""

    def __init__(self):
        super().__init__()
        self.few, self.many = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        return self.many(x) if torch.nonzero(x > 0.5).shape[0] > 4 else self.few(x)


def branch():
    torch.manual_seed(0)
    return Branch().eval()


def branch_evals():
    rng = np.random.default_rng(1)
    return np.concatenate((rng.uniform(0, 0.5, (100, 16)), rng.uniform(0.4, 1, (100, 16)))).astype(np.float32)


class Halves(nn.Module):
    """The sums of the two halves of the input."""

    def __init__(self):
        super().__init__()
        self.sums = nn.Linear(32, 2)
        with torch.no_grad():
            self.sums.weight.zero_()
            self.sums.weight[0, :16] = 1
            self.sums.weight[1, 16:] = 1
            self.sums.bias.zero_()

    def forward(self, x):
        return self.sums(x)


def halves():
    return Halves().eval()


def sorted_by_loudness():
    """Return recordings of class 0, 500 times as loud, before those of class 1."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 320)
    x = rng.normal(0, 0.1, (640, 32))
    x[labels == 0, :16] += 0.1
    x[labels == 1, 16:] += 0.1
    x[labels == 0] *= 500
    return x.astype(np.float32), labels


class Common(nn.Module):
    """Two scores that move together with the first input; the second input tells the rare class."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(8, 2)
        with torch.no_grad():
            self.scores.weight.zero_()
            self.scores.weight[:, 0] = 1.0
            self.scores.weight[1, 1] = 1.0
            self.scores.bias.zero_()

    def forward(self, x):
        return self.scores(x)


def common():
    return Common().eval()


def wide(count, seed):
    return np.random.default_rng(seed).uniform(-10, 10, (count, 8)).astype(np.float32)


def rare_evals():
    x, labels = wide(3000, 2), np.zeros(3000, np.int64)
    labels[np.random.default_rng(3).choice(3000, 10, replace=False)] = 1
    x[:, 1] = np.where(labels == 1, 0.03, -0.03)
    return x, labels


def rare_calib():
    x = wide(256, 1)
    x[:, 1] = 0.03
    return x


def clear_calib():
    x = wide(256, 1)
    x[:, 1] = np.where(np.arange(256) % 2, 3.0, -3.0)
    return x


def twelve_a_hundred_times():
    x, labels = wide(12, 16), np.arange(12) % 2
    x[:, 1] = np.where(labels == 1, 3.0, -3.0)
    return np.tile(x, (100, 1)), np.tile(labels, 100)


def twelve_with_noise():
    """Return the same samples with noise of a millionth, so that no two have equal bytes."""
    x, labels = twelve_a_hundred_times()
    noise = np.random.default_rng(4).normal(0, 1e-6, x.shape)
    return (x * (1 + noise)).astype(np.float32), labels


class InPlace(nn.Module):
    """Normalizes its caller's tensor."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x.sub_(0.5).mul_(2.0)
        return self.head(x)


def in_place():
    torch.manual_seed(0)
    return InPlace().eval()


class Brightness(nn.Module):
    """Bright or dark, of an image from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.mean.weight[0], self.mean.weight[1] = -1 / 3, 1 / 3
            self.mean.bias.copy_(torch.tensor([0.25, -0.25]))

    def forward(self, x):
        return self.mean(x).mean((2, 3))


def brightness():
    return Brightness().eval()


def floats(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    level = np.where(labels == 1, rng.uniform(0.35, 0.55, count), rng.uniform(0.05, 0.15, count))
    noise = np.kron(rng.uniform(-0.05, 0.05, (count, 3, 4, 4)), np.ones((1, 1, 4, 4)))
    return (level[:, None, None, None] + noise).clip(0, 1).astype(np.float32), labels


def floats_calib():
    return floats(64, 1)


def floats_evals():
    return floats(400, 2)
