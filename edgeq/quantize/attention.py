"""Attention as linear layers: nn.MultiheadAttention multiplies by raw parameters, which no method can exchange."""

from __future__ import annotations

from typing import Any


def open_attention(module: Any) -> None:
    """Replace every nn.MultiheadAttention in place by its equal made of linear layers.

    PyTorch's fused encoder layer reads weights that exchanged layers no longer have as tensors; its owner is kept
    off that path.
    """
    import torch
    from torch.ao.nn.quantizable import MultiheadAttention

    for part in list(module.modules()):
        if isinstance(part, torch.nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # one of the conditions of the fused path
        for name, child in part.named_children():
            if type(child) is torch.nn.MultiheadAttention:
                child.qconfig = None
                setattr(part, name, MultiheadAttention.from_float(child).eval())
