"""Joins of unlike ranges, masks and wide softmax: every channel keeps the bits that its own range allows."""

from __future__ import annotations

import pytest
import torch
from pt2e_cases import IMAGE, conv, sqnrs
from small_models import dataset, loaded, lowered, quantized
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgeq.core.samples import batches
from edgeq.verify.host import HostRuntime
from edgeq.verify.kernels import kernel_share

pytestmark = pytest.mark.slow


class Heads(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.body = how, nn.Sequential(conv(), nn.ReLU())
        self.score, self.box, self.mix = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1), conv(7, 5)
        with torch.no_grad():
            self.score.weight.mul_(4)
            self.box.weight.mul_(60)

    def forward(self, x):
        x = self.body(x)
        score, box = self.score(x), self.box(x)
        if self.how == "sigmoid":
            return torch.cat((score.sigmoid(), box), 1)
        if self.how == "raw":  # both are of layers in int8, and the range flows back to them
            return torch.cat((box, score), 1).flatten(2)
        if self.how == "scaled":
            return torch.cat((box * 16, score), 1).flatten(2).transpose(1, 2).transpose(1, 2) * 2
        if self.how == "nested":
            return torch.cat((torch.cat((score, score), 1), box), 1)
        if self.how == "stack":
            return torch.stack((box[:, :3], score), 2).flatten(1, 2)
        if self.how == "saturated":  # the layer behind reads what the tanh gives
            return self.mix(torch.cat((score, box), 1).mul(0.5).tanh())
        if self.how == "tapped":  # the join goes into a layer, whose input has one scale; the tap does not
            return score, self.mix(torch.cat((score, box), 1))
        joined = torch.cat((score, box), 1)
        return joined, self.mix(joined)


@pytest.mark.parametrize("how", ["sigmoid", "raw", "scaled", "nested", "stack", "saturated", "tapped", "both"])
@pytest.mark.parametrize("backend", ["xnnpack", "ort"])
def test_unlike_branches_keep_their_own_scales(how, backend):
    model = loaded(Heads(how).eval(), IMAGE)
    result = quantized(model, "onnx" if backend == "ort" else "executorch", backend=backend)
    assert min(sqnrs(model.model, result.graph)) > 27
    assert not result.kept_fp32


def test_alike_branches_share_a_scale_as_before():
    class Alike(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = conv(), conv()

        def forward(self, x):
            return torch.cat((self.one(x), self.two(x)), 1)

    result = quantized(loaded(Alike().eval(), IMAGE), "executorch", backend="xnnpack")
    assert result.output_steps[0] is not None


class Attention(nn.Module):
    def __init__(self, mask):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 4)
        blocked = torch.arange(48) >= 30
        self.register_buffer("mask", torch.zeros(48).masked_fill(blocked, mask))

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(1, 2)).chunk(3, -1)
        return self.head((q @ k.transpose(1, 2) + self.mask).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("mask", [float("-inf"), -1e9, torch.finfo(torch.float32).min, -1e4, -100.0])
def test_masks_do_not_eat_the_range(mask):
    model = loaded(Attention(mask).eval(), IMAGE)
    result = quantized(model, "executorch", backend="xnnpack")
    unmasked = quantized(loaded(Attention(0.0).eval(), IMAGE), "executorch", backend="xnnpack")
    limit = min(sqnrs(Attention(0.0).eval(), unmasked.graph)) - 6
    assert min(sqnrs(model.model, result.graph)) > limit


def test_a_wide_softmax_stays_in_float():
    class Pose(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = conv(3, 5)
            self.register_buffer("place", torch.arange(256.0) / 256)

        def forward(self, x):
            return ((self.body(x) * 8).flatten(2).softmax(-1) * self.place).sum(-1, keepdim=True)

    model = loaded(Pose().eval(), IMAGE)
    result = quantized(model, "executorch", backend="xnnpack")
    assert result.output_steps == (None,)
    assert min(sqnrs(model.model, result.graph)) > 25


class Beside(nn.Module):
    """A layer's relu joined with values of both signs, as an embedding's are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.mix = conv(), conv(), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.mix(torch.cat((F.relu(self.one(x)), self.two(x)), 1))


def test_a_relu_beside_negative_values_begins_at_zero_for_onnx_runtime(tmp_path):
    model = loaded(Beside().eval(), IMAGE)
    result = quantized(model, "onnx", backend="ort")
    assert min(sqnrs(model.model, result.graph)) > 27
    made = lowered(result, (IMAGE,), tmp_path, "onnx", backend="ort")
    batch = next(batches(dataset((IMAGE,), 1), (IMAGE,)))
    with HostRuntime() as runtime:
        runtime.load(made.path, runtime="onnx", backend="ort", threads=1)
        assert kernel_share("onnx", runtime.kernels(batch.inputs), made.layers).int8_macs == 1
