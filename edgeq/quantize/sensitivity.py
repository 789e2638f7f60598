"""How sensitive each layer is to quantization, estimated by fake quantization of one calibrated graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgeq.core.config import Task
from edgeq.core.errors import UnsupportedError, first_line
from edgeq.core.results.model import Sensitivity, TensorSpec
from edgeq.core.samples import Batch, Dataset, batches
from edgeq.quantize.calibrate import ObserverCache
from edgeq.quantize.fake_quant import Activations, WeightFakeQuant, fake_range, observes_weight, own_parameters, part_at
from edgeq.quantize.qat import Library

RANK_SAMPLES = 32

_CANDIDATES = 16  # layers whose gain is estimated among all others in int8 too

LayerName = Callable[[Any, Any], str | None]

Measure = Callable[[str, Callable[[], float]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        prepared: a calibrated graph, which is used up.
        library: whose observers it has.
        layer_of: the name of a node's layer.
        ranges: what its observers have seen.
    """

    prepared: Any
    library: Library
    layer_of: LayerName
    ranges: ObserverCache


def rank(probe: Probe, task: Task, remember: Measure) -> tuple[Sensitivity, ...]:
    """Return all layers, the one that costs most by itself first: by score if there is one, else by SQNR.

    Each is quantized alone; then the most sensitive ones are each left in float among all others in int8.

    Args:
        probe: measures the calibrated graph.
        task: advanced by each measurement.
        remember: returns the value of a name, measured by a function where it is not known yet.
    """
    layers = probe.simulation.layers

    def measured(kind: str, layer: str, quantized: Sequence[str]) -> tuple[float, float | None]:
        value = remember(f"{kind}:{layer}", lambda: probe.sqnr_db(quantized))
        task.advance()
        return value, probe.score

    alone = {layer: measured("alone", layer, (layer,)) for layer in layers}
    order = sorted(layers, key=lambda layer: (alone[layer][1] or 0.0, alone[layer][0]))
    but_one = {
        layer: measured("but_one", layer, [other for other in layers if other != layer])
        for layer in order[:_CANDIDATES]
    }
    return tuple(
        Sensitivity(
            layer=layer,
            alone_db=alone[layer][0],
            alone_score=alone[layer][1],
            but_one_db=but_one[layer][0] if layer in but_one else None,
            but_one_score=but_one[layer][1] if layer in but_one else None,
            weight_bytes=probe.simulation.weight_elements(layer),
        )
        for layer in order
    )


def measurements(simulation: Simulation) -> int:
    """Return how many measurements a ranking takes."""
    return len(simulation.layers) + min(len(simulation.layers), _CANDIDATES)


def simulated(subject: Subject) -> Simulation:
    """Return the graph with switches for its layers.

    Raises:
        UnsupportedError: there is no layer to switch, or an observer of another kind.
    """
    try:
        simulation = Simulation(
            subject.prepared,
            is_observer=subject.library.is_observer,
            fixed=subject.library.fixed,
            layer_of=subject.layer_of,
            alone=subject.ranges.alone,
        )
    except TypeError as err:
        raise UnsupportedError(f"sensitivity: {first_line(err)}", "use --scheme static-int8") from err
    if not simulation.layers:
        what = "the model has no convolution or linear layer that can be int8 and that --keep-fp32 can name"
        raise UnsupportedError(what, "use --scheme static-int8 or dynamic-int8")
    return simulation


Score = Callable[[Sequence[tuple[Batch, tuple[Any, ...]]]], float]


class Probe:
    """Measures the outputs' SQNR on a few samples, whose float outputs are kept, and their score.

    Attributes:
        score: of the last measurement; None without a function that scores.
        float_score: of the float graph.
    """

    def __init__(
        self, simulation: Simulation, samples: Dataset, specs: Sequence[TensorSpec], score: Score | None = None
    ) -> None:
        self.simulation = simulation
        self._batches = tuple(batches(samples, specs))
        self._scored = score
        simulation.quantize(())
        self._float = [self._outputs(batch) for batch in self._batches]
        self.float_score = self.score = self._score(self._float)

    def sqnr_db(self, layers: Sequence[str]) -> float:
        """Return the SQNR of the worst output in dB with these layers in int8; infinite where nothing differs."""
        self.simulation.quantize(layers)
        signal = [0.0] * len(self._float[0])
        noise = [0.0] * len(self._float[0])
        outputs = [self._outputs(batch) for batch in self._batches]
        for measured, exact in zip(outputs, self._float, strict=True):
            for i, (ours, theirs) in enumerate(zip(measured, exact, strict=True)):
                signal[i] += float(theirs.double().square().sum())
                noise[i] += float((ours.double() - theirs.double()).square().sum())
        self.score = self._score(outputs)
        return min(_decibel(s, n) for s, n in zip(signal, noise, strict=True))

    def _score(self, outputs: Sequence[tuple[Any, ...]]) -> float | None:
        if self._scored is None:
            return None
        arrays = [tuple(tensor.numpy() for tensor in tensors) for tensors in outputs]
        return self._scored(list(zip(self._batches, arrays, strict=True)))

    def _outputs(self, batch: Batch) -> tuple[Any, ...]:
        import torch

        tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(self.simulation.graph(*tensors))
        return tuple(leaf.clone() for leaf in leaves)


def _decibel(signal: float, noise: float) -> float:
    if not math.isfinite(signal + noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


# --- A calibrated graph whose layers can be quantized one by one, to learn what each of them costs in accuracy.


class Switch(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Rounds to a static range, or lets values pass where it is None."""

    def __init__(self) -> None:
        super().__init__()
        self.rounding: nn.Module | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`, rounded where there is a range."""
        return self.rounding(values) if self.rounding is not None else values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    parameter: Any
    exact: torch.Tensor
    rounded: torch.Tensor

    def set(self, *, rounded: bool) -> None:
        self.parameter.data = self.rounded if rounded else self.exact


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Activations that share a range, as a pool's input and output do: in int8, and where both are."""

    shared: nn.Module
    alone: dict[Any, nn.Module] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)

    def rounding(self, node: Any, count: int) -> nn.Module:
        """Return the module that rounds a node when `count` nodes of its group are rounded."""
        return self.alone.get(node, self.shared) if count == 1 else self.shared


class Simulation:
    """Fake quantization of any set of a graph's layers.

    Args:
        prepared: a calibrated torch.fx.GraphModule; it is changed, and of no further use to convert.
        is_observer: tells its observers from other modules.
        fixed: the library's observer class of fixed parameters.
        layer_of: the module name of a node that is a convolution or a linear layer, else None.
        alone: of nodes that share an observer, that of each by itself, by the name of the node.

    Raises:
        TypeError: an observer of another kind than those that edgeq's configurations give.
    """

    def __init__(
        self,
        prepared: Any,
        *,
        is_observer: Callable[[Any], bool],
        fixed: Any,
        layer_of: LayerName,
        alone: Mapping[str, Any],
    ) -> None:
        own_parameters(prepared)
        self.graph = prepared
        self._layers = {node: name for node in prepared.graph.nodes if (name := layer_of(prepared, node)) is not None}
        self._weights: dict[str, list[_Weight]] = {name: [] for name in self._layers.values()}
        self._activations = Activations(prepared, is_observer, self._layers)
        self._switches: dict[Any, Switch] = {}
        self._groups: dict[int, _Group] = {}
        self._replace_observers(is_observer, fixed, alone)
        self._round_module_weights()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in the order of execution."""
        return tuple(self._weights)

    def weight_elements(self, layer: str) -> int:
        """Return how many weights a layer has."""
        return sum(weight.exact.numel() for weight in self._weights[layer])

    def quantize(self, layers: Collection[str]) -> None:
        """Quantize the layers of these names and the activations that they read and write, and nothing else."""
        wanted = set(layers)
        for name, weights in self._weights.items():
            for weight in weights:
                weight.set(rounded=name in wanted)
        rounded = self._activations.rounded(wanted)
        for group in self._groups.values():
            on = [node for node in group.nodes if node in rounded]
            for node in group.nodes:
                self._switches[node].rounding = None if node not in rounded else group.rounding(node, len(on))

    def _replace_observers(self, is_observer: Callable[[Any], bool], fixed: Any, alone: Mapping[str, Any]) -> None:
        for node in self._activations.nodes:
            observer = self.graph._modules[str(node.target)]
            if id(observer) not in self._groups:
                self._groups[id(observer)] = _Group(shared=fake_range(observer, fixed)[1])
            group, own = self._groups[id(observer)], alone.get(node.args[0].name)
            group.nodes.append(node)
            if own is not None:
                group.alone[node] = fake_range(own, fixed)[1]
            self._switches[node] = Switch()
        for node in self.graph.graph.nodes:
            if observes_weight(self.graph, node) and is_observer(observer := self.graph._modules[str(node.target)]):
                parameter = part_at(self.graph, str(node.args[0].target))
                names = [self._layers[user] for user in node.users if user in self._layers]
                exact = parameter.detach().clone()
                rounded = WeightFakeQuant(observer)(exact)
                if names:
                    self._weights[names[0]].append(_Weight(parameter=parameter, exact=exact, rounded=rounded))
                else:  # a functional layer of no module's own is always in int8
                    parameter.data = rounded
                setattr(self.graph, str(node.target), nn.Identity())
        for node, switch in self._switches.items():
            setattr(self.graph, str(node.target), switch)

    def _round_module_weights(self) -> None:
        """Round the weights of layers that are modules (FX)."""
        for node, name in self._layers.items():
            if node.op != "call_module" or self._weights[name]:
                continue
            layer = self.graph.get_submodule(str(node.target))
            config = getattr(layer, "qconfig", None)
            inner = layer[0] if isinstance(layer, nn.Sequential) else layer
            if config is not None:
                exact = inner.weight.detach().clone()
                observer = config.weight()
                rounded = WeightFakeQuant(observer)(exact)
                self._weights[name].append(_Weight(parameter=inner.weight, exact=exact, rounded=rounded))
