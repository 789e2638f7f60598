"""Reused scales and zero points, in FX, in eager mode and in PT2E."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from scheme_models import PIXELS, Stubbed
from small_models import SmallNet, captured_net, dataset, loaded, outputs_of, quantized, small_net
from torch import nn

from edgeq.core.errors import ExitCode, UsageError
from edgeq.quantize.qparams import CLIPPED, COARSEST

ENGINES = ("qnnpack", "x86")


def changed(model, change):
    """The model with its weights changed in place by `change`."""
    module = copy.deepcopy(model.model)
    with torch.no_grad():
        change(module)
    return dataclasses.replace(model, model=module)


def values(result, name="conv"):
    return result.graph.get_submodule(name).weight().int_repr()


def scales(result, name="conv"):
    weight = result.graph.get_submodule(name).weight()
    if weight.qscheme() == torch.per_tensor_affine:
        return torch.tensor([weight.q_scale()])
    return weight.q_per_channel_scales().float()


def nudge(module):
    """Training moves all values a little, the largest too."""
    for name, part in module.named_parameters():
        if name.endswith("weight") and part.ndim > 1:
            torch.manual_seed(1)
            part += part.abs().mean() * 2e-3 * torch.randn_like(part)


@pytest.mark.parametrize("backend", ENGINES)
def test_the_same_model_keeps_all_and_stays_bit_equal(backend):
    model = loaded(SmallNet)
    shipped = quantized(model, backend=backend)
    assert {one.name for one in shipped.qparams} >= {"conv.weight", "depth.weight", "hidden.0.weight", "x"}
    assert shipped.fresh == ()
    again = quantized(model, backend=backend, shipped=shipped.qparams)
    assert again.fresh == ()
    assert again.qparams == shipped.qparams
    for ours, theirs in zip(
        outputs_of(again.graph, model.inputs, 2, backend),
        outputs_of(shipped.graph, model.inputs, 2, backend),
        strict=True,
    ):
        assert (ours[0] == theirs[0]).all()


@pytest.mark.parametrize("backend", ENGINES)
def test_a_tuned_model_keeps_the_shipped_scales_and_most_bytes(backend):
    model = loaded(SmallNet)
    shipped = quantized(model, backend=backend)
    tuned = changed(model, nudge)
    without, reused = quantized(tuned, backend=backend), quantized(tuned, backend=backend, shipped=shipped.qparams)
    assert reused.qparams == shipped.qparams
    assert reused.graph.get_submodule("conv").scale == shipped.graph.get_submodule("conv").scale
    assert reused.graph.get_submodule("conv").zero_point == shipped.graph.get_submodule("conv").zero_point
    assert torch.equal(scales(reused), scales(shipped))
    assert not torch.equal(scales(without), scales(shipped))
    names = ("conv", "hidden.0", "head")
    moved = [
        sum(int((values(one, name) != values(shipped, name)).sum()) for name in names) for one in (reused, without)
    ]
    assert moved[0] < moved[1]
    for ours, theirs in zip(
        outputs_of(reused.graph, model.inputs, 4, backend), outputs_of(tuned.model, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 0.1 * abs(theirs[0]).max()


@pytest.mark.parametrize(
    ("factor", "fits"),
    [(1 + 0.5 * CLIPPED, True), (1 + 4 * CLIPPED, False), (1.05 / COARSEST, True), (0.95 / COARSEST, False)],
)
def test_a_channel_that_outgrew_its_scale_gets_another_and_is_named(factor, fits):
    model = loaded(SmallNet)
    shipped = quantized(model, backend="x86")
    grown = changed(model, lambda module: module.head.weight[0].mul_(factor))
    reused = quantized(grown, backend="x86", shipped=shipped.qparams)
    assert ("head.weight" in reused.fresh) == (not fits)
    same = scales(reused, "head") == scales(shipped, "head")
    assert bool(same[0]) == fits
    assert same[1:].all()
    if not fits:
        assert torch.equal(scales(reused, "head")[:1], scales(quantized(grown, backend="x86"), "head")[:1])


def test_a_range_of_activations_that_no_longer_fits_is_new_and_named():
    model = loaded(SmallNet)
    shipped = quantized(model)
    louder = dataset(model.inputs, scale=3.0)
    reused = quantized(model, calibration=louder, shipped=shipped.qparams)
    assert "x" in reused.fresh
    fresh = {one.name: one for one in quantized(model, calibration=louder).qparams}
    assert next(one for one in reused.qparams if one.name == "x") == fresh["x"]


def test_another_architecture_is_an_error_that_says_so():
    shipped = quantized(loaded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))).qparams
    with pytest.raises(UsageError, match=r"differs from this one: it has (an|no) int8 tensor") as told:
        quantized(loaded(SmallNet), shipped=shipped)
    assert told.value.exit_code == ExitCode.USAGE
    wider = quantized(loaded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))).qparams
    with pytest.raises(UsageError, match=r"its 0.weight is \[8, 3, 3, 3\] .* here it is \[4, 3, 3, 3\]"):
        quantized(loaded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))), shipped=wider)


def test_eager_mode_reuses_too():
    model = loaded(Stubbed, PIXELS)
    shipped = quantized(model, backend="x86")
    tuned = changed(model, nudge)
    reused = quantized(tuned, backend="x86", shipped=shipped.qparams)
    assert reused.fresh == ()
    assert torch.equal(scales(reused), scales(shipped))
    assert not torch.equal(scales(quantized(tuned, backend="x86")), scales(shipped))
    assert reused.graph.conv.scale == shipped.graph.conv.scale


@pytest.mark.slow
def test_pt2e_reuses_too():
    model = small_net()
    shipped = quantized(model, "executorch", backend="xnnpack", captured=captured_net())
    assert {one.name for one in shipped.qparams} >= {"conv.weight", "head.weight", "x"}
    tuned = changed(model, nudge)
    without = quantized(tuned, "executorch", backend="xnnpack")
    reused = quantized(tuned, "executorch", backend="xnnpack", shipped=shipped.qparams)
    assert without.qparams != shipped.qparams
    assert reused.qparams == shipped.qparams

    def constants(result):
        return [tensor for tensor in result.graph.state_dict().values() if tensor.dtype == torch.int8]

    def moved(result):
        return sum(int((a != b).sum()) for a, b in zip(constants(result), constants(shipped), strict=True))

    assert constants(shipped)
    assert moved(reused) < moved(without)
    for ours, theirs in zip(
        outputs_of(reused.graph, model.inputs, 4), outputs_of(tuned.model, model.inputs, 4), strict=True
    ):
        assert abs(ours[0] - theirs[0]).max() < 0.1 * abs(theirs[0]).max()
