"""Models, data and runs of quantization-aware training."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import torch
from small_models import IMAGE, Silent, SmallNet, dataset, loaded, outputs_of, quantized, sample
from torch import nn

from edgeq.core.config import QatConfig
from edgeq.core.samples import Dataset
from edgeq.quantize.spec import QatSpec


def options(**values) -> QatConfig:
    return QatConfig(**{"epochs": 2, "batch": 8, **values})


def training(
    specs=(IMAGE,), count=24, *, state=None, train=None, logits=True, seed=0, labels=None, **values
) -> QatSpec:
    return QatSpec(
        samples=dataset(specs, count, whole=False, labels=labels),
        options=options(**values),
        logits=logits,
        seed=seed,
        train=train,
        state_folder=state,
        identity=("code",),
    )


def uneven() -> nn.Module:
    """Channels of unlike gains, which one step size for a whole weight tensor cannot hold."""
    torch.manual_seed(0)
    gains = torch.logspace(-1.3, 1.3, 8)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        first.weight.mul_(gains.view(-1, 1, 1, 1))
        first.bias.mul_(gains)
        second.weight.div_(gains.view(1, -1, 1, 1))
    head = nn.Linear(32, 5)
    with torch.no_grad():
        head.weight.mul_(20)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def scenes(count, seed=0) -> Dataset:
    """Coarse patterns: outputs of pooled noise would hardly differ from sample to sample."""

    def read(i):
        coarse = np.random.default_rng([seed, i]).random((3, 2, 2)) * 3
        return sample(coarse.repeat(8, 1).repeat(8, 2).astype(np.float32), name=f"s{i}", label=i % 5)

    return Dataset(origin="scenes", count=count, read=read, labelled=True)


def on_scenes(count=96, **values):
    """Return calibration and training data for the uneven net, as arguments of `trained`."""
    return {
        "calibration": scenes(16, seed=1),
        "qat": dataclasses.replace(training(**values), samples=scenes(count)),
    }


def trained(model=None, *, backend="qnnpack", qat=None, **rest):
    model = model or loaded(SmallNet)
    return quantized(model, scheme="qat-int8", backend=backend, qat=qat or training(model.inputs), **rest)


def same(ours, theirs, model, backend="qnnpack"):
    pairs = zip(outputs_of(ours, model.inputs, 4, backend), outputs_of(theirs, model.inputs, 4, backend), strict=True)
    return all((one[0] == other[0]).all() for one, other in pairs)


class Told(Silent):
    """Keeps the notes, and stops the run at one of them."""

    def __init__(self, stop=None):
        self.notes, self.stop, self.steps = [], stop, 0

    def note(self, text):
        self.notes.append(text)
        if self.stop and text.startswith(self.stop):
            raise KeyboardInterrupt

    def advance(self, steps=1):
        self.steps += steps

    @contextlib.contextmanager
    def task(self, description, total=None, unit=""):  # noqa: ARG002
        yield self if description.startswith("train") else Silent()
