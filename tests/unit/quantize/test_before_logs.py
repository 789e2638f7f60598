"""A front end before a logarithm stays in float on every route, and what a logarithm does not magnify is int8."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_models import forward, loaded, quantized, sample
from torch import nn
from torch.nn import functional

from edgeq.core.results.model import BEFORE_LOGARITHM, TensorSpec
from edgeq.core.samples import Batch, Dataset

WAVE = TensorSpec(name="wave", dtype="float32", shape=(1, 2000), low=-1.0)
ROUTES = [("torchscript", "qnnpack"), ("torchscript", "x86"), ("executorch", "xnnpack"), ("onnx", "ort")]


def waves(count, seed):
    """Return chirps that fade, [N, 2000]: loud and quiet bands differ by 60 dB and more."""
    rng = np.random.default_rng(seed)
    t = np.arange(2000) / 8000
    found = []
    for _ in range(count):
        tone = np.sin(2 * np.pi * (rng.uniform(200, 2500) * t + rng.uniform(-3000, 3000) * t * t))
        found.append(tone * np.exp(-((t - rng.uniform(0.05, 0.2)) ** 2) / 0.003) + 0.002 * rng.normal(size=t.size))
    return np.stack(found).astype("float32")


class Spotter(nn.Module):
    """Logarithms of a spectrum's power in 16 bands, then convolutions."""

    def __init__(self, front):
        super().__init__()
        torch.manual_seed(0)
        self.front = front
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, wave):
        return self.head(self.body(self.front(wave)[:, None] / 4).mean((2, 3)))


class Bands(nn.Module):
    """The base of the fronts: 16 overlapping bands of 65 bins."""

    def __init__(self):
        super().__init__()
        centers = torch.arange(2.0, 66.0, 4.0)
        bank = (1 - (torch.arange(65.0) - centers[:, None]).abs() / 4).clamp(0)
        self.register_buffer("bank", bank)
        self.register_buffer("window", torch.hann_window(128))


class Stft(Bands):
    def forward(self, wave):
        spectrum = torch.stft(wave, 128, 64, 128, self.window, center=False, return_complex=True)
        return torch.log(self.bank @ spectrum.abs().pow(2) + 1e-7)


class Convolved(Bands):
    """The spectrum by two convolutions and the bands by a linear layer, without complex numbers."""

    def __init__(self):
        super().__init__()
        bins, t = torch.arange(65.0)[:, None], torch.arange(128.0)
        self.real = nn.Conv1d(1, 65, 128, 64, bias=False)
        self.real.weight.data = (torch.cos(2 * torch.pi * bins * t / 128) * self.window)[:, None]
        self.register_buffer("imaginary", (torch.sin(2 * torch.pi * bins * t / 128) * self.window)[:, None])

    def forward(self, wave):
        real = self.real(wave[:, None])
        imaginary = functional.conv1d(wave[:, None], self.imaginary, stride=64)
        power = real * real + imaginary * imaginary
        return (functional.linear(power.transpose(1, 2), self.bank) + 1e-7).log10().transpose(1, 2)


class Surprise(nn.Module):
    """A network whose end is a logarithm of what it gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.Conv1d(8, 8, 9, 4), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.head.weight.data.mul_(40)  # else all probabilities are one step of the kernel's

    def forward(self, wave):
        return torch.log(torch.sigmoid(self.head(self.body(wave[:, None]).mean(2))))


def least_channel_db(model, runtime, backend):
    """Quantize, and return the result and the least SQNR of all outputs' channels about their means."""
    arrays = waves(24, 1)
    data = Dataset(
        origin="waves",
        count=len(arrays),
        read=lambda i: sample(arrays[i : i + 1], name=f"w{i}"),
        labelled=False,
    )
    result = quantized(model, runtime, backend=backend, calibration=data)
    engine = backend if runtime == "torchscript" else None
    rows = []
    for array in waves(24, 2):
        batch = Batch(inputs=(array[None],), samples=(sample(array[None]),))
        rows.append((forward(result.graph, engine)(batch)[0], forward(model.model)(batch)[0]))
    ours, exact = (np.concatenate(part) for part in zip(*rows, strict=True))
    signal, noise = ((exact - exact.mean(0)) ** 2).sum(0), ((ours - exact) ** 2).sum(0)
    return result, float((10 * np.log10(signal / noise)).min())


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
@pytest.mark.parametrize("front", [Stft, Convolved])
def test_a_spectrum_before_a_logarithm_stays_in_float(front, runtime, backend):
    model = loaded(Spotter(front()), WAVE)
    result, worst_db = least_channel_db(model, runtime, backend)
    assert worst_db > 7  # below 0 when the spectrum was rounded
    assert sorted(result.quantized) == ["body.0", "body.2", "head"]
    assert result.in_float[BEFORE_LOGARITHM]
    assert not {"body.0", "body.2", "head"} & set(result.in_float[BEFORE_LOGARITHM])


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_a_logarithm_that_magnifies_nothing_keeps_the_layers_before_it_in_int8(runtime, backend):
    result, worst_db = least_channel_db(loaded(Surprise(), WAVE), runtime, backend)
    assert sorted(result.quantized) == ["body.0", "body.2", "head"]
    assert not result.in_float
    assert worst_db > 10


class Normed(nn.Module):
    """Roots that hardly change: factors of norms, which magnify nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, wave):
        x = wave.unflatten(1, (125, 16))
        for layer in self.layers:
            x = layer(x)
            x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)
        return x.mean(1)


@pytest.mark.parametrize(("runtime", "backend"), ROUTES)
def test_the_roots_of_norms_keep_their_layers_in_int8(runtime, backend):
    result, _ = least_channel_db(loaded(Normed(), WAVE), runtime, backend)
    assert len(result.quantized) == 4
    assert not result.in_float


class FunctionalBody(nn.Module):
    """A front end before a logarithm, and products behind it that are called as functions too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front, self.mix, self.head = Stft(), nn.Parameter(torch.randn(16, 16) / 4), nn.Linear(16, 4)

    def forward(self, wave):
        bands = self.front(wave).transpose(1, 2) / 4
        return self.head(torch.matmul(bands, self.mix).relu().mean(1))


def test_a_front_on_torchscript_excuses_no_product_elsewhere():
    result, _ = least_channel_db(loaded(FunctionalBody(), WAVE), "torchscript", "qnnpack")
    assert not {"mm", "bmm", "addmm"} & {name for names in result.in_float.values() for name in names}


def test_the_root_of_a_size_is_no_operator_of_the_graph():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.layer(x) / math.sqrt(x.shape[-1]))  # FX traces the root of the size

    spec = TensorSpec(name="x", dtype="float32", shape=(1, 16), low=-1.0)
    rows = np.random.default_rng(0).uniform(-1, 1, (8, 16)).astype("float32")
    data = Dataset(origin="rows", count=8, read=lambda i: sample(rows[i]), labelled=False, class_names=())
    assert len(quantized(loaded(Scaled, spec), calibration=data).quantized) == 2
