"""The part of the samples that is emulated, with what the host and fp32 made of it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.samples import Batch
from edgeq.scheme import FLOAT_SCHEMES
from edgeq.verify.metrics import Outputs

# mobilenet_v2 at 224 x 224 has 300 million multiply-accumulates: 16 samples of it, or a hundred small ones
_INT8_MACS = 4.8e9
_FLOAT_FACTOR = 8  # float kernels take that much longer under QEMU, which emulates floating point in software
_LEAST, _MOST = 4, 128
_UNKNOWN = 16


def subset_size(macs: int, scheme: str) -> int:
    """Return how many samples to emulate: a few of a large model, many of a small one.

    It depends on the model only, not on the machine, so that equal inputs give an equal bundle.

    Args:
        macs: multiply-accumulates of one inference; 0 where they are not known.
        scheme: the quantization scheme.
    """
    if macs == 0:
        return _UNKNOWN
    budget = _INT8_MACS / _FLOAT_FACTOR if scheme in FLOAT_SCHEMES else _INT8_MACS
    return min(_MOST, max(_LEAST, int(budget // macs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A batch, and what became of it.

    Attributes:
        host: the artifact's outputs on this host, padding included.
        fp32: those of the float model; None where there is none.
        scored: whether its samples may have labels; golden samples have none.
    """

    batch: Batch
    host: Outputs
    fp32: Outputs | None
    scored: bool = True


class Subset:
    """Keeps the first batches, for the golden samples, and more that are spread evenly: data are often sorted."""

    def __init__(self, *, count: int, rows: int, limit: int, first: int) -> None:
        """Prepare for the batches of one dataset.

        Args:
            count: samples in the dataset.
            rows: of them in a batch.
            limit: samples to keep, about.
            first: batches to keep from the beginning.
        """
        self._first = first
        self._later = max(1, -(-count // rows) - first)  # batches after those
        self._wanted = max(0, min(self._later, limit // rows - first))
        self._seen = 0
        self.observed: list[Observed] = []

    def keeps(self, index: int) -> bool:
        """Whether batch `index` of the dataset is one of the sub-set."""
        later = index - self._first
        return later < 0 or (later + 1) * self._wanted // self._later > later * self._wanted // self._later

    def __call__(self, batch: Batch, host: Outputs, fp32: Outputs | None) -> None:
        """Take a batch in the order of the dataset, or let it pass."""
        index, self._seen = self._seen, self._seen + 1
        if self.keeps(index):
            self.observed.append(Observed(batch=batch, host=host, fp32=fp32))
