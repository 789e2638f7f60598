"""Small models made at random of what quantization rewrites, and what rounding each value may cost them.

Every model is made of its seed: convolutions that are called twice or tapped, norms before and after them, writes
through views, splits, joins, activations of fixed range, and values whose ranges are unlike. `allowed_error` rounds
every value of the float model to the steps of its own range, and every weight to its channel's: an int8 model whose
error is much larger than that has lost something else than bits. `EDGEQ_RANDOM_GRAPHS=2000` has the tests try more of
them than CI does, and `EDGEQ_RANDOM_GRAPHS=40:60` those from 40 to 59.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import numpy as np
import torch
from small_models import forward, loaded, quantized, sample
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812

from edgeq.core.errors import UnsupportedError
from edgeq.core.results.model import LoadedModel, QuantizedModel, TensorSpec
from edgeq.core.samples import Batch, Dataset

SHAPE = (1, 3, 12, 12)
_CHANNELS = 8
# an amplitude: a join whose ranges are alike may cost two bits, and kernels round at several places more
FACTOR = 8.0
SPEC = TensorSpec(name="image", dtype="float32", shape=SHAPE, low=-1.0)
_STEPS = {"x86": 127}  # of activations: FX leaves its engine a bit less
_KINDS = (
    *("conv", "conv", "shared", "norm", "conv_norm", "relu", "add", "write", "write", "split", "cat"),
    *("fixed", "scale", "tap", "mask", "pool_up", "linear", "gate"),
)


class RandomNet(nn.Module):
    """A model of some ten steps over values [1, 8, H, W]; `lines` says which."""

    def __init__(self, seed: int) -> None:  # noqa: C901  # one branch for each piece
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.register_buffer("mask", torch.where(torch.arange(12.0) < 8, 0.0, draw.choice([-1e9, -1e4])))
        self.steps: list[tuple[str, tuple]] = []
        stem = self._layer(nn.Conv2d(3, _CHANNELS, 3, 1, 1))
        self.steps.append(("layer", (stem, 0)))  # value 0 is the input, 1 the stem's
        count, shared = 2, []
        taps = []
        for _ in range(draw.randint(5, 10)):
            source = draw.randrange(max(1, count - 3), count)
            other = draw.randrange(1, count)
            kind = draw.choice(_KINDS)
            if kind == "conv":
                self.steps.append(("layer", (self._layer(nn.Conv2d(_CHANNELS, _CHANNELS, 3, 1, 1)), source)))
            elif kind == "shared":
                if not shared or draw.random() < 0.4:
                    bias = draw.random() < 0.6
                    shared.append(self._layer(nn.Conv2d(_CHANNELS, _CHANNELS, 3, 1, 1, bias=bias)))
                self.steps.append(("layer", (draw.choice(shared), source)))
            elif kind == "norm":
                norms = [i for i, part in enumerate(self.layers) if isinstance(part, nn.BatchNorm2d)]
                again = norms and draw.random() < 0.3
                index = draw.choice(norms) if again else self._layer(nn.BatchNorm2d(_CHANNELS))
                self.steps.append(("layer", (index, source)))
            elif kind == "conv_norm":
                conv = draw.choice(shared) if shared and draw.random() < 0.4 else None
                if conv is None:
                    conv = self._layer(nn.Conv2d(_CHANNELS, _CHANNELS, 3, 1, 1, bias=draw.random() < 0.5))
                self.steps.append(("layer", (conv, source)))
                count += 1
                self.steps.append(("layer", (self._layer(nn.BatchNorm2d(_CHANNELS)), count - 1)))
            elif kind == "linear":
                self.steps.append(("channels_last", (self._layer(nn.Linear(_CHANNELS, _CHANNELS)), source)))
            elif kind == "write":
                how = draw.choice(["copy", "relu_", "mul_", "add_", "rows", "fill", "one"])
                self.steps.append(("write", (how, source, draw.randrange(1, _CHANNELS))))
            elif kind == "fixed":
                self.steps.append(("fixed", (draw.choice(["sigmoid", "tanh", "softmax", "hardsigmoid"]), source)))
            elif kind == "scale":
                self.steps.append(("scale", (draw.choice([0.05, 4.0, 16.0]), source)))
            elif kind == "tap":
                taps.append(source)
                continue
            elif kind in ("add", "cat", "gate"):
                self.steps.append((kind, (source, other)))
            else:
                self.steps.append((kind, (source,)))
            count += 1
        self.taps = tuple(dict.fromkeys(taps))
        self.end = (draw.choice(["plain", "plain", "cat", "stack"]), count - 1, draw.randrange(1, count))
        self.lines = (*(f"{i + 1} = {kind} {args}" for i, (kind, args) in enumerate(self.steps)), f"end {self.end}")
        self._settle()

    def _layer(self, part: nn.Module) -> int:
        self.layers.append(part)
        return len(self.layers) - 1

    def _settle(self) -> None:
        """Give the norms lively factors and the statistics of what they see, so that no value grows without bound."""
        for part in self.layers:
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
                nn.init.uniform_(part.weight, 0.5, 1.6)
                nn.init.uniform_(part.bias, -0.4, 0.4)
        self.train()
        with torch.no_grad():
            for array in images(8, 1000):
                self(torch.from_numpy(array))
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [image]
        for kind, args in self.steps:
            values.append(self._step(kind, args, values))
        how, last, other = self.end
        end = values[last]
        if how == "cat":
            end = torch.cat((end, values[other]), 1).flatten(2)
        elif how == "stack":
            end = torch.stack((end, values[other]), 1)
        return (end, *(values[tap] for tap in self.taps))

    def _step(self, kind: str, args: tuple, values: list[torch.Tensor]) -> torch.Tensor:
        if kind == "layer":
            return self.layers[args[0]](values[args[1]])
        if kind == "channels_last":
            return self.layers[args[0]](values[args[1]].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if kind == "write":
            return self._written(args[0], values[args[1]], args[2])
        if kind == "fixed":
            x = values[args[1]]
            return x.softmax(1) if args[0] == "softmax" else getattr(F, args[0])(x)
        if kind == "scale":
            return values[args[1]] * args[0]
        x = values[args[0]]
        if kind == "relu":
            return F.relu(x)
        if kind == "add":
            return x + values[args[1]]
        if kind == "gate":
            return x * torch.sigmoid(values[args[1]])
        if kind == "cat":
            return torch.cat((x[:, :4], values[args[1]][:, 4:]), 1)
        if kind == "split":
            a, b = x.chunk(2, 1)
            return torch.cat((b.relu(), a), 1)
        if kind == "mask":
            return (x.mean(2, keepdim=True) + self.mask).softmax(-1) * x
        return F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="nearest")

    def _written(self, how: str, x: torch.Tensor, channels: int) -> torch.Tensor:
        if how in ("rows", "fill"):
            x = x.clone()  # the others change what was read before, as careless code does
        if how == "copy":
            x[:, :channels] = torch.tanh(x[:, :channels])
        elif how == "relu_":
            F.relu(x[:, :channels], inplace=True)
        elif how == "mul_":
            x[:, channels].mul_(2)
        elif how == "add_":
            x[:, :, 1:-1] += 0.5
        elif how == "rows":
            x.flatten(2)[..., :30].mul_(0.5)
        elif how == "fill":
            x[:, :, 0] = 0
        else:
            x.flatten(2).transpose(1, 2)[..., :channels].sigmoid_()
        return x


def images(count: int, seed: int) -> list[np.ndarray]:
    """Return smooth images [1, 3, 12, 12] of -1 to 1."""
    rng = np.random.default_rng(seed)
    low = rng.random((count, 1, 3, 4, 4), dtype=np.float32) * 2 - 1
    return list(
        np.kron(low, np.ones((3, 3), np.float32)) * 0.9 + rng.normal(0, 0.05, (count, *SHAPE)).astype(np.float32)
    )


class _Rounded(torch.fx.Interpreter):
    """Runs a functional graph, and rounds what every node gives to the range that was seen of it."""

    # where quantizers let the output have the scale of the input, as XNNPACK's does
    _SHARING = ("mean", "adaptive_avg_pool2d")
    # what only moves values: where no layer needs one range of a join, each part keeps its own
    _MOVING = ("cat", "stack", "view", "unsqueeze", "squeeze", "permute", "expand", "clone")
    _LAYERS = ("convolution", "addmm", "mm")

    def __init__(self, module: torch.fx.GraphModule, steps: int) -> None:
        super().__init__(module)
        self.steps = steps
        self.before_layers: set[torch.fx.Node] = set()
        for node in reversed(module.graph.nodes):
            if any(self._is(user, self._LAYERS) or user in self.before_layers for user in node.users):
                self.before_layers.add(node)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.rounds = False

    def run_node(self, n: torch.fx.Node):
        result = super().run_node(n)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point() or n.op == "output":
            return result
        if n.op == "get_attr":
            return _round_weight(result) if self.rounds and result.dim() > 1 else result
        low, high = self.ranges.get(n.name, (0.0, 0.0))
        if not self.rounds:
            seen = result[result.abs() < 1e4]
            if seen.numel():
                self.ranges[n.name] = (min(low, float(seen.min())), max(high, float(seen.max())))
            return result
        if any(word in str(n.target) for word in self._SHARING):
            low, high = self.ranges.get(str(n.args[0]), (low, high))
        if self._is(n, self._MOVING) and n not in self.before_layers:
            return result
        step = (high - low) / self.steps
        return result if step == 0 else torch.where(result.abs() < 1e4, (result / step).round() * step, result)

    def _is(self, node: torch.fx.Node, names: tuple[str, ...]) -> bool:
        return getattr(node.target, "_opname", "") in names


def _round_weight(weight: torch.Tensor) -> torch.Tensor:
    step = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp(min=2**-12 * 127) / 127
    return (weight / step).round() * step


def allowed_error(
    net: nn.Module, calibration: list[np.ndarray], evaluation: list[np.ndarray], steps: int
) -> list[np.ndarray]:
    """Return the root mean square error that each channel of each output may have, [C] each.

    `steps` is how many the range of an activation has.

    It is `FACTOR` times that of the reference, whose own error is at least that of rounding the channel to its range.
    """
    with torch.no_grad():
        # torch.export's graph of the same operators takes several times as long
        reference = _Rounded(make_fx(torch.func.functionalize(net))(torch.zeros(SHAPE)), steps)
        for array in calibration:
            reference.run(torch.from_numpy(array))
        reference.rounds = True
        rounded = [torch.utils._pytree.tree_leaves(reference.run(torch.from_numpy(a))) for a in evaluation]
        exact = [torch.utils._pytree.tree_leaves(net(torch.from_numpy(a))) for a in evaluation]
    found = []
    for index, _ in enumerate(exact[0]):
        true = channels(np.stack([outputs[index].numpy() for outputs in exact]))
        off = channels(np.stack([outputs[index].numpy() for outputs in rounded])) - true
        least = (true.max(1) - np.minimum(true.min(1), 0)) / steps
        found.append(FACTOR * np.maximum(np.sqrt((off**2).mean(1)), least) + 1e-6)
    return found


def channels(values: np.ndarray) -> np.ndarray:
    """Return outputs [N, 1, ..., H, W], [N, 1, C, H, W] or [N, 1, C, L] as [channels, everything else], float64."""
    if values.ndim == 6:  # stacked
        values = values.reshape(len(values), 1, -1, *values.shape[4:])
    return np.moveaxis(values[:, 0].astype(np.float64), 1, 0).reshape(values.shape[2], -1)


def worst_channel(allowed: list[np.ndarray], exact: list[np.ndarray], measured: list[np.ndarray]) -> tuple[float, str]:
    """Return how many times the allowed error the worst channel has, and which it is.

    Args:
        allowed: by output, as `allowed_error` has it.
        exact: by output, of the float model, over all samples.
        measured: the same of the int8 model.
    """
    worst = (0.0, "")
    for index, limit in enumerate(allowed):
        error = np.sqrt(((channels(measured[index]) - channels(exact[index])) ** 2).mean(1))
        ratio = np.nan_to_num(error / limit, nan=np.inf)
        if ratio.max() > worst[0]:
            worst = (float(ratio.max()), f"output {index} channel {int(ratio.argmax())}")
    return worst


def seeds(count: int, *found: int) -> Sequence[int]:
    """Return the seeds to try: as many as CI does and those that found a fault, or what EDGEQ_RANDOM_GRAPHS says."""
    asked = os.environ.get("EDGEQ_RANDOM_GRAPHS")
    if asked is None:
        return [*range(count), *found]
    first, _, end = asked.rpartition(":")
    return range(int(first or 0), int(end))


CALIBRATION, EVALUATION = images(12, 1), images(12, 2)


def int8_of(seed: int, runtime: str, backend: str) -> tuple[LoadedModel, QuantizedModel | None]:
    """Return a random model and its static int8; None where it is refused with the line.

    Raises:
        AssertionError: refused without the line.
    """
    model = loaded(RandomNet(seed), SPEC, seed=seed)
    data = Dataset(
        origin="seeded", count=len(CALIBRATION), read=lambda i: sample(CALIBRATION[i], name=f"s{i}"), labelled=False
    )
    try:
        return model, quantized(model, runtime, backend=backend, observer="minmax", calibration=data)
    except UnsupportedError as err:
        if " at " not in str(err):
            raise AssertionError(f"refused without the line: {err}") from err
        return model, None


def outputs_by(run) -> list[np.ndarray]:
    """Return by output what a function gives of all evaluation images, as the verify step calls it."""
    rows = [run(Batch(inputs=(array,), samples=(sample(array),))) for array in EVALUATION]
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def check_rounding(model: LoadedModel, measured: list[np.ndarray], backend: str) -> None:
    """Hold what int8 gives of the evaluation images to the error that rounding may cost.

    Raises:
        AssertionError: a channel has more.
    """
    net = model.model
    exact = outputs_by(forward(net))
    assert all(np.isfinite(output).all() for output in exact)
    ratio, where = worst_channel(allowed_error(net, CALIBRATION, EVALUATION, _STEPS.get(backend, 255)), exact, measured)
    if ratio > 1:
        raise AssertionError(f"{where}: {ratio:.1f} times the error allowed of {net.lines}")
