"""Attention as linear layers: nn.MultiheadAttention multiplies by raw parameters, which no method can exchange."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def open_attention(module: Any) -> None:
    """Replace every nn.MultiheadAttention in place by its equal made of linear layers.

    Those with rows added to key and value (`add_bias_kv`, `add_zero_attn`) stay as they are.
    """
    for part in list(module.modules()):
        for name, child in part.named_children():
            plain = type(child) is nn.MultiheadAttention and child.bias_k is None and not child.add_zero_attn
            if plain:
                setattr(part, name, OpenAttention(child).eval().requires_grad_(False))


class OpenAttention(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """What nn.MultiheadAttention computes in eval mode, step by step (Vaswani et al. 2017, section 3.2.2)."""

    in_proj_bias = None  # keeps PyTorch's encoder layer off its fused path, which reads weights as tensors
    _qkv_same_embed_dim = True

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.batch_first = attention.num_heads, attention.batch_first
        joint = attention.in_proj_weight
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        projections = zip(separate if joint is None else joint.chunk(3), biases, strict=True)
        self.linear_q, self.linear_k, self.linear_v = (_linear(weight, bias) for weight, bias in projections)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  # a hint for the fused path; the mask says it too
    ) -> tuple[Any, Any]:
        """Take and return what nn.MultiheadAttention does."""
        alone = query.ndim == 2
        q, k, v = (self._rows(rows, alone) for rows in (query, key, value))
        q, k, v = (self._heads(layer(rows)) for layer, rows in zip(self._projections(), (q, k, v), strict=True))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            mask = attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(-1, self.num_heads, *attn_mask.shape[1:])
            scores = _masked(scores, mask)
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]))
        weights = torch.softmax(scores, -1)
        rows = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        rows = rows[0] if alone else rows if self.batch_first else rows.transpose(0, 1)
        shown = weights.mean(1) if average_attn_weights else weights
        return rows, (shown[0] if alone else shown) if need_weights else None

    def _projections(self) -> tuple[Any, Any, Any]:
        return self.linear_q, self.linear_k, self.linear_v

    def _rows(self, rows: Any, alone: bool) -> Any:
        return rows.unsqueeze(0) if alone else rows if self.batch_first else rows.transpose(0, 1)

    def _heads(self, rows: Any) -> Any:
        batch, length, width = rows.shape
        return rows.reshape(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def _linear(weight: Any, bias: Any) -> Any:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _masked(scores: Any, mask: Any) -> Any:
    return scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
