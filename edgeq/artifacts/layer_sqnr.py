"""How far each layer of a quantized graph is from the float graph's, on the same samples."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

# a layer stands out where it is at least so much noisier by itself than the median layer: four times the noise power
STANDS_OUT_DB = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSqnr:
    """A layer's output in the quantized graph against the float graph's.

    SQNR = 10 log10(sum float² / sum (float - quantized)²) in dB, over all elements of the layer's output (after a
    relu that is fused with it, and rounded as the next layer gets it) and all samples. Infinite where nothing differs,
    -Infinity where the float output is zero or a value is not finite.

    Attributes:
        layer: the module's name, as the table of layers has it.
        sqnr_db: with the whole graph quantized: what all layers up to this one add up to.
        own_db: with the outputs of all earlier layers put back to the float graph's: what this layer, and what lies
            between it and the layers before it, adds by itself.
    """

    layer: str
    sqnr_db: float
    own_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSqnrs:
    """All layers in the order of execution.

    Attributes:
        samples: how many calibration samples the sums are over.
    """

    samples: int
    layers: tuple[LayerSqnr, ...]

    @property
    def noisiest(self) -> LayerSqnr:
        """The layer that adds most noise by itself; of equals the first. There is at least one layer."""
        return min(self.layers, key=lambda one: one.own_db)

    @property
    def start(self) -> LayerSqnr | None:
        """The layer where the error starts: the noisiest, where it stands out; None where the error builds up."""
        if len(self.layers) == 1:
            return self.layers[0]
        noisiest = self.noisiest
        others = [one.own_db for one in self.layers if one is not noisiest]
        gap_db = statistics.median(others) - noisiest.own_db
        return noisiest if gap_db >= STANDS_OUT_DB and not math.isnan(gap_db) else None

    def before(self, layer: LayerSqnr) -> float:
        """Return the SQNR in dB of the layer that ran just before; infinite for the first, which reads the input."""
        place = self.layers.index(layer)
        return self.layers[place - 1].sqnr_db if place else math.inf
