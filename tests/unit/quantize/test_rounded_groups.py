"""Matrices in int4 by groups: how near they are, beside the libraries' own rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import loaded, quantized
from torch import nn

from edgeq.core.results.model import TensorSpec
from edgeq.core.schemes import A8W4_SCHEME, INT4_GROUPS, INT4_SCHEME
from edgeq.lower import int4
from edgeq.quantize.rounded import in_groups

SIZES = INT4_GROUPS[INT4_SCHEME]


@pytest.fixture
def matrix():
    torch.manual_seed(0)
    made = torch.randn(32, 256)
    made[made.abs() < 1] = 0
    made[0] = 0
    return made


def values(found):
    codes, scales = found
    return (codes * scales[..., None]).flatten(1)


def test_rounding_keeps_zeros_and_is_nearer_than_onnx_runtimes(matrix):
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    codes, scales = in_groups(matrix, SIZES)
    assert codes.shape == (32, 2, 128)
    assert torch.equal(scales, scales.half().float())
    ours = values((codes, scales))
    assert (ours[matrix == 0] == 0).all()
    options = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=True)
    packed, theirs, _ = DefaultWeightOnlyQuantizer(options).qbits_block_quant(matrix.numpy().T.copy())
    plain = int4.int4_codes(packed) * theirs.reshape(32, 2, 1)
    errors = [float(np.square(one.reshape(32, 256) - matrix.numpy()).sum()) for one in (ours.numpy(), plain)]
    assert errors[0] < 0.95 * errors[1]
    assert in_groups(torch.randn(4, 100), SIZES) is None
    assert in_groups(torch.full((4, 128), 1e6), SIZES) is None  # float16 holds no such scale


@pytest.mark.parametrize("size", INT4_GROUPS[A8W4_SCHEME])
def test_rounding_for_xnnpack_is_nearer_than_torchaos(matrix, size):
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    found = in_groups(matrix, (size,), scale_type=torch.bfloat16, is_signed=False)
    assert (found[1] > 0).all()
    assert torch.equal(found[1], found[1].bfloat16().float())
    layer = nn.Sequential(nn.Linear(256, 32, bias=False))
    layer[0].weight.data = matrix.clone()
    recipe = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(size))
    quantize_(layer, recipe)
    errors = [float((one - matrix).square().sum()) for one in (values(found), layer[0].weight.dequantize())]
    assert errors[0] < 0.95 * errors[1]


def test_a_layer_by_rows_computes_what_torchaos_does():
    net = loaded(
        nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 8)),
        TensorSpec(name="x", dtype="float32", shape=(2, 5, 64)),
    )
    made = quantized(net, "executorch", A8W4_SCHEME, backend="xnnpack")
    names = [str(node.target) for node in made.graph.graph.nodes]
    assert names.count("torchao.choose_qparams_affine.default") == 1  # no group divides the other's rows
    assert names.count("quantized_decomposed.choose_qparams.tensor") == 1
    x = torch.randn(2, 5, 64) * torch.tensor([1.0, 100.0])[:, None, None]  # each row has a scale of its own
    (weight,) = made.grouped
    with torch.no_grad():
        scale = ((x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)) / 255)[..., None]
        rounded = (x / scale).round() * scale
        expected = torch.relu(rounded @ torch.from_numpy(weight.values).T + net.model[0].bias)
        came = made.runs_as(x)
        last = expected @ net.model[2].weight.T + net.model[2].bias
    assert (came - last).square().sum() < 1e-3 * last.square().sum()
    assert (came - net.model(x)).square().sum() > 1e-3 * last.square().sum()  # which int4 is not
