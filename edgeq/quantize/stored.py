"""Modules whose weights are stored in int8 or in half, and become float32 right before their use.

CPU runtimes have no kernels that multiply such weights: the file shrinks, the arithmetic stays float32. A weight is
converted by `type_as` the input, since a conversion of constants alone would be folded back into float32 by freezing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_STEPS = 127  # symmetric int8 leaves -128 out


class _Stored(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Holds a weight as int8 with a float32 scale for each of `axis`, or as half."""

    scale: Any
    bias: Any
    stored: Any

    def __init__(self, weight: Any, bias: Any, *, bits: int, axis: int = 0) -> None:
        super().__init__()
        scale = None
        if bits == 8:
            others = tuple(i for i in range(weight.ndim) if i != axis)
            scale = weight.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
            weight = torch.round(weight / scale).to(torch.int8)
        else:
            weight = weight.half()
        self.register_buffer("stored", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())


class StoredLinear(_Stored):
    """nn.Linear, as a batched product: XNNPACK multiplies by weights that are no constants in no other way."""

    def __init__(self, linear: Any, bits: int) -> None:
        super().__init__(linear.weight.t().contiguous(), linear.bias, bits=bits, axis=1)
        self.out_features = linear.out_features

    def forward(self, x: Any) -> Any:
        """Take [..., in], return [..., out]."""
        rows = x.reshape(1, -1, x.shape[-1])
        y = torch.bmm(rows, self.stored.type_as(x).unsqueeze(0))
        y = y if self.scale is None else y * self.scale
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)


class StoredConv(_Stored):
    """nn.Conv1d, 2d or 3d."""

    def __init__(self, conv: Any, bits: int) -> None:
        super().__init__(conv.weight, conv.bias, bits=bits)
        self.call = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[conv.weight.ndim]
        self.options = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding mode {conv.padding_mode}")

    def forward(self, x: Any) -> Any:
        """Take [N, C, …], return [N, out, …]."""
        y = self.call(x, self.stored.type_as(x), None, *self.options)
        shape = (1, -1, *[1] * (self.stored.ndim - 2))
        y = y if self.scale is None else y * self.scale.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)


class StoredEmbedding(_Stored):
    """nn.Embedding: only the rows that are looked up become float32."""

    def __init__(self, embedding: Any, bits: int) -> None:
        super().__init__(embedding.weight, None, bits=bits)

    def forward(self, index: Any) -> Any:
        """Take whole numbers [...], return [..., width]."""
        rows = functional.embedding(index, self.stored).to(torch.float32)
        return rows if self.scale is None else rows * functional.embedding(index, self.scale)


class StoredRecurrent(nn.Module):  # type: ignore[misc]
    """nn.LSTM or nn.GRU; its biases stay as they are."""

    def __init__(self, recurrent: Any, bits: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        weights = recurrent._flat_weights
        self.stored = nn.ModuleList(
            _StoredMatrix(weight.detach(), None, bits=bits) if weight.ndim == 2 else nn.Identity() for weight in weights
        )

    def forward(self, x: Any, hx: Any = None) -> Any:
        """Take and return what the layer does."""
        before = self.recurrent._flat_weights
        pairs = zip(self.stored, before, strict=True)
        self.recurrent._flat_weights = [
            part(x) if isinstance(part, _StoredMatrix) else weight for part, weight in pairs
        ]
        try:
            return self.recurrent(x, hx)
        finally:
            self.recurrent._flat_weights = before


class _StoredMatrix(_Stored):
    def forward(self, like: Any) -> Any:
        """Return the matrix in the dtype of `like`."""
        weight = self.stored.type_as(like)
        return weight if self.scale is None else weight * self.scale


KINDS: dict[Any, Any] = {
    nn.Linear: StoredLinear,
    nn.Conv1d: StoredConv,
    nn.Conv2d: StoredConv,
    nn.Conv3d: StoredConv,
    nn.Embedding: StoredEmbedding,
    nn.LSTM: StoredRecurrent,
    nn.GRU: StoredRecurrent,
}
