"""Conversion that keeps as much of a shipped model as the accuracy allows, so that the patch to the new one is small.

Beyond the scales and zero points that fit (`qparams.settle`), three things may stay the shipped model's: ranges of
activations that fall a little short of the new ones, biases that moved by less than rounding moves the outputs, and
int8 values that the new ones are less than a step away from. Each is tried from the loosest tolerance on, converted,
and run on calibration samples; the first that costs little is taken. Evaluation data decides nothing here.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.core.lazy import np
from edgeq.core.results.model import KeptValues, ReuseTolerances, Scores, StoredLayer
from edgeq.quantize.qparams import CLIPPED, Settled, WeightTensor, settle, weight_tensors
from edgeq.quantize.spec import QuantizeSpec, ReuseSpec

# what fits, nothing more: 0.5 is plain rounding
STRICT = ReuseTolerances(clipped=CLIPPED, biases=0.0, values=0.5)

LOOSER: dict[str, tuple[float, ...]] = {
    "clipped": (0.05,),
    "biases": (1.0, 0.5, 0.1),
    "values": (1.0, 0.75, 0.55),
}

# of the outputs' SQNR against fp32, for all three together
MOST_LOST_DB = 1.0

# standard deviation that is assumed of a layer's inputs, in quantization steps of theirs: an eighth of the range
_INPUT_STEPS = 32

IsObserver = Callable[[Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A quantized graph, what it was converted with, and what was kept; None where it was not asked for."""

    graph: Any
    settled: Settled
    kept: KeptValues | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A conversion under some tolerances.

    Attributes:
        counts: layers that are the shipped model's, int8 values and biases that stay because of the tolerances.
    """

    tolerances: ReuseTolerances
    graph: Any
    settled: Settled
    counts: tuple[int, int, int]
    scores: Scores


def convert_reusing(
    prepared: Any, spec: QuantizeSpec, convert: Callable[[Any], Any], is_observer: IsObserver
) -> Converted:
    """Settle the scales of a calibrated graph, and convert it.

    Args:
        prepared: a calibrated graph or module; used up.
        spec: `shipped` and `sticky` are what is to be reused.
        convert: makes the quantized graph of a prepared one, which it uses up.
        is_observer: tells observers from other modules.

    Raises:
        UsageError: the shipped model has other tensors.
    """
    asked = spec.sticky
    if asked is None:
        settled = settle(prepared, spec.shipped, is_observer)
        return Converted(graph=convert(prepared), settled=settled)

    def attempt(tolerances: ReuseTolerances) -> _Try:
        candidate = copy.deepcopy(prepared)
        settled = settle(candidate, spec.shipped, is_observer, clipped=tolerances.clipped)
        # put the shipped values into the weights and biases, in place
        layers = values = biases = 0
        for tensor in weight_tensors(candidate, is_observer):
            stored = _same(tensor, asked.layers)
            if stored is not None:
                layers += 1
                values += _keep_weight(tensor, stored, tolerances.values)
                biases += _keep_bias(tensor, stored, tolerances.biases)
        graph, counts = convert(candidate), (layers, values, biases)
        return _Try(tolerances=tolerances, graph=graph, settled=settled, counts=counts, scores=asked.score(graph))

    strict = attempt(STRICT)
    # the attempt with the loosest tolerances, one after the other, that is as good as the strict one
    best = strict
    for name, levels in LOOSER.items():
        for level in levels:
            came = attempt(dataclasses.replace(best.tolerances, **{name: level}))
            if (came.counts, came.settled) == (best.counts, best.settled):
                break  # it keeps nothing more, and so a tighter one does not either
            # as good as the strict one: of SQNR a little may be lost, of predictions and score nothing
            agrees = (
                came.scores.agreement is None
                or strict.scores.agreement is None
                or came.scores.agreement >= strict.scores.agreement
            )
            scores = (
                came.scores.drop_pp is None
                or strict.scores.drop_pp is None
                or came.scores.drop_pp <= strict.scores.drop_pp
            )
            # False for NaN
            if agrees and scores and came.scores.sqnr_db >= strict.scores.sqnr_db - MOST_LOST_DB:
                best = came
                break
    return Converted(graph=best.graph, settled=best.settled, kept=_kept_values(best, strict, asked))


def _kept_values(best: _Try, strict: _Try, asked: ReuseSpec) -> KeptValues:
    layers, values, biases = best.counts
    return KeptValues(
        tolerances=best.tolerances,
        layers=layers,
        values=values,
        biases=biases,
        ranges=len(strict.settled.fresh) - len(best.settled.fresh),
        samples=asked.samples,
        sqnr_db=best.scores.sqnr_db,
        sqnr_strict_db=strict.scores.sqnr_db,
    )


def _same(tensor: WeightTensor, shipped: Sequence[StoredLayer]) -> StoredLayer | None:
    """Return the shipped layer of the tensor's shape that has its scale in a channel at least; None if not one."""
    scales = tensor.scale.reshape(-1).numpy()
    found = [
        one
        for one in shipped
        if _core(one.weight.shape) == _core(tensor.weight.values.shape)
        and len(one.scales) == len(scales)
        and (np.asarray(one.scales, np.float32) == scales).any()
    ]
    same = [one for one in found if np.array_equal(one.weight, found[0].weight)]
    return found[0] if found and len(same) == len(found) else None


def _core(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without ones after the channels: XNNPACK runs a 1-D convolution as one of height 1."""
    return (*shape[:2], *(one for one in shape[2:] if one != 1))


def _keep_weight(tensor: WeightTensor, stored: StoredLayer, steps: float) -> int:
    """Let values within so many steps of the shipped one be the shipped ones; return how many are others so."""
    import torch

    values, scale, zero = tensor.weight.values, tensor.along(tensor.scale), tensor.along(tensor.zero_point)
    old = torch.from_numpy(stored.weight.copy()).reshape(values.shape).to(values.dtype)
    exact = values / scale + zero
    new = exact.round().clamp(tensor.low, tensor.high)
    stays = ((exact - old).abs() < steps) & (new != old) & tensor.along(_kept_scales(tensor, stored))
    tensor.weight.replace(torch.where(stays, (old - zero) * scale, values))
    return int(stays.sum())


def _keep_bias(tensor: WeightTensor, stored: StoredLayer, share: float) -> int:
    """Let biases be the shipped ones where they moved by less than a share of what rounding the weights moves.

    Rounding to int8 adds to each of a channel's K weights an error of standard deviation step / sqrt(12), hence
    sqrt(K / 12) times their step and the inputs' standard deviation to the output.
    """
    import torch

    if tensor.bias is None or stored.bias is None or tensor.input_scale is None:
        return 0
    bias, fan_in = tensor.bias.values, tensor.weight.values[0].numel()
    noise = math.sqrt(fan_in / 12) * tensor.scale.reshape(-1) * tensor.input_scale * _INPUT_STEPS
    old = torch.from_numpy(stored.bias.copy()).to(bias.dtype)
    moved = (bias - old).abs()
    stays = (moved <= share * noise) & (moved > 0) & _kept_scales(tensor, stored)
    tensor.bias.replace(torch.where(stays, old, bias))
    return int(stays.sum())


def _kept_scales(tensor: WeightTensor, stored: StoredLayer) -> Any:
    """Return for each channel, or for the tensor, whether it has the shipped scale."""
    import torch

    return torch.tensor(stored.scales, dtype=torch.float32) == tensor.scale.reshape(-1).to(torch.float32)
