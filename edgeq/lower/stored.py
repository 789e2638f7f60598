"""What a TorchScript archive stores, read from its tables without running anything in it."""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeq.artifacts import Layer, QuantizedModel
from edgeq.lower.tables import DTYPES, Storage, place, read, walk


def archive_elements(path: Path) -> tuple[tuple[str, int], ...]:
    """Return how many elements of each dtype a TorchScript archive stores."""
    elements: dict[str, tuple[str, int]] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            for node in walk(read(archive.read(name))) if name.endswith(".pkl") else ():
                if isinstance(node, Storage):
                    dtype = node.dtype.__name__
                    elements[place(names, name, node)] = (DTYPES.get(dtype, dtype), node.elements)
    tally: Counter[str] = Counter()
    for dtype, count in elements.values():
        tally[dtype] += count
    return tuple(sorted(tally.items()))


def stored_layers(layers: Sequence[Layer], quantized: QuantizedModel) -> tuple[Layer, ...]:
    """Return the layers with the bytes that their weights take in the artifact.

    A weight that is stored in a shorter type, and was seen as the float32 that it becomes in a run, is counted by that
    type; the scales of int8 are not.
    """
    shorter = {"fp16": 2, "weight-only-int8": 4}.get(quantized.scheme)
    if shorter is None:
        return tuple(layers)
    return tuple(
        dataclasses.replace(layer, weight_bytes=layer.weight_bytes // shorter)
        if any(layer.name == name or layer.name.startswith(f"{name}.") for name in quantized.quantized)
        else layer
        for layer in layers
    )
