"""Models of a few layers, their samples, and the steps that take them to an artifact."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeq.core.results.model import LoadedModel, LoweredModel, QuantizedModel, TensorSpec
from edgeq.core.samples import Batch, Dataset, Sample, batches
from edgeq.load.selection import sample_digest
from edgeq.lower import lower
from edgeq.lower.spec import LowerSpec
from edgeq.quantize import quantize
from edgeq.quantize.capture import capture
from edgeq.quantize.spec import QuantizeSpec


class Silent:
    """Progress that nobody watches."""

    @contextlib.contextmanager
    def task(self, description, total=None, unit=""):  # noqa: ARG002
        yield self

    @contextlib.contextmanager
    def alone(self):
        yield

    def advance(self, steps=1):
        pass

    def note(self, text):
        pass


class SmallNet(nn.Module):
    """conv-bn-relu, a depthwise conv, a residual add, linear-relu, linear. Takes [N, 3, 16, 16], returns [N, 5]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = x + self.depth(x)
        return self.head(self.hidden(self.drop(torch.flatten(self.pool(x), 1))))


IMAGE = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16))


class Mixture(nn.Module):
    """Every kind of layer whose weights the short schemes store."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, groups=1), nn.BatchNorm2d(16)
        self.groups, self.up = nn.Conv2d(16, 16, 3, groups=4), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.line = nn.Linear(8, 64)
        self.words = nn.Embedding(100, 64)
        self.lstm, self.gru = nn.LSTM(64, 32, batch_first=True), nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, x, t):
        y = self.up(torch.relu(self.groups(torch.relu(self.norm(self.conv(x)))))).mean((2, 3))
        z, _ = self.lstm(self.words(t) + self.line(y)[:, None])
        return self.head(self.gru(z)[0])


MIXED = (
    TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16)),
    TensorSpec(name="t", dtype="int64", shape=(1, 12), low=0, high=100),
)


def loaded(module, *specs, seed=0) -> LoadedModel:
    """A module, or a class to make one of, with seeded weights and lively batch-norm statistics."""
    torch.manual_seed(seed)
    module = module() if isinstance(module, type) else module
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return LoadedModel(
        name="small",
        kind="module",
        model=module.eval(),
        inputs=specs or (IMAGE,),
        weights="own",
        fp32_bytes=0,
        source_sha256="0" * 64,
    )


def sample(*arrays, label=None, name="s") -> Sample:
    return Sample(inputs=arrays, raw=arrays, label=label, name=name, digest=sample_digest(arrays))


def dataset(specs, count=8, *, whole=True, labels=None, scale=1.0) -> Dataset:
    """Seeded samples of the full input shapes, or with whole=False of one row each."""

    def read(i):
        rng = np.random.default_rng(i)
        shapes = [spec.shape if whole else spec.shape[1:] for spec in specs]
        arrays = [
            (rng.random(shape) * scale).astype(spec.dtype)
            if spec.dtype.startswith("float")
            else rng.integers(int(spec.low), int(spec.high), shape, endpoint=True).astype(spec.dtype)
            for spec, shape in zip(specs, shapes, strict=True)
        ]
        return sample(*arrays, label=None if labels is None else labels[i], name=f"s{i}")

    return Dataset(origin="seeded", count=count, read=read, labelled=labels is not None)


def quantized(
    model: LoadedModel,
    runtime="torchscript",
    scheme="static-int8",
    *,
    backend="qnnpack",
    observer="histogram",
    keep=(),
    calibration=None,
    captured=None,
    qat=None,
    progress=None,
    shipped=(),
    sticky=None,
    reduce_range=False,
    int4_group=128,
) -> QuantizedModel:
    if runtime != "torchscript" and captured is None:
        captured = capture(model)
    spec = QuantizeSpec(
        model=model,
        captured=captured,
        backend=backend,
        observer=observer,
        keep_fp32=tuple(keep),
        calibration=calibration or dataset(model.inputs),
        progress=progress or Silent(),
        label="small",
        qat=qat,
        shipped=shipped,
        sticky=sticky,
        reduce_range=reduce_range,
        int4_group=int4_group,
    )
    return quantize(runtime, scheme, spec)


def lowered(graph: QuantizedModel, specs, folder: Path, runtime="torchscript", *, backend="qnnpack") -> LoweredModel:
    folder.mkdir(parents=True, exist_ok=True)
    return lower(
        runtime, graph, LowerSpec(inputs=tuple(specs), backend=backend, folder=folder, progress=Silent(), label="small")
    )


def forward(module, engine=None):
    """A function from a batch to outputs as arrays, as the verify step takes it."""

    def run(batch: Batch):
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine or before
        try:
            with torch.no_grad():
                result = module(*(torch.from_numpy(array.copy()) for array in batch.inputs))
        finally:
            torch.backends.quantized.engine = before
        return tuple(leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(result))

    return run


def outputs_of(module, specs, count=1, engine=None):
    return [forward(module, engine)(batch) for batch in batches(dataset(specs, count), specs)]


@functools.cache
def folder() -> Path:
    """A folder for what tests share, gone with the process."""
    path = Path(tempfile.mkdtemp(prefix="edgeq-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def small_net() -> LoadedModel:
    return loaded(SmallNet)


@functools.cache
def captured_net():
    return capture(small_net())


@functools.cache
def artifact(runtime: str, scheme: str, backend: str) -> tuple[QuantizedModel, LoweredModel]:
    """SmallNet quantized and lowered, once a process: ExecuTorch takes seconds for each step."""
    captured = captured_net() if runtime != "torchscript" else None
    graph = quantized(small_net(), runtime, scheme, backend=backend, captured=captured)
    return graph, lowered(graph, (IMAGE,), folder() / f"{scheme}-{backend}", runtime, backend=backend)
