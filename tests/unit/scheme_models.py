"""The architectures that the schemes are for: an encoder, a language model, a UNet, a net with stubs of its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn import functional

from edgeq.core.results.model import TensorSpec

TOKENS = TensorSpec(name="tokens", dtype="int64", shape=(1, 12), low=0, high=99)
PIXELS = TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16))


class Block(nn.Module):
    """Attention and a feed-forward net, both normalized after the sum, as in BERT."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part(x).reshape(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        x = self.norm1(x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """A BERT-like encoder with a classifier on the mean: tokens [N, L] to scores [N, 4]."""

    def __init__(self, words=100, width=32, heads=2, depth=2, length=12):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.register_buffer("index", torch.arange(length))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Linear(width, 4)

    def forward(self, tokens):
        return self.head(self.blocks(self.words(tokens) + self.places(self.index)).mean(1))


class Language(nn.Module):
    """A language model: tokens [N, L] to scores of the next one [N, L, words], by an LSTM or a GRU."""

    def __init__(self, kind=nn.LSTM, words=100, width=32, depth=2):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.cells = kind(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, tokens):
        return self.head(self.cells(self.words(tokens))[0])


class Steps(nn.Module):
    """A recurrent cell that forward calls once a step: rows [N, 4, 16] to classes [N, 5]."""

    def __init__(self, kind, **arguments):
        super().__init__()
        self.cell = kind(16, 32, **arguments)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        hidden = x.new_zeros(x.shape[0], 32)
        state = (hidden, hidden) if isinstance(self.cell, nn.LSTMCell) else hidden
        for step in range(4):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across by a skip: [N, 3, H, W] to [N, 2, H, W]."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = self._pair(3, 8), self._pair(8, 16), self._pair(16, 8)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def _pair(self, before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x):
        high = self.first(x)
        low = self.second(self.pool(high))
        return self.head(self.last(torch.cat([self.up(low), high], 1)))


class Stubbed(nn.Module):
    """Marks its int8 part itself, and branches on a shape, which FX cannot trace."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.add = FloatFunctional()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.quant(x)
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        x = self.relu(self.norm(self.conv(x)))
        x = self.add.add(x, self.other(x))
        x = functional.adaptive_avg_pool2d(x, 1)
        return self.dequant(self.head(torch.flatten(x, 1)))
