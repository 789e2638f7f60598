"""nn.MultiheadAttention taken apart gives what it gave whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeq.load.model import settled
from edgeq.quantize.fx_workarounds import OpenAttention, open_layers

HIDDEN = torch.tensor([[False, False, True, False, True], [False] * 5])


def both(batch_first=True, **options):
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(16, 4, batch_first=batch_first, **options).eval().requires_grad_(False)
    return whole, OpenAttention(whole).eval()


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"key_padding_mask": HIDDEN},
        {"key_padding_mask": HIDDEN.float() * -1e9},
        {"attn_mask": torch.ones(5, 5).triu(1).bool()},
        {"attn_mask": torch.randn(8, 5, 5)},
        {"need_weights": False},
        {"average_attn_weights": False},
    ],
)
def test_equal_under_every_mask(mask):
    whole, opened = both()
    x = torch.randn(2, 5, 16)
    for expected, came in zip(whole(x, x, x, **mask), opened(x, x, x, **mask), strict=True):
        assert (expected is None) == (came is None)
        if came is not None:
            torch.testing.assert_close(came, expected)


def test_equal_where_key_and_value_have_widths_of_their_own():
    whole, opened = both(kdim=8, vdim=12, bias=False)
    args = (torch.randn(2, 5, 16), torch.randn(2, 7, 8), torch.randn(2, 7, 12))
    torch.testing.assert_close(opened(*args)[0], whole(*args)[0])


@pytest.mark.parametrize("shape", [(5, 2, 16), (5, 16)])
def test_equal_with_the_batch_second_or_none(shape):
    whole, opened = both(batch_first=False)
    x = torch.randn(shape)
    for expected, came in zip(whole(x, x, x), opened(x, x, x), strict=True):
        torch.testing.assert_close(came, expected)


def test_an_encoder_is_equal_and_off_its_fused_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)
    x = torch.randn(2, 5, 16)
    expected = encoder(x)
    open_layers(encoder, (x,))
    assert not [part for part in encoder.modules() if type(part) is nn.MultiheadAttention]
    torch.testing.assert_close(encoder(x), expected)


def test_rows_added_to_the_keys_stay_with_pytorch():
    holder = nn.ModuleList([nn.MultiheadAttention(16, 4, add_bias_kv=True)])
    open_layers(holder, ())
    assert type(holder[0]) is nn.MultiheadAttention


def test_an_encoder_with_a_padding_mask_runs_once_its_attention_is_open():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, padded = torch.rand(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padded)
        opened = settled(encoder, "net.py:model")
        open_layers(opened, (x,))
        came = opened(x, src_key_padding_mask=padded)
    assert torch.allclose(came[~padded], expected[~padded], atol=1e-5)
