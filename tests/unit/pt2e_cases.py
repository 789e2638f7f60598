"""What tests of the PT2E route share: an image that has two signs, a convolution, and how far a graph is from fp32."""

from __future__ import annotations

import numpy as np
from small_models import dataset, forward
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.core.samples import batches

IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16), low=-1.0)


def conv(inputs=3, outputs=8, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def sqnrs(module, graph, spec=IMAGE, count=6):
    """SQNR in dB of each output's channels about their mean, the worst of them."""
    rows = [(forward(module)(b), forward(graph)(b)) for b in batches(dataset((spec,), count), (spec,))]
    worst = []
    for index in range(len(rows[0][0])):
        true, found = (np.moveaxis(np.stack([row[k][index][0] for row in rows]), 1, 0) for k in (0, 1))
        true, found = true.reshape(len(true), -1), found.reshape(len(found), -1)
        signal = ((true - true.mean(1, keepdims=True)) ** 2).sum(1)
        worst.append(float((10 * np.log10(signal / (((true - found) ** 2).sum(1) + 1e-30))).min()))
    return worst
