"""Operators that no runtime has, written with operators that all of them have."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from edgeq.core.system import replaced

DEFORM = "torchvision.deform_conv2d.default"  # as a graph names it


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Let deformable convolutions be captured or traced in the block as `plain_deform_conv2d`.

    torchvision's own operator is missing from every runtime: ExecuTorch 1.5, the lite interpreter, ONNX Runtime's CPU
    kernels (`DeformConv` needs opset 19) and an x86 process without torchvision.
    """
    if "torchvision" not in sys.modules:
        yield
        return
    import torch

    with replaced(torch.ops.torchvision, "deform_conv2d", plain_deform_conv2d):
        yield


def plain_deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Any:
    """Return what `torch.ops.torchvision.deform_conv2d` does, with its arguments.

    Every output pixel gets its kernel's samples side by side, kernel_h × kernel_w of them, so that what follows is a
    plain convolution of that kernel and stride with the same weights, which quantizes like any other. Source: Zhu et
    al., Deformable ConvNets v2, 2018, equation 1; the order of the offsets is torchvision's, (y, x) for each place.

    Args:
        x: [N, C, H, W].
        weight: [out, C / groups, kernel_h, kernel_w].
        offset: [N, offset_groups × kernel_h × kernel_w × 2, out_h, out_w], in pixels.
        mask: [N, offset_groups × kernel_h × kernel_w, out_h, out_w], a factor for each sample.
        bias: [out].
        stride_h: in pixels, as all up to `dilation_w`.
        stride_w: of the kernel.
        pad_h: zeros above and below.
        pad_w: zeros left and right.
        dilation_h: between the kernel's places.
        dilation_w: between the kernel's places.
        groups: of the weights.
        offset_groups: parts of the channels with offsets of their own.
        use_mask: whether `mask` counts.

    Returns:
        [N, out, out_h, out_w]
    """
    import torch
    from torch.nn import functional

    channels, height, width = x.shape[1:]
    kernel_h, kernel_w = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    rows, columns = out_h * kernel_h, out_w * kernel_w

    def side_by_side(values: Any, last: int) -> Any:
        """[N, offset_groups × kernel_h × kernel_w × last, out_h, out_w] to [N × offset_groups, rows, columns, last]."""
        parts = values.reshape(-1, kernel_h, kernel_w, last, out_h, out_w)
        return parts.permute(0, 4, 1, 5, 2, 3).reshape(-1, rows, columns, last)

    at_y = torch.arange(out_h)[:, None] * stride_h - pad_h + torch.arange(kernel_h) * dilation_h
    at_x = torch.arange(out_w)[:, None] * stride_w - pad_w + torch.arange(kernel_w) * dilation_w
    moved = side_by_side(offset, 2)
    # pixels as grid_sample counts them: -1 and 1 are the image's edges, not the middles of its first and last pixels
    y = (2 * (moved[..., 0] + at_y.reshape(rows, 1).to(x.dtype)) + 1) / height - 1
    to_the_right = (2 * (moved[..., 1] + at_x.reshape(columns).to(x.dtype)) + 1) / width - 1
    samples = functional.grid_sample(
        x.reshape(-1, channels // offset_groups, height, width),
        torch.stack((to_the_right, y), -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    if use_mask:
        samples = samples * side_by_side(mask, 1).permute(0, 3, 1, 2)
    samples = samples.reshape(-1, channels, rows, columns)
    # torchvision gives zeros for a missing bias; only one of the model's own belongs into the convolution
    own = bias if isinstance(bias, torch.nn.Parameter) else None
    result = functional.conv2d(samples, weight, own, (kernel_h, kernel_w), groups=groups)
    return result if own is not None else result + bias.reshape(-1, 1, 1)
