"""How sensitive each layer is to quantization, estimated by fake quantization of one calibrated graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeq.artifacts import Sensitivity, TensorSpec
from edgeq.errors import UnsupportedError, first_line
from edgeq.job import Task
from edgeq.quantize.qat import Library
from edgeq.samples import Batch, Dataset, batches

if TYPE_CHECKING:
    from edgeq.quantize.lent import Ranges
    from edgeq.quantize.simulate import Simulation

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
    ranges: Ranges


def rank(
    simulation: Simulation, samples: Dataset, specs: Sequence[TensorSpec], task: Task, remember: Measure
) -> tuple[Sensitivity, ...]:
    """Return all layers, the one that costs most by itself first.

    Each is quantized alone; then the most sensitive ones are each left in float among all others in int8.

    Args:
        simulation: the calibrated graph.
        samples: what it is measured on.
        specs: the model's inputs.
        task: told of each measurement.
        remember: returns the value of a name, measured by a function where it is not known yet.
    """
    probe = _Probe(simulation, samples, specs)

    def measured(kind: str, layer: str, quantized: Sequence[str]) -> float:
        value = remember(f"{kind}:{layer}", lambda: probe.sqnr_db(quantized))
        task.advance()
        return value

    layers = simulation.layers
    alone = {layer: measured("alone", layer, (layer,)) for layer in layers}
    order = sorted(layers, key=lambda layer: alone[layer])
    but_one = {
        layer: measured("but_one", layer, [other for other in layers if other != layer])
        for layer in order[:_CANDIDATES]
    }
    return tuple(
        Sensitivity(
            layer=layer,
            alone_db=alone[layer],
            but_one_db=but_one.get(layer),
            weight_bytes=simulation.weight_elements(layer),
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
    from edgeq.quantize.simulate import Simulation

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
        what = "the model has no convolution or linear layer that int8 takes and --keep-fp32 can name"
        raise UnsupportedError(what, "use --scheme static-int8 or dynamic-int8")
    return simulation


class _Probe:
    """Measures the outputs' SQNR on a few samples, whose float outputs are kept."""

    def __init__(self, simulation: Simulation, samples: Dataset, specs: Sequence[TensorSpec]) -> None:
        self._simulation = simulation
        self._batches = tuple(batches(samples, specs))
        simulation.quantize(())
        self._float = [self._outputs(batch) for batch in self._batches]

    def sqnr_db(self, layers: Sequence[str]) -> float:
        """Return the SQNR of the worst output in dB; infinite where nothing differs."""
        self._simulation.quantize(layers)
        signal = [0.0] * len(self._float[0])
        noise = [0.0] * len(self._float[0])
        for batch, exact in zip(self._batches, self._float, strict=True):
            for i, (ours, theirs) in enumerate(zip(self._outputs(batch), exact, strict=True)):
                signal[i] += float(theirs.double().square().sum())
                noise[i] += float((ours.double() - theirs.double()).square().sum())
        return min(_decibel(s, n) for s, n in zip(signal, noise, strict=True))

    def _outputs(self, batch: Batch) -> tuple[Any, ...]:
        import torch

        tensors = tuple(torch.from_numpy(array.copy()) for array in batch.inputs)
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(self._simulation.graph(*tensors))
        return tuple(leaf.clone() for leaf in leaves)


def _decibel(signal: float, noise: float) -> float:
    if not math.isfinite(signal + noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
